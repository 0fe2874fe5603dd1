//! Turns a graph by 180 degrees, so that padding which TensorFlow puts after the map comes before it.

use super::{Conv, Graph, GraphError, NodeId, Op, Padding, PaddingStyle, Pool, Shape, conv_extent, optimise};

/// The turned graph; the same graph when nothing has uneven padding; widened kernels where turning would not be exact.
pub(super) fn rotated(graph: &Graph) -> Result<Graph, GraphError> {
    let uneven = |op: &Op| matches!(op, Op::Conv(conv) if !conv.padding.is_symmetric());
    if !graph.nodes().iter().any(|node| uneven(&node.op)) {
        return Ok(graph.clone());
    }
    turn(graph)?.map_or_else(|| optimise(graph, PaddingStyle::Widen), Ok)
}

/// `None` when some layer has no turned form.
fn turn(graph: &Graph) -> Result<Option<Graph>, GraphError> {
    let Shape::Map { height, width, channels } = graph.shape(NodeId(0)) else { return Ok(None) };
    let mut result = Graph::new(&graph.nodes()[0].name, height, width, channels);
    // Everything moves one place on, behind the node that turns the picture.
    let moved = |id: &NodeId| NodeId(id.0 + 1);
    result.push("rotate", Op::Rotate, &[NodeId(0)])?;
    for node in graph.nodes().iter().skip(1) {
        let inputs: Vec<NodeId> = node.inputs.iter().map(moved).collect();
        let from = graph.shape(node.inputs[0]);
        let op = match (&node.op, from) {
            (Op::Conv(conv), Shape::Map { height, width, .. }) => {
                turned_conv(conv, height, width).map(Op::Conv)
            }
            (Op::MaxPool(pool), Shape::Map { height, width, .. }) if fits(pool, height, width) => {
                Some(node.op.clone())
            }
            (Op::AvgPool(pool), Shape::Map { height, width, .. }) if fits(pool, height, width) => {
                Some(node.op.clone())
            }
            (Op::Pad(p), _) => {
                Some(Op::Pad(Padding { top: p.bottom, bottom: p.top, left: p.right, right: p.left }))
            }
            // The features of a map would come out in another order.
            (Op::Flatten, Shape::Map { .. }) | (Op::MaxPool(_) | Op::AvgPool(_), _) => None,
            (other, _) => Some(other.clone()),
        };
        let Some(op) = op else { return Ok(None) };
        result.push(&node.name, op, &inputs)?;
    }
    Ok(Some(result))
}

/// Whether the windows of evenly padded pooling lie the same way from both ends.
fn fits(pool: &Pool, height: usize, width: usize) -> bool {
    let even = |input: usize, axis: usize, pad: usize| {
        (input + 2 * pad).checked_sub(pool.window[axis]).is_some_and(|rest| rest % pool.stride[axis] == 0)
    };
    pool.padding.is_symmetric() && even(height, 0, pool.padding.top) && even(width, 1, pool.padding.left)
}

fn turned_conv(conv: &Conv, height: usize, width: usize) -> Option<Conv> {
    let f = &conv.filter;
    let Padding { top, bottom, left, right } = conv.padding;
    let rows = turned_axis(height, f.rows, conv.stride[0], conv.dilation[0], top, bottom)?;
    let columns = turned_axis(width, f.columns, conv.stride[1], conv.dilation[1], left, right)?;
    let mut turned = conv.clone();
    turned.padding = Padding { top: rows, bottom: rows, left: columns, right: columns };
    for (to, from) in turned.filter.values.chunks_exact_mut(f.inputs).zip(cells_backwards(conv)) {
        to.copy_from_slice(from);
    }
    Some(turned)
}

/// The input-channel vectors of each kernel, last cell first.
fn cells_backwards(conv: &Conv) -> impl Iterator<Item = &[f32]> {
    let f = &conv.filter;
    let cells = f.rows * f.columns;
    (0..f.outputs * cells).map(move |at| {
        let cell = at / cells * cells + (cells - 1 - at % cells);
        &f.values[cell * f.inputs..(cell + 1) * f.inputs]
    })
}

/// The padding to put on both sides of a turned axis, if that gives the same windows seen from the other end.
fn turned_axis(
    input: usize,
    kernel: usize,
    stride: usize,
    dilation: usize,
    before: usize,
    after: usize,
) -> Option<usize> {
    let reach = dilation * (kernel - 1) + 1;
    // A last window that ends before the padded map does would, from the other end, not be the first.
    if !(input + before + after).checked_sub(reach)?.is_multiple_of(stride) {
        return None;
    }
    let wanted = conv_extent(input, kernel, stride, dilation, before + after)?;
    (conv_extent(input, kernel, stride, dilation, 2 * after)? == wanted).then_some(after)
}
