//! `model.toml`: what a model is, how a picture becomes its input, and what its outputs mean.
//!
//! The manifest is the contract between ingest, which resizes, the classifier, which normalises and runs, and policies,
//! which sum classes by role. It is checked completely before use: [`Manifest::load`] returns only valid ones.

mod digest;
mod validate;

use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use thiserror::Error;

pub(crate) use digest::hex;
pub use digest::{Digest, ParseDigestError};

/// The name of a manifest in its folder.
pub const FILE_NAME: &str = "model.toml";

/// The version of the format that this crate reads and writes.
pub const SCHEMA: u32 = 1;

/// A manifest is a page of text; whatever is larger is something else.
const MAX_BYTES: u64 = 1 << 20;

/// A model's manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Version of this format: 1.
    pub schema: u32,
    /// The model's name: lower-case letters, digits and hyphens.
    pub name: String,
    /// The model's version, free text without spaces.
    pub version: String,
    /// The TorchScript archive for any device, relative to the manifest.
    pub file: PathBuf,
    /// SHA-256 of that file.
    pub digest: Digest,
    /// What `forward` returns.
    pub output: Output,
    /// The largest difference of one score between two paths to it (promise P7): kernels, devices, batches, and what
    /// rounding pixels to `input.transport` adds, which is by far the most.
    pub tolerance: f64,
    /// The licence of the weights, as an SPDX expression.
    pub license: String,
    /// Where the weights come from.
    pub source: String,
    /// The outputs, in order.
    pub classes: Vec<Class>,
    /// How a picture becomes the input.
    pub input: Input,
    /// The same model in forms for one device only, tried before `file` there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub variants: Vec<Variant>,
}

/// What a model returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Output {
    /// Numbers that sum to one.
    Probabilities,
    /// Numbers that softmax makes into probabilities.
    Logits,
}

/// One output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Class {
    /// Its name in scores and policies.
    pub name: String,
    /// What a policy counts it as.
    pub role: Role,
}

/// What a class says about a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Nothing to hide.
    Safe,
    /// Suggestive without being explicit.
    Suggestive,
    /// Explicit.
    Explicit,
}

/// How a picture becomes numbers: resized to `width` x `height`, then `(pixel * scale - mean[c]) / std[c]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Input {
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// Values per pixel: 3.
    pub channels: u32,
    /// Order of the channels.
    pub colour: Colour,
    /// Order of the axes that `forward` takes.
    pub layout: Layout,
    /// Factor for pixel values of 0..=255.
    pub scale: f64,
    /// Subtracted after scaling, one per channel.
    pub mean: Vec<f64>,
    /// Divided by at the end, one per channel.
    pub std: Vec<f64>,
    /// How values between pixels are made.
    pub resize: Resize,
    /// Where pixels lie when resizing.
    pub corners: Corners,
    /// Whether shrinking averages over all pixels that fall together.
    pub antialias: bool,
    /// What happens to pictures of another aspect ratio.
    pub fit: Fit,
    /// Precision in which the resized frame travels to the classifier.
    pub transport: Transport,
}

/// Order of colour channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Colour {
    /// Red first.
    Rgb,
    /// Blue first.
    Bgr,
}

/// Order of axes. The strides are another matter: `nchw` may well be channels_last in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// Batch, channel, row, column.
    Nchw,
    /// Batch, row, column, channel.
    Nhwc,
}

/// Interpolation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resize {
    /// The nearest pixel.
    Nearest,
    /// Linear in both axes.
    Bilinear,
}

/// Where sampling points lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Corners {
    /// The corner pixels' centres stay where they are (`align_corners = true`).
    Align,
    /// Pixels are squares, and the picture's edges stay where they are.
    HalfPixel,
}

/// What happens to other aspect ratios.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fit {
    /// Stretched.
    Stretch,
}

/// Numbers of a resized frame on their way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// Rounded to 0..=255. Moved a score of nsfwjs's MobileNetV2 by up to 0.027.
    U8,
    /// `round(pixel * 257)`, 0..=65535. Moved a score of nsfwjs's MobileNetV2 by up to 2.1e-4 on photographs, one of its
    /// InceptionV3 by up to 1.1e-5: a tolerance of 1e-4 is not held by every model.
    U16,
    /// Not rounded: only kernels differ, by up to 3e-6.
    F32,
}

/// The same model for one kind of device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    /// The archive, relative to the manifest.
    pub file: PathBuf,
    /// SHA-256 of that file.
    pub digest: Digest,
    /// Where it runs.
    pub device: Device,
}

