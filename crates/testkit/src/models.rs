//! Models made in the test: real TorchScript, a fraction of a millisecond per image.

use std::path::{Path, PathBuf};

use sightline_model::{
    graph::{Activation, Graph, GraphBuilder},
    manifest::{
        Class, Colour, Corners, Digest, Fit, Input, Layout, Manifest, Output, Resize, Role, SCHEMA, Transport,
    },
    torchscript::{Flavour, write},
};

/// What a small model looks like.
#[derive(Debug, Clone)]
pub struct Small {
    /// Its name.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
    /// Width and height of the input.
    pub side: u32,
    /// Names and roles of the classes.
    pub classes: Vec<(&'static str, Role)>,
    /// Gives other weights.
    pub seed: u64,
    /// Outputs of the module, when it is to differ from the number of classes.
    pub outputs: Option<usize>,
    /// More layers, which only take time: 38 million multiplications each at the default size, 1 to 2 ms of a core.
    pub work: usize,
}

impl Default for Small {
    fn default() -> Self {
        Self {
            name: "small",
            version: "1",
            side: 32,
            classes: vec![
                ("safe", Role::Safe),
                ("suggestive", Role::Suggestive),
                ("explicit", Role::Explicit),
            ],
            seed: 7,
            outputs: None,
            work: 0,
        }
    }
}

impl Small {
    /// The layers.
    pub fn graph(&self) -> Graph {
        let (side, outputs) = (self.side as usize, self.outputs.unwrap_or(self.classes.len()));
        if self.work == 0 {
            return GraphBuilder::classifier(side, side, outputs, self.seed).unwrap().graph;
        }
        let layers = 0..=self.work;
        let builder = layers.fold(GraphBuilder::new(side, side, self.seed), |builder, _| {
            builder.conv(64, 3, 1, Activation::Relu6).unwrap()
        });
        builder.head(outputs).unwrap()
    }

    /// Writes `model.pt` and `model.toml` into `parent/<name>` and gives that folder.
    pub fn write(&self, parent: &Path) -> PathBuf {
        let folder = parent.join(self.name);
        std::fs::create_dir_all(&folder).unwrap();
        let bytes = write(&self.graph(), Flavour::Portable).unwrap();
        std::fs::write(folder.join("model.pt"), &bytes).unwrap();
        self.manifest(Digest::of(&bytes)).save(&folder).unwrap();
        folder
    }

    fn manifest(&self, digest: Digest) -> Manifest {
        Manifest {
            schema: SCHEMA,
            name: self.name.into(),
            version: self.version.into(),
            file: "model.pt".into(),
            digest,
            output: Output::Probabilities,
            tolerance: 1e-4,
            license: "Apache-2.0".into(),
            source: "made in a test".into(),
            classes: self
                .classes
                .iter()
                .map(|(name, role)| Class { name: (*name).into(), role: *role })
                .collect(),
            input: Input {
                width: self.side,
                height: self.side,
                channels: 3,
                colour: Colour::Rgb,
                layout: Layout::Nchw,
                scale: 1.0 / 255.0,
                mean: vec![0.0; 3],
                std: vec![1.0; 3],
                resize: Resize::Bilinear,
                corners: Corners::HalfPixel,
                antialias: false,
                fit: Fit::Stretch,
                transport: Transport::U8,
            },
            variants: vec![],
        }
    }
}
