//! Rewrites that make a graph cheaper without changing what it computes.
//!
//! In order: normalisation and explicit zeros are folded into the convolution next to them, activations and residual
//! sums join the layer they follow, a mean over a whole map becomes [`Op::GlobalAvgPool`], and padding that differs
//! between the two sides of an axis, which torch's convolutions do not know, is made symmetric or explicit.

use super::{Activation, Conv, Filter, Graph, GraphError, Node, NodeId, Op, Padding, Pool, Shape, rotate};

/// What to do with a convolution whose padding differs between two sides of an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PaddingStyle {
    /// Turn the whole graph by 180 degrees (the picture and every kernel), so that padding below and on the right comes
    /// to lie above and on the left; there the symmetric padding that torch knows gives the same windows, because the
    /// last one that would reach below does not fit any more. Falls back to [`PaddingStyle::Widen`] when some layer
    /// would not come out the same.
    #[default]
    Rotate,
    /// Grow the kernel by zeros on the side with less padding, so that both sides get the larger one: more products
    /// (16 instead of 9 for a 3x3 kernel), but no copy of the map.
    Widen,
    /// A separate node that copies the map into a larger one.
    Explicit,
}

/// Applies every rewrite.
///
/// # Errors
/// [`GraphError`] only when the graph was inconsistent to begin with.
pub fn optimise(graph: &Graph, style: PaddingStyle) -> Result<Graph, GraphError> {
    let mut work = Work::new(graph);
    while work.step() {}
    let done = work.finish(style)?;
    if style == PaddingStyle::Rotate { rotate::rotated(&done) } else { Ok(done) }
}

/// A graph under rewriting: nodes are replaced in place or redirected to another, and dropped at the end.
struct Work {
    nodes: Vec<Node>,
    shapes: Vec<Shape>,
    /// Where a dropped node's readers look instead.
    moved: Vec<Option<NodeId>>,
}

impl Work {
    fn new(graph: &Graph) -> Self {
        Self {
            nodes: graph.nodes.clone(),
            shapes: graph.shapes.clone(),
            moved: vec![None; graph.nodes.len()],
        }
    }

    /// The number of readers of each live node; the last node counts as read once more by the caller.
    fn reads(&self) -> Vec<usize> {
        let mut reads = vec![0; self.nodes.len()];
        for (_, node) in self.nodes.iter().enumerate().filter(|(at, _)| self.moved[*at].is_none()) {
            for input in &node.inputs {
                reads[input.0] += 1;
            }
        }
        if let Some(last) = (0..self.nodes.len()).rev().find(|at| self.moved[*at].is_none()) {
            reads[last] += 1;
        }
        reads
    }

    /// Makes one change, the first that applies; false when none does.
    fn step(&mut self) -> bool {
        let reads = self.reads();
        for at in 0..self.nodes.len() {
            if self.moved[at].is_some() {
                continue;
            }
            let sole = |id: NodeId| reads[id.0] == 1;
            let node = &self.nodes[at];
            let changed = match (&node.op, node.inputs.as_slice()) {
                (Op::Affine { .. }, [from]) if sole(*from) => self.fold_affine(at, *from),
                (Op::Conv(_), [from, ..]) if sole(*from) => self.fold_pad(at, *from),
                (Op::Activation(a), [from]) if sole(*from) => self.fuse_activation(at, *from, *a),
                (Op::Add, [a, b]) => self.fuse_residual(at, *a, *b, &reads),
                (Op::AvgPool(pool), [from]) => self.widen_mean(at, *from, *pool),
                (Op::Flatten, [from]) if matches!(self.shapes[from.0], Shape::Flat(_)) => {
                    self.drop_node(at, *from)
                }
                _ => false,
            };
            if changed {
                return true;
            }
        }
        false
    }

    /// Removes node `at`; its readers read `to`.
    fn drop_node(&mut self, at: usize, to: NodeId) -> bool {
        self.moved[at] = Some(to);
        for node in &mut self.nodes {
            for input in &mut node.inputs {
                if input.0 == at {
                    *input = to;
                }
            }
        }
        self.shapes[to.0] = self.shapes[at];
        true
    }

    fn fold_affine(&mut self, at: usize, from: NodeId) -> bool {
        let Op::Affine { scale, shift } = self.nodes[at].op.clone() else { return false };
        let Node { op: Op::Conv(conv), inputs, .. } = &mut self.nodes[from.0] else { return false };
        if conv.activation != Activation::None || inputs.len() != 1 {
            return false;
        }
        let per_output = conv.filter.values.len() / conv.filter.outputs.max(1);
        for (row, factor) in conv.filter.values.chunks_exact_mut(per_output.max(1)).zip(&scale) {
            row.iter_mut().for_each(|value| *value *= factor);
        }
        for ((bias, factor), add) in conv.bias.iter_mut().zip(&scale).zip(&shift) {
            *bias = *bias * factor + add;
        }
        self.drop_node(at, from)
    }

