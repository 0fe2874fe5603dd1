//! Writes TorchScript archives without libtorch.
//!
//! An archive is a zip of Python-like source (`code/__torch__.py`), two pickles (`data.pkl`, the module object, and
//! `constants.pkl`, the tensors the source calls `CONSTANTS.cN`) and the tensors' raw bytes (`constants/N`). The format
//! is described in PyTorch's [serialization.md](https://github.com/pytorch/pytorch/blob/main/torch/csrc/jit/docs/serialization.md).
//! Weights are constants, so a module arrives as small as `torch.jit.freeze` would make it.
//!
//! `forward` takes `[batch, channels, height, width]` in f32, best with channels_last strides (which is what a
//! row-major NHWC buffer has), and returns `[batch, classes]`.

mod conv;
mod pickle;
mod source;
mod zip;

use thiserror::Error;

use crate::graph::{Graph, Op};
use pickle::Pickle;
use source::Tensor;

/// Which operators an archive uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Flavour {
    /// Plain `aten` operators: any device, any libtorch.
    #[default]
    Portable,
    /// oneDNN convolutions with activation and residual fused, weights reordered while loading: CPU only, x86-64 builds
    /// of libtorch. Quick kernels, but some 40 µs of set-up per call: best for few large layers.
    OneDnn,
    /// XNNPACK convolutions with the activation fused, weights packed while loading: CPU only. Next to no set-up per
    /// call: best for many small layers. A module must not run on two threads at once.
    Xnnpack,
}

impl Flavour {
    /// The flavour that was measured to be fastest on one CPU thread for graphs like this: XNNPACK where convolutions
    /// are depthwise (MobileNetV2: 1.5 times the portable form, oneDNN 1.2), oneDNN elsewhere (InceptionV3: 1.1; XNNPACK 0.95).
    pub fn fastest_on_cpu(graph: &Graph) -> Self {
        let depthwise = |op: &Op| matches!(op, Op::Conv(conv) if conv.groups > 1);
        if graph.nodes().iter().any(|node| depthwise(&node.op)) { Self::Xnnpack } else { Self::OneDnn }
    }
}

/// Why an archive cannot be written.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ArchiveError {
    /// Larger than a zip without 64-bit extensions can be.
    #[error("`{0}` does not fit a 4 GiB archive")]
    TooLarge(String),
    /// An operation that the flavour cannot print.
    #[error("layer `{layer}`: {problem}")]
    Layer {
        /// The layer's name.
        layer: String,
        /// What cannot be said.
        problem: String,
    },
}

/// The archive of `graph`, the same bytes for the same graph.
///
/// # Errors
/// [`ArchiveError::Layer`] for pooling with uneven padding, [`ArchiveError::TooLarge`] past 4 GiB.
pub fn write(graph: &Graph, flavour: Flavour) -> Result<Vec<u8>, ArchiveError> {
    let module = source::print(graph, flavour)?;
    let mut zip = zip::Zip::default();
    zip.add("model/data.pkl", &module_object(module.has_state))?;
    zip.add("model/byteorder", b"little")?;
    zip.add("model/code/__torch__.py", module.code.as_bytes())?;
    zip.add("model/constants.pkl", &constants(&module.tensors))?;
    for (key, tensor) in module.tensors.iter().enumerate() {
        let bytes: Vec<u8> = tensor.values.iter().flat_map(|value| value.to_le_bytes()).collect();
        zip.add(&format!("model/constants/{key}"), &bytes)?;
    }
    zip.add("model/version", b"3\n")?;
    zip.finish()
}

/// The object of class `__torch__.Model`: its attributes, or what its `__setstate__` takes.
fn module_object(has_state: bool) -> Vec<u8> {
    let mut pickle = Pickle::new();
    pickle.global("__torch__", "Model").empty_tuple().new_object();
    if has_state {
        pickle.tuple(|p| {
            p.bool(false);
        });
    } else {
        pickle.dict(|p| {
            p.text("training").bool(false);
        });
    }
    pickle.build();
    pickle.finish()
}

fn constants(tensors: &[Tensor]) -> Vec<u8> {
    let mut pickle = Pickle::new();
    pickle.tuple(|p| {
        for (key, tensor) in tensors.iter().enumerate() {
            p.tensor(key, &tensor.sizes, &tensor.strides);
        }
    });
    pickle.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Activation, GraphBuilder, Op, Padding, Pool};

    fn code(flavour: Flavour) -> String {
        let small = GraphBuilder::new(8, 8, 1).conv(4, 3, 2, Activation::Relu6).unwrap().residual().unwrap();
        source::print(&small.head(2).unwrap(), flavour).unwrap().code
    }

    #[test]
    fn the_portable_source_is_this() {
        let expected = "class Model(Module):
  __parameters__ = []
  __buffers__ = []
  training : bool
  def forward(self: __torch__.Model,
    v0: Tensor) -> Tensor:
    v1 = torch.hardtanh_(torch.conv2d(v0, CONSTANTS.c0, CONSTANTS.c1, [2, 2], [1, 1], [1, 1], 1), 0., 6.)
    v2 = torch.add_(torch.conv2d(v1, CONSTANTS.c2, CONSTANTS.c3, [1, 1], [0, 0], [1, 1], 1), v1)
    v3 = torch.mean(v2, [2, 3])
    v4 = torch.linear(v3, CONSTANTS.c4, CONSTANTS.c5)
    v5 = torch.softmax(v4, 1)
    return v5
";
        assert_eq!(code(Flavour::Portable), expected);
    }

    #[test]
    fn cpu_flavours_prepare_weights_while_loading() {
        let onednn = code(Flavour::OneDnn);
        assert!(onednn.contains(
            "self.w1 = ops.mkldnn._reorder_convolution_weight(CONSTANTS.c0, [1, 1], [2, 2], [1, 1], 1, [1, 3, 8, 8])"
        ));
        // The residual is what the convolution reads, so the sum must not be made in its place.
        assert!(onednn.contains("v2 = ops.mkldnn._convolution_pointwise(v1, v1, self.w2"));
        let xnnpack = code(Flavour::Xnnpack);
        assert!(xnnpack.contains("w1 : __torch__.torch.classes.xnnpack.Conv2dOpContext"));
        assert!(xnnpack.contains("v1 = ops.prepacked.conv2d_clamp_run(v0, self.w1)"));
    }

    #[test]
    fn the_same_graph_gives_the_same_archive() {
        let graph = || GraphBuilder::classifier(16, 16, 3, 7).unwrap().graph;
        assert_eq!(write(&graph(), Flavour::Portable).unwrap(), write(&graph(), Flavour::Portable).unwrap());
        let other = GraphBuilder::classifier(16, 16, 3, 8).unwrap().graph;
        assert_ne!(write(&graph(), Flavour::Portable).unwrap(), write(&other, Flavour::Portable).unwrap());
    }

    #[test]
    fn uneven_padding_that_no_rewrite_removed_is_an_error_with_the_layers_name() {
        let mut graph = crate::graph::Graph::new("input", 4, 4, 1);
        let padding = Padding { bottom: 1, ..Padding::default() };
        let pool = Pool { window: [2, 2], stride: [1, 1], padding };
        graph.push("pool", Op::MaxPool(pool), &[crate::graph::NodeId(0)]).unwrap();
        let error = write(&graph, Flavour::Portable).unwrap_err();
        assert_eq!(error.to_string(), "layer `pool`: its padding differs between two sides");
    }
}
