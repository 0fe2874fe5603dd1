//! Prints a graph as the Python-like source of a TorchScript class.

use std::fmt::Write as _;

use super::{ArchiveError, Flavour};
use crate::graph::{Activation, Dense, Graph, Node, NodeId, Op, Padding, Pool, Shape};

/// A constant of the module.
#[derive(Debug)]
pub(super) struct Tensor {
    pub sizes: Vec<usize>,
    pub strides: Vec<usize>,
    pub values: Vec<f32>,
}

/// A printed module.
#[derive(Debug)]
pub(super) struct Module {
    pub code: String,
    pub tensors: Vec<Tensor>,
    /// Whether the class has `__setstate__`.
    pub has_state: bool,
}

/// Prints `graph`.
pub(super) fn print(graph: &Graph, flavour: Flavour) -> Result<Module, ArchiveError> {
    let mut printer = Printer {
        graph,
        flavour,
        last_reads: graph.readers().into_iter().map(|readers| readers.into_iter().max()).collect(),
        tensors: Vec::new(),
        attributes: String::new(),
        load: String::new(),
        forward: String::new(),
    };
    for (at, node) in graph.nodes().iter().enumerate().skip(1) {
        printer.node(NodeId(at), node)?;
    }
    Ok(printer.finish())
}

/// Collects the parts of a class while it is printed.
pub(super) struct Printer<'a> {
    pub graph: &'a Graph,
    pub flavour: Flavour,
    /// For each node, the last node that reads it.
    pub last_reads: Vec<Option<NodeId>>,
    tensors: Vec<Tensor>,
    /// Declarations of what `__setstate__` makes.
    pub attributes: String,
    /// The body of `__setstate__`.
    pub load: String,
    forward: String,
}

impl Printer<'_> {
    fn finish(self) -> Module {
        let has_state = !self.load.is_empty();
        let mut code = String::from(
            "class Model(Module):\n  __parameters__ = []\n  __buffers__ = []\n  training : bool\n",
        );
        code.push_str(&self.attributes);
        code.push_str("  def forward(self: __torch__.Model,\n    v0: Tensor) -> Tensor:\n");
        code.push_str(&self.forward);
        let _ = writeln!(code, "    return v{}", self.graph.output().0);
        if has_state {
            code.push_str(
                "  def __getstate__(self: __torch__.Model) -> Tuple[bool]:\n    return (self.training,)\n",
            );
            code.push_str(
                "  def __setstate__(self: __torch__.Model,\n    state: Tuple[bool]) -> NoneType:\n",
            );
            code.push_str("    self.training = (state)[0]\n");
            code.push_str(&self.load);
            code.push_str("    return None\n");
        }
        Module { code, tensors: self.tensors, has_state }
    }

    fn node(&mut self, id: NodeId, node: &Node) -> Result<(), ArchiveError> {
        let reads: Vec<String> = node.inputs.iter().map(|input| format!("v{}", input.0)).collect();
        let first = reads.first().cloned().unwrap_or_default();
        let pool = |pool: &Pool| even(node, pool.padding).map(|p| (pool.window, pool.stride, p));
        let value = match &node.op {
            Op::Input => return Ok(()),
            Op::Conv(conv) => self.conv(id, node, conv)?,
            Op::Affine { scale, shift } => {
                let scale = self.constant(
                    &[1, scale.len(), 1, 1],
                    &[scale.len(), 1, scale.len(), scale.len()],
                    scale,
                );
                let shift = self.constant(
                    &[1, shift.len(), 1, 1],
                    &[shift.len(), 1, shift.len(), shift.len()],
                    shift,
                );
                format!("torch.add(torch.mul({first}, {scale}), {shift})")
            }
            Op::Pad(p) => {
                format!(
                    "torch.constant_pad_nd({first}, [{}, {}, {}, {}], 0)",
                    p.left, p.right, p.top, p.bottom
                )
            }
            Op::Rotate => format!("torch.flip({first}, [2, 3])"),
            Op::Activation(Activation::None) => first,
            Op::Activation(Activation::Relu) => format!("torch.relu({first})"),
            Op::Activation(Activation::Relu6) => format!("torch.hardtanh({first}, 0., 6.)"),
            Op::Add => format!("torch.add({})", reads.join(", ")),
            Op::Concat => format!("torch.cat([{}], 1)", reads.join(", ")),
            Op::MaxPool(p) => {
                let (window, stride, padding) = pool(p)?;
                format!("torch.max_pool2d({first}, {window:?}, {stride:?}, {padding:?}, [1, 1], False)")
            }
            Op::AvgPool(p) => {
                let (window, stride, padding) = pool(p)?;
                format!("torch.avg_pool2d({first}, {window:?}, {stride:?}, {padding:?}, False, False, None)")
            }
            Op::GlobalAvgPool => format!("torch.mean({first}, [2, 3])"),
            // Features count channels fastest, whatever the strides are.
            Op::Flatten => match self.graph.shape(node.inputs[0]) {
                Shape::Flat(_) => first,
                Shape::Map { .. } => format!(
                    "torch.reshape(torch.permute({first}, [0, 2, 3, 1]), [-1, {}])",
                    self.graph.shape(id).values()
                ),
            },
            Op::Dense(dense) => self.dense(dense, &first),
            Op::Softmax => format!("torch.softmax({first}, 1)"),
        };
        self.line(id, &value);
        Ok(())
    }

    fn line(&mut self, id: NodeId, value: &str) {
        let _ = writeln!(self.forward, "    v{} = {value}", id.0);
    }

    /// Adds a constant and names it.
    pub fn constant(&mut self, sizes: &[usize], strides: &[usize], values: &[f32]) -> String {
        self.tensors.push(Tensor {
            sizes: sizes.to_vec(),
            strides: strides.to_vec(),
            values: values.to_vec(),
        });
        format!("CONSTANTS.c{}", self.tensors.len() - 1)
    }

    pub fn vector(&mut self, values: &[f32]) -> String {
        self.constant(&[values.len()], &[1], values)
    }

    fn dense(&mut self, dense: &Dense, from: &str) -> String {
        let weight = self.constant(&[dense.outputs, dense.inputs], &[dense.inputs, 1], &dense.weight);
        let bias = self.vector(&dense.bias);
        in_place(dense.activation, format!("torch.linear({from}, {weight}, {bias})"))
    }
}

/// A fresh value with an activation applied where it lies.
pub(super) fn in_place(activation: Activation, value: String) -> String {
    match activation {
        Activation::None => value,
        Activation::Relu => format!("torch.relu_({value})"),
        Activation::Relu6 => format!("torch.hardtanh_({value}, 0., 6.)"),
    }
}

/// Padding as torch takes it: one number for both sides of an axis.
pub(super) fn even(node: &Node, padding: Padding) -> Result<[usize; 2], ArchiveError> {
    if padding.is_symmetric() {
        return Ok([padding.top, padding.left]);
    }
    Err(ArchiveError::Layer {
        layer: node.name.clone(),
        problem: "its padding differs between two sides".to_owned(),
    })
}
