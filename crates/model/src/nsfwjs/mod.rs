//! Converts the models inside the npm package nsfwjs (MIT).
//!
//! The package carries each model as CommonJS bundles: `model.min.js` exports the topology, `group1-shardXofY.min.js`
//! the weights in base64. Nothing is executed: the literals are read ([`js`]), the weights widened from bytes
//! ([`weights`]) and the Keras layers ([`keras`]) turned into a [`Graph`].

mod import;
mod js;
mod keras;
mod package;
mod weights;

pub use import::{ImportError, import};
pub use package::{NPM_INTEGRITY, PACKAGE_FILE, PACKAGE_SHA256, Package};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use crate::graph::{Graph, GraphError};

/// Outputs of every model in the package, in order.
pub const CLASSES: [&str; 5] = ["Drawing", "Hentai", "Neutral", "Porn", "Sexy"];

/// A model of the package that can be converted.
///
/// There is a third one, `mobilenet_v2_mid` (MobileNetV2 with width 1.4): a frozen TensorFlow graph instead of Keras
/// layers, so it is not read here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Which {
    /// MobileNetV2, 224 pixels; nsfwjs's default.
    #[default]
    MobileNetV2,
    /// InceptionV3, 299 pixels; slower and better.
    InceptionV3,
}

impl Which {
    /// The folder under `package/dist/models`.
    pub fn folder(self) -> &'static str {
        match self {
            Self::MobileNetV2 => "mobilenet_v2",
            Self::InceptionV3 => "inception_v3",
        }
    }

    /// The name a manifest gives it.
    pub fn name(self) -> &'static str {
        match self {
            Self::MobileNetV2 => "nsfwjs-mobilenet-v2",
            Self::InceptionV3 => "nsfwjs-inception-v3",
        }
    }
}

impl Which {
    /// The largest difference of a score that two paths to it may show. Measured on the photographs of scikit-image
    /// 0.26.0: 3e-6 between kernels, 2.1e-4 (MobileNetV2) and 1.1e-5 (InceptionV3) from frames that travel as u16.
    pub fn tolerance(self) -> f64 {
        match self {
            Self::MobileNetV2 => 5e-4,
            Self::InceptionV3 => 1e-4,
        }
    }
}

/// Why a package cannot be converted.
#[derive(Debug, Error)]
pub enum ConvertError {
    /// The archive cannot be read.
    #[error("nsfwjs package: {0}")]
    Read(#[from] std::io::Error),
    /// The archive is not the one that was pinned.
    #[error("nsfwjs package: sha256 is {found}, expected {expected}")]
    Digest {
        /// What was pinned.
        expected: String,
        /// What was read.
        found: String,
    },
    /// A file is not in the archive.
    #[error("nsfwjs package: `{0}` is missing")]
    Missing(String),
    /// A file in the archive is larger than any model has it.
    #[error("nsfwjs package: `{0}` is too large")]
    TooLarge(String),
    /// A bundle is not the literal it should be.
    #[error("`{file}` at byte {at}: {problem}")]
    Bundle {
        /// The file.
        file: String,
        /// Offset of the trouble.
        at: usize,
        /// What it is.
        problem: String,
    },
    /// The description of the model as a whole does not fit.
    #[error("model topology: {0}")]
    Topology(String),
    /// One layer is not understood.
    #[error("layer `{layer}` ({kind}): {problem}")]
    Layer {
        /// Its name.
        layer: String,
        /// Its kind.
        kind: String,
        /// What is wrong.
        problem: String,
    },
    /// One tensor does not fit.
    #[error("weights `{tensor}`: {problem}")]
    Weights {
        /// Its name.
        tensor: String,
        /// What is wrong.
        problem: String,
    },
    /// Layers do not fit each other.
    #[error(transparent)]
    Graph(#[from] GraphError),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    model_topology: Value,
    weights_manifest: Vec<weights::Group>,
}

/// Reads a model of the package, as its author drew it: nothing folded yet (see [`crate::graph::optimise`]).
///
/// # Errors
/// [`ConvertError`] that names the file, layer or tensor that does not fit.
pub fn read(package: &Package, which: Which) -> Result<Graph, ConvertError> {
    let folder = which.folder();
    let value = js::exported(folder, package.text(&format!("{folder}/model.min.js"))?)?;
    let bundle: Bundle = serde_json::from_value(value).map_err(|e| ConvertError::Topology(e.to_string()))?;
    let mut weights = weights::Weights::default();
    for group in &bundle.weights_manifest {
        let mut bytes = Vec::new();
        for path in &group.paths {
            let file = format!("{folder}/{path}.min.js");
            let exported = js::exported(&file, package.text(&file)?)?;
            let bundle = |problem: String| ConvertError::Bundle { file: file.clone(), at: 0, problem };
            let text = exported.as_str().ok_or_else(|| bundle("does not export a string".to_owned()))?;
            STANDARD.decode_vec(text, &mut bytes).map_err(|e| bundle(e.to_string()))?;
        }
        weights.add(group, &bytes)?;
    }
    match bundle.model_topology.get("model_config") {
        Some(config) => keras::graph(config, &weights),
        None => Err(ConvertError::Topology("is not a Keras layer graph".to_owned())),
    }
}