    fn fold_pad(&mut self, at: usize, from: NodeId) -> bool {
        let Op::Pad(padding) = self.nodes[from.0].op else { return false };
        let Some(&source) = self.nodes[from.0].inputs.first() else { return false };
        let Node { op: Op::Conv(conv), inputs, .. } = &mut self.nodes[at] else { return false };
        conv.padding = conv.padding.plus(padding);
        inputs[0] = source;
        self.moved[from.0] = Some(source);
        true
    }

    fn fuse_activation(&mut self, at: usize, from: NodeId, activation: Activation) -> bool {
        let slot = match &mut self.nodes[from.0].op {
            Op::Conv(conv) => &mut conv.activation,
            Op::Dense(dense) => &mut dense.activation,
            _ => return false,
        };
        if *slot != Activation::None {
            return false;
        }
        *slot = activation;
        self.drop_node(at, from)
    }

    /// `a + conv(x)` becomes a convolution with a residual, in the place of the sum, so that `a` exists by then.
    fn fuse_residual(&mut self, at: usize, a: NodeId, b: NodeId, reads: &[usize]) -> bool {
        for (conv_at, other) in [(b, a), (a, b)] {
            let node = &self.nodes[conv_at.0];
            let Op::Conv(conv) = &node.op else { continue };
            if conv_at == other
                || reads[conv_at.0] != 1
                || conv.activation != Activation::None
                || node.inputs.len() != 1
            {
                continue;
            }
            let fused =
                Node { name: node.name.clone(), op: node.op.clone(), inputs: vec![node.inputs[0], other] };
            self.moved[conv_at.0] = Some(NodeId(at));
            self.nodes[at] = fused;
            return true;
        }
        false
    }

    fn widen_mean(&mut self, at: usize, from: NodeId, pool: Pool) -> bool {
        let Shape::Map { height, width, .. } = self.shapes[from.0] else { return false };
        let Shape::Map { height: rows, width: columns, channels } = self.shapes[at] else { return false };
        let covers = pool.padding.is_zero() && pool.window == [height, width] && (rows, columns) == (1, 1);
        // A map of one cell stays a map for its other readers: only a following Flatten makes the two alike.
        let flat = self
            .nodes
            .iter()
            .enumerate()
            .filter(|(i, n)| self.moved[*i].is_none() && n.inputs.contains(&NodeId(at)));
        if !covers || !flat.into_iter().all(|(_, n)| n.op == Op::Flatten) {
            return false;
        }
        self.nodes[at].op = Op::GlobalAvgPool;
        self.shapes[at] = Shape::Flat(channels);
        true
    }

    /// Rebuilds the graph from the nodes that are left.
    fn finish(self, style: PaddingStyle) -> Result<Graph, GraphError> {
        let Some(Shape::Map { height, width, channels }) = self.shapes.first().copied() else {
            return Err(GraphError::Layer { layer: "input".to_owned(), problem: "is not a map".to_owned() });
        };
        let mut graph = Graph::new(&self.nodes[0].name, height, width, channels);
        let mut placed = vec![NodeId(0); self.nodes.len()];
        for (at, node) in self.nodes.into_iter().enumerate().skip(1) {
            if self.moved[at].is_some() {
                continue;
            }
            let mut inputs: Vec<NodeId> = node.inputs.iter().map(|id| placed[id.0]).collect();
            let op = match node.op {
                Op::Conv(conv) if !conv.padding.is_symmetric() => match style {
                    // With dilation a row of zeros would move the kernel by several rows.
                    PaddingStyle::Widen if conv.dilation == [1, 1] => Op::Conv(widened(conv)),
                    PaddingStyle::Rotate => Op::Conv(conv),
                    PaddingStyle::Widen | PaddingStyle::Explicit => {
                        let pad =
                            graph.push(&format!("{}_pad", node.name), Op::Pad(conv.padding), &inputs[..1])?;
                        inputs[0] = pad;
                        Op::Conv(Conv { padding: Padding::default(), ..conv })
                    }
                },
                other => other,
            };
            placed[at] = graph.push(&node.name, op, &inputs)?;
        }
        Ok(graph)
    }
}

/// The same convolution with symmetric padding and a kernel that has zeros on the sides that now see more of it.
fn widened(conv: Conv) -> Conv {
    let Padding { top, bottom, left, right } = conv.padding;
    let (rows, columns) = (top.max(bottom), left.max(right));
    let (above, below) = (rows - top, rows - bottom);
    let (before, after) = (columns - left, columns - right);
    let f = &conv.filter;
    let (tall, wide) = (f.rows + above + below, f.columns + before + after);
    let mut values = vec![0.0; f.outputs * tall * wide * f.inputs];
    for output in 0..f.outputs {
        for row in 0..f.rows {
            let from = (output * f.rows + row) * f.columns * f.inputs;
            let to = ((output * tall + row + above) * wide + before) * f.inputs;
            let length = f.columns * f.inputs;
            values[to..to + length].copy_from_slice(&f.values[from..from + length]);
        }
    }
    let filter = Filter { rows: tall, columns: wide, values, ..conv.filter };
    Conv { filter, padding: Padding { top: rows, bottom: rows, left: columns, right: columns }, ..conv }
}

#[cfg(test)]
mod tests;
