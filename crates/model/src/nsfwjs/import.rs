//! From the tarball to a folder that a classifier can load.

use std::path::{Path, PathBuf};

use thiserror::Error;

use super::{CLASSES, ConvertError, Package, Which, read};
use crate::graph::{Graph, GraphError, NodeId, PaddingStyle, Shape, optimise};
use crate::manifest::{
    Class, Colour, Corners, Device, Digest, Fit, Input, Layout, Manifest, ManifestError, Output, Resize,
    Role, SCHEMA, Transport, Variant,
};
use crate::torchscript::{self, ArchiveError, Flavour};

/// The archive for any device.
const PORTABLE: &str = "model.pt";
/// The archive for processors.
const CPU: &str = "model-cpu.pt";

/// Why an import failed.
#[derive(Debug, Error)]
pub enum ImportError {
    /// The package cannot be converted.
    #[error(transparent)]
    Convert(#[from] ConvertError),
    /// The layers cannot be simplified.
    #[error(transparent)]
    Graph(#[from] GraphError),
    /// The archive cannot be written.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
    /// The manifest cannot be written.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// A file cannot be written.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Converts a model of `package` and writes both archives and, last, the manifest into `folder`, which is made if need be.
///
/// # Errors
/// [`ImportError`] that names the layer or file.
pub fn import(package: &Package, which: Which, folder: &Path) -> Result<Manifest, ImportError> {
    let graph = optimise(&read(package, which)?, PaddingStyle::default())?;
    std::fs::create_dir_all(folder)
        .map_err(|source| ImportError::Io { path: folder.to_path_buf(), source })?;
    let write = |name: &str, flavour: Flavour| -> Result<Digest, ImportError> {
        let bytes = torchscript::write(&graph, flavour)?;
        let path = folder.join(name);
        std::fs::write(&path, &bytes).map_err(|source| ImportError::Io { path, source })?;
        Ok(Digest::of(&bytes))
    };
    let digest = write(PORTABLE, Flavour::Portable)?;
    let cpu = write(CPU, Flavour::fastest_on_cpu(&graph))?;
    let manifest = Manifest {
        schema: SCHEMA,
        name: which.name().to_owned(),
        version: "4.4.0".to_owned(),
        file: PORTABLE.into(),
        digest,
        output: Output::Probabilities,
        tolerance: which.tolerance(),
        license: "MIT".to_owned(),
        source: format!("npm nsfwjs 4.4.0, dist/models/{}", which.folder()),
        classes: CLASSES.iter().map(|name| Class { name: (*name).to_owned(), role: role(name) }).collect(),
        input: input(&graph),
        variants: vec![Variant { file: CPU.into(), digest: cpu, device: Device::Cpu }],
    };
    manifest.save(folder)?;
    Ok(manifest)
}

fn role(class: &str) -> Role {
    match class {
        "Hentai" | "Porn" => Role::Explicit,
        "Sexy" => Role::Suggestive,
        _ => Role::Safe,
    }
}

/// What nsfwjs does to a picture before either model.
fn input(graph: &Graph) -> Input {
    let (height, width) = match graph.shape(NodeId(0)) {
        Shape::Map { height, width, .. } => (height as u32, width as u32),
        Shape::Flat(_) => (0, 0),
    };
    Input {
        width,
        height,
        channels: 3,
        colour: Colour::Rgb,
        layout: Layout::Nchw,
        scale: 1.0 / 255.0,
        mean: vec![0.0; 3],
        std: vec![1.0; 3],
        resize: Resize::Bilinear,
        corners: Corners::Align,
        antialias: false,
        fit: Fit::Stretch,
        transport: Transport::U16,
    }
}