/// A kind of device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// The processor.
    Cpu,
    /// A CUDA device.
    Cuda,
}

/// Why a manifest cannot be used.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The text is not a manifest; the message has line and field.
    #[error("{path}: {message}")]
    Parse {
        /// Which file.
        path: PathBuf,
        /// What the parser says.
        message: String,
    },
    /// A field has a value it cannot have.
    #[error("`{field}` {problem}")]
    Field {
        /// The field's path, as in `input.std[1]`.
        field: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A file is not what it was when the manifest was written.
    #[error("{path}: digest is {found}, the manifest says {expected}")]
    Digest {
        /// Which file.
        path: PathBuf,
        /// The manifest's.
        expected: Digest,
        /// The file's.
        found: Digest,
    },
}

impl Manifest {
    /// Reads and checks a manifest; `path` is the file or the folder that has `model.toml`. The archive is not read:
    /// see [`Manifest::verify`].
    ///
    /// # Errors
    /// [`ManifestError`] that names the file or field.
    pub fn load(path: &Path) -> Result<Self, ManifestError> {
        let file = if path.is_dir() { path.join(FILE_NAME) } else { path.to_path_buf() };
        let io = |source| ManifestError::Io { path: file.clone(), source };
        if std::fs::metadata(&file).map_err(io)?.len() > MAX_BYTES {
            return Err(ManifestError::Parse {
                path: file,
                message: "is too large for a manifest".to_owned(),
            });
        }
        let text = std::fs::read_to_string(&file).map_err(io)?;
        Self::parse(&text, &file)
    }

    /// Reads and checks a manifest's text; `path` only appears in errors.
    ///
    /// # Errors
    /// [`ManifestError::Parse`] or [`ManifestError::Field`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, ManifestError> {
        let manifest: Self = toml::from_str(text)
            .map_err(|e| ManifestError::Parse { path: path.to_path_buf(), message: e.to_string() })?;
        manifest.validate()?;
        Ok(manifest)
    }

    /// Writes `model.toml` into a folder, all or nothing.
    ///
    /// # Errors
    /// [`ManifestError`] when it is not valid or cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), ManifestError> {
        self.validate()?;
        let path = folder.join(FILE_NAME);
        let text = toml::to_string(self)
            .map_err(|e| ManifestError::Parse { path: path.clone(), message: e.to_string() })?;
        let partial = folder.join(format!(".{FILE_NAME}.{}", std::process::id()));
        let io = |source| ManifestError::Io { path: path.clone(), source };
        let mut file = std::fs::File::create(&partial).map_err(io)?;
        let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
        written.and_then(|()| std::fs::rename(&partial, &path)).map_err(io)
    }

    /// The archive to load on a device and its digest: a variant for it, or the portable one.
    pub fn archive(&self, device: Device) -> (&Path, &Digest) {
        let variant = self.variants.iter().find(|v| v.device == device);
        variant.map_or((&self.file, &self.digest), |v| (&v.file, &v.digest))
    }

    /// The digest of what a device serves from `folder`: over the text of `model.toml`, which says how pixels become
    /// numbers and numbers become scores, and the digest of the archive that the device runs. Scores that differ never
    /// share one.
    ///
    /// # Errors
    /// [`ManifestError::Io`] when the manifest cannot be read.
    pub fn served_digest(&self, folder: &Path, device: Device) -> Result<Digest, ManifestError> {
        let path = folder.join(FILE_NAME);
        let mut text = std::fs::read(&path).map_err(|source| ManifestError::Io { path, source })?;
        text.push(b'\n');
        text.extend_from_slice(self.archive(device).1.to_string().as_bytes());
        Ok(Digest::of(&text))
    }

    /// Checks the digests of every archive in `folder`.
    ///
    /// # Errors
    /// [`ManifestError::Digest`] for another file, [`ManifestError::Io`] for none.
    pub fn verify(&self, folder: &Path) -> Result<(), ManifestError> {
        let own = std::iter::once((&self.file, &self.digest));
        for (file, expected) in own.chain(self.variants.iter().map(|v| (&v.file, &v.digest))) {
            let path = folder.join(file);
            let found =
                Digest::of_file(&path).map_err(|source| ManifestError::Io { path: path.clone(), source })?;
            if found != *expected {
                return Err(ManifestError::Digest { path, expected: *expected, found });
            }
        }
        Ok(())
    }
}
