//! A small graph of image-classifier layers: what converters produce, passes simplify and the archive writer prints.
//!
//! Nodes stand in execution order: a node only reads nodes before it. Activations are `[batch, height, width, channels]`
//! while a map, `[batch, features]` once flattened; the batch is never written down.

mod builder;
mod passes;
#[cfg(any(test, feature = "reference"))]
pub mod reference;
mod rotate;
mod shape;

pub use builder::{BuiltClassifier, GraphBuilder};
pub use passes::{PaddingStyle, optimise};
pub use shape::{Shape, conv_extent, same_padding};

use thiserror::Error;

/// Index of a [`Node`] in its [`Graph`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub usize);

/// A point-wise function that ends a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Activation {
    /// The identity.
    #[default]
    None,
    /// `max(x, 0)`.
    Relu,
    /// `min(max(x, 0), 6)`.
    Relu6,
}

/// Rows and columns added around a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Padding {
    /// Rows above.
    pub top: usize,
    /// Rows below.
    pub bottom: usize,
    /// Columns on the left.
    pub left: usize,
    /// Columns on the right.
    pub right: usize,
}

impl Padding {
    /// Whether both sides of each axis get the same.
    pub fn is_symmetric(&self) -> bool {
        self.top == self.bottom && self.left == self.right
    }

    /// Whether nothing is added.
    pub fn is_zero(&self) -> bool {
        *self == Self::default()
    }

    /// The sum of two paddings.
    pub fn plus(self, other: Self) -> Self {
        Self {
            top: self.top + other.top,
            bottom: self.bottom + other.bottom,
            left: self.left + other.left,
            right: self.right + other.right,
        }
    }
}

/// Convolution weights, stored output-major then row, column, input channel (OHWI): in torch's terms
/// `[outputs, inputs, rows, columns]` with channels_last strides.
#[derive(Debug, Clone, PartialEq)]
pub struct Filter {
    /// Output channels.
    pub outputs: usize,
    /// Kernel rows.
    pub rows: usize,
    /// Kernel columns.
    pub columns: usize,
    /// Input channels of one group.
    pub inputs: usize,
    /// `outputs * rows * columns * inputs` values.
    pub values: Vec<f32>,
}

/// A two-dimensional convolution with everything that was folded into it.
#[derive(Debug, Clone, PartialEq)]
pub struct Conv {
    /// The weights.
    pub filter: Filter,
    /// One value per output channel.
    pub bias: Vec<f32>,
    /// Rows, columns.
    pub stride: [usize; 2],
    /// Rows, columns.
    pub dilation: [usize; 2],
    /// Zeros around the input.
    pub padding: Padding,
    /// Channel groups; equal to the input channels in a depthwise convolution.
    pub groups: usize,
    /// Applied last, after the residual.
    pub activation: Activation,
}

/// A pooling window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pool {
    /// Rows, columns.
    pub window: [usize; 2],
    /// Rows, columns.
    pub stride: [usize; 2],
    /// Cells outside the map; they never count (not in the maximum, not in the mean's divisor).
    pub padding: Padding,
}

/// A matrix product with bias.
#[derive(Debug, Clone, PartialEq)]
pub struct Dense {
    /// Output features.
    pub outputs: usize,
    /// Input features.
    pub inputs: usize,
    /// `outputs` rows of `inputs` values.
    pub weight: Vec<f32>,
    /// One value per output.
    pub bias: Vec<f32>,
    /// Applied last.
    pub activation: Activation,
}

/// What a node computes.
#[derive(Debug, Clone, PartialEq)]
pub enum Op {
    /// The picture.
    Input,
    /// The picture turned by 180 degrees.
    Rotate,
    /// Convolution. A second input, if there is one, is added to the result before the activation.
    Conv(Conv),
    /// `x * scale[c] + shift[c]`: batch normalisation with fixed statistics.
    Affine {
        /// One factor per channel.
        scale: Vec<f32>,
        /// One summand per channel.
        shift: Vec<f32>,
    },
    /// Zeros around the map.
    Pad(Padding),
    /// A point-wise function.
    Activation(Activation),
    /// The sum of two equal shapes.
    Add,
    /// Maps joined along the channels.
    Concat,
    /// Largest value of each window.
    MaxPool(Pool),
    /// Mean of each window.
    AvgPool(Pool),
    /// Mean over the whole map; the result is flat.
    GlobalAvgPool,
    /// A map read as features: row, then column, then channel.
    Flatten,
    /// Matrix product.
    Dense(Dense),
    /// Exponentials that sum to one.
    Softmax,
}

/// One step.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// The layer's name where it came from, for messages.
    pub name: String,
    /// What it computes.
    pub op: Op,
    /// What it reads.
    pub inputs: Vec<NodeId>,
}

/// A classifier: one picture in, one vector out.
#[derive(Debug, Clone, PartialEq)]
pub struct Graph {
    /// In execution order; the first is [`Op::Input`].
    nodes: Vec<Node>,
    shapes: Vec<Shape>,
}

/// Why a graph cannot be built.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum GraphError {
    /// A layer does not fit what it reads.
    #[error("layer `{layer}`: {problem}")]
    Layer {
        /// The layer's name.
        layer: String,
        /// What does not fit.
        problem: String,
    },
}

impl Graph {
    /// A graph that so far only has its input, a map of the given shape.
    pub fn new(name: &str, height: usize, width: usize, channels: usize) -> Self {
        let node = Node { name: name.to_owned(), op: Op::Input, inputs: Vec::new() };
        Self { nodes: vec![node], shapes: vec![Shape::Map { height, width, channels }] }
    }

    /// Appends a node; its shape is worked out and checked.
    ///
    /// # Errors
    /// [`GraphError`] when the operation does not fit its inputs.
    pub fn push(&mut self, name: &str, op: Op, inputs: &[NodeId]) -> Result<NodeId, GraphError> {
        let fail = |problem: String| GraphError::Layer { layer: name.to_owned(), problem };
        let mut read = Vec::with_capacity(inputs.len());
        for id in inputs {
            read.push(
                *self
                    .shapes
                    .get(id.0)
                    .ok_or_else(|| fail(format!("reads node {} before it exists", id.0)))?,
            );
        }
        let shape = shape::infer(&op, &read).map_err(fail)?;
        self.nodes.push(Node { name: name.to_owned(), op, inputs: inputs.to_vec() });
        self.shapes.push(shape);
        Ok(NodeId(self.nodes.len() - 1))
    }

    /// The nodes, in execution order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// The shape of a node's result.
    pub fn shape(&self, id: NodeId) -> Shape {
        self.shapes[id.0]
    }

    /// The last node, whose result is the answer.
    pub fn output(&self) -> NodeId {
        NodeId(self.nodes.len() - 1)
    }

    /// The number of trained values.
    pub fn parameters(&self) -> usize {
        let count = |op: &Op| match op {
            Op::Conv(c) => c.filter.values.len() + c.bias.len(),
            Op::Affine { scale, shift } => scale.len() + shift.len(),
            Op::Dense(d) => d.weight.len() + d.bias.len(),
            _ => 0,
        };
        self.nodes.iter().map(|n| count(&n.op)).sum()
    }

    /// For each node, the nodes that read it.
    pub(crate) fn readers(&self) -> Vec<Vec<NodeId>> {
        let mut readers = vec![Vec::new(); self.nodes.len()];
        for (at, node) in self.nodes.iter().enumerate() {
            for input in &node.inputs {
                readers[input.0].push(NodeId(at));
            }
        }
        readers
    }
}
