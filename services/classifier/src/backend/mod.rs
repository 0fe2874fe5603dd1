//! What runs a model: a small trait, so that the rest of the crate knows nothing of libtorch.

#[cfg(feature = "torch")]
pub mod torch;

use std::path::Path;

use sightline_model::manifest::{self, Manifest};

/// Loads models. One per process; called from every executor thread.
pub trait Backend: Send + Sync + 'static {
    /// Where models run: "cpu", "cuda:0".
    fn device(&self) -> String;

    /// The kind of that device, which decides which of a model's archives is run.
    fn kind(&self) -> manifest::Device {
        if self.device() == "cpu" { manifest::Device::Cpu } else { manifest::Device::Cuda }
    }

    /// Called once on each executor thread before anything else.
    fn prepare_thread(&self);

    /// Loads the model whose manifest lies in `folder`, for the calling thread alone.
    ///
    /// # Errors
    /// [`BackendError`] naming the file.
    fn load(&self, manifest: &Manifest, folder: &Path) -> Result<Box<dyn Executor>, BackendError>;
}

/// A loaded model, owned by one thread.
pub trait Executor {
    /// Runs `batch` images. `fill` writes them into the executor's own buffer: f32 in rows, columns, colours order,
    /// scaled as the manifest says; `output` is replaced by batch × classes values.
    ///
    /// # Errors
    /// [`BackendError`]; the executor can be used again.
    fn run(
        &mut self,
        batch: usize,
        fill: &mut dyn FnMut(&mut [f32]),
        output: &mut Vec<f32>,
    ) -> Result<(), BackendError>;
}

/// What a backend says went wrong: one line, no pixels.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BackendError(pub String);
