//! Models in libtorch.

use std::{num::NonZeroUsize, path::Path};

use sightline_model::manifest::{self, Manifest};
use sightline_torch::{Device, InputShape, Layout, Model, TorchError, configure_worker_thread};

use super::{Backend, BackendError, Executor};

/// Runs TorchScript modules on one device.
#[derive(Debug)]
pub struct Torch {
    device: Device,
    intra_op_threads: NonZeroUsize,
}

impl Torch {
    /// A backend for `device` ("cpu", "cuda:0").
    ///
    /// # Errors
    /// When the text is no device, or the device is not there.
    pub fn new(device: &str, intra_op_threads: usize) -> Result<Self, BackendError> {
        let fail = |problem: String| BackendError(format!("`classifier.device`: {problem}"));
        let device: Device = device.parse().map_err(|error| fail(format!("{error}")))?;
        device.check_available().map_err(|error| fail(error.to_string()))?;
        let intra_op_threads = NonZeroUsize::new(intra_op_threads).unwrap_or(NonZeroUsize::MIN);
        Ok(Self { device, intra_op_threads })
    }
}

impl Backend for Torch {
    fn device(&self) -> String {
        self.device.to_string()
    }

    fn kind(&self) -> manifest::Device {
        match self.device {
            Device::Cpu => manifest::Device::Cpu,
            Device::Cuda(_) => manifest::Device::Cuda,
        }
    }

    fn prepare_thread(&self) {
        configure_worker_thread(self.intra_op_threads);
    }

    fn load(&self, manifest: &Manifest, folder: &Path) -> Result<Box<dyn Executor>, BackendError> {
        let (file, _) = manifest.archive(self.kind());
        let model = Model::load(&folder.join(file), self.device).map_err(|error| explain(&error))?;
        let layout = match manifest.input.layout {
            manifest::Layout::Nchw => Layout::Nchw,
            manifest::Layout::Nhwc => Layout::Nhwc,
        };
        Ok(Box::new(Loaded { model, layout, input: manifest.input.clone() }))
    }
}

struct Loaded {
    model: Model,
    layout: Layout,
    input: manifest::Input,
}

impl Executor for Loaded {
    fn run(
        &mut self,
        batch: usize,
        fill: &mut dyn FnMut(&mut [f32]),
        output: &mut Vec<f32>,
    ) -> Result<(), BackendError> {
        let shape = InputShape {
            batch,
            height: self.input.height as usize,
            width: self.input.width as usize,
            channels: self.input.channels as usize,
        };
        self.model.forward_with(shape, self.layout, fill, output).map(drop).map_err(|error| explain(&error))
    }
}

fn explain(error: &TorchError) -> BackendError {
    tracing::debug!(detail = error.detail(), "libtorch said more");
    BackendError(error.to_string())
}
