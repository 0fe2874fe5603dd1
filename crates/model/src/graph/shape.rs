//! Shapes of activations and how operations change them.

use super::{Conv, Op, Padding, Pool};

/// The shape of one activation, without the batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// A map.
    Map {
        /// Rows.
        height: usize,
        /// Columns.
        width: usize,
        /// Values per cell.
        channels: usize,
    },
    /// A vector.
    Flat(usize),
}

impl Shape {
    /// The number of values.
    pub fn values(&self) -> usize {
        match *self {
            Self::Map { height, width, channels } => height * width * channels,
            Self::Flat(n) => n,
        }
    }
}

/// Output extent of a window that slides over `input` cells, or `None` when it does not fit once.
pub fn conv_extent(
    input: usize,
    kernel: usize,
    stride: usize,
    dilation: usize,
    padding: usize,
) -> Option<usize> {
    let reach = dilation.checked_mul(kernel.checked_sub(1)?)? + 1;
    Some((input + padding).checked_sub(reach)? / stride.max(1) + 1)
}

/// TensorFlow's `SAME` padding of one axis as (before, after): `ceil(input / stride)` outputs, the odd cell goes after.
pub fn same_padding(input: usize, kernel: usize, stride: usize, dilation: usize) -> (usize, usize) {
    let reach = dilation * kernel.saturating_sub(1) + 1;
    let outputs = input.div_ceil(stride.max(1));
    let total = (outputs.saturating_sub(1) * stride + reach).saturating_sub(input);
    (total / 2, total - total / 2)
}

/// The shape `op` gives from `inputs`, or what is wrong with them.
pub(super) fn infer(op: &Op, inputs: &[Shape]) -> Result<Shape, String> {
    match (op, inputs) {
        (Op::Conv(conv), [Shape::Map { height, width, channels }]) => {
            convolved(conv, *height, *width, *channels)
        }
        (Op::Conv(conv), [Shape::Map { height, width, channels }, residual]) => {
            let shape = convolved(conv, *height, *width, *channels)?;
            same(shape, *residual)
        }
        (Op::Affine { scale, shift }, [shape @ Shape::Map { channels, .. }]) => {
            let fits = scale.len() == *channels && shift.len() == *channels;
            fits.then_some(*shape)
                .ok_or_else(|| format!("has {} factors for {channels} channels", scale.len()))
        }
        (Op::Pad(p), [Shape::Map { height, width, channels }]) => Ok(Shape::Map {
            height: height + p.top + p.bottom,
            width: width + p.left + p.right,
            channels: *channels,
        }),
        (Op::Activation(_), [shape]) | (Op::Rotate, [shape @ Shape::Map { .. }]) => Ok(*shape),
        (Op::Add, [a, b]) => same(*a, *b),
        (Op::Concat, [Shape::Map { height, width, .. }, ..]) => joined(*height, *width, inputs),
        (Op::MaxPool(pool) | Op::AvgPool(pool), [Shape::Map { height, width, channels }]) => {
            pooled(pool, *height, *width, *channels)
        }
        (Op::GlobalAvgPool, [Shape::Map { channels, .. }]) => Ok(Shape::Flat(*channels)),
        (Op::Flatten, [shape]) => Ok(Shape::Flat(shape.values())),
        (Op::Dense(d), [Shape::Flat(n)]) => {
            let fits = d.inputs == *n && d.weight.len() == d.inputs * d.outputs && d.bias.len() == d.outputs;
            fits.then_some(Shape::Flat(d.outputs))
                .ok_or_else(|| format!("weight [{}, {}] does not fit {n} features", d.outputs, d.inputs))
        }
        (Op::Softmax, [shape @ Shape::Flat(_)]) => Ok(*shape),
        _ => Err(format!("cannot read {inputs:?}")),
    }
}

fn same(a: Shape, b: Shape) -> Result<Shape, String> {
    if a == b { Ok(a) } else { Err(format!("adds {a:?} and {b:?}")) }
}

fn convolved(conv: &Conv, height: usize, width: usize, channels: usize) -> Result<Shape, String> {
    let f = &conv.filter;
    if f.values.len() != f.outputs * f.rows * f.columns * f.inputs || conv.bias.len() != f.outputs {
        return Err("the weights' length differs from their shape".to_owned());
    }
    if conv.groups == 0 || f.inputs * conv.groups != channels || !f.outputs.is_multiple_of(conv.groups) {
        return Err(format!("{} inputs in {} groups do not fit {channels} channels", f.inputs, conv.groups));
    }
    let window = Window { kernel: [f.rows, f.columns], stride: conv.stride, dilation: conv.dilation };
    let (height, width) = window.slide(conv.padding, height, width)?;
    Ok(Shape::Map { height, width, channels: f.outputs })
}

fn pooled(pool: &Pool, height: usize, width: usize, channels: usize) -> Result<Shape, String> {
    let window = Window { kernel: pool.window, stride: pool.stride, dilation: [1, 1] };
    let (height, width) = window.slide(pool.padding, height, width)?;
    Ok(Shape::Map { height, width, channels })
}

struct Window {
    kernel: [usize; 2],
    stride: [usize; 2],
    dilation: [usize; 2],
}

impl Window {
    fn slide(&self, p: Padding, height: usize, width: usize) -> Result<(usize, usize), String> {
        let rows = conv_extent(height, self.kernel[0], self.stride[0], self.dilation[0], p.top + p.bottom);
        let columns = conv_extent(width, self.kernel[1], self.stride[1], self.dilation[1], p.left + p.right);
        rows.zip(columns)
            .ok_or_else(|| format!("a window of {:?} does not fit a {height}x{width} map", self.kernel))
    }
}

fn joined(height: usize, width: usize, inputs: &[Shape]) -> Result<Shape, String> {
    let mut sum = 0;
    for shape in inputs {
        match *shape {
            Shape::Map { height: h, width: w, channels } if (h, w) == (height, width) => sum += channels,
            other => return Err(format!("joins a {height}x{width} map and {other:?}")),
        }
    }
    Ok(Shape::Map { height, width, channels: sum })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_padding_puts_the_odd_cell_after() {
        assert_eq!(same_padding(224, 3, 2, 1), (0, 1));
        assert_eq!(same_padding(224, 3, 1, 1), (1, 1));
        assert_eq!(same_padding(225, 3, 2, 1), (1, 1));
        assert_eq!(same_padding(7, 1, 1, 1), (0, 0));
        assert_eq!(same_padding(35, 5, 1, 1), (2, 2));
    }

    #[test]
    fn a_window_larger_than_the_map_is_refused() {
        assert_eq!(conv_extent(4, 7, 1, 1, 0), None);
        assert_eq!(conv_extent(7, 7, 7, 1, 0), Some(1));
        assert_eq!(conv_extent(225, 3, 2, 1, 0), Some(112));
    }
}
