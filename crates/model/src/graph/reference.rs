//! Runs a graph slowly and obviously: what rewrites, archives and libraries are compared with. Only compiled for tests.

use super::{Activation, Conv, Graph, NodeId, Op, Padding, Pool, Shape};

/// The graph's output for one picture, row-major NHWC; sums in f64. Panics on a picture or graph that does not fit.
pub fn run(graph: &Graph, picture: &[f32]) -> Vec<f32> {
    let mut values: Vec<Vec<f32>> = vec![picture.to_vec()];
    for (at, node) in graph.nodes().iter().enumerate().skip(1) {
        let reads: Vec<(&[f32], Shape)> =
            node.inputs.iter().map(|id| (values[id.0].as_slice(), graph.shape(*id))).collect();
        let result = step(&node.op, &reads, graph.shape(NodeId(at)));
        values.push(result);
    }
    values.pop().expect("the input is a value")
}

fn step(op: &Op, reads: &[(&[f32], Shape)], to: Shape) -> Vec<f32> {
    let (x, from) = reads[0];
    match op {
        Op::Input => x.to_vec(),
        Op::Rotate => {
            let Shape::Map { channels, .. } = from else { panic!("not a map") };
            x.chunks(channels).rev().flatten().copied().collect()
        }
        Op::Conv(conv) => {
            let mut y = convolve(conv, x, from, to);
            if let Some((other, _)) = reads.get(1) {
                y.iter_mut().zip(*other).for_each(|(y, o)| *y += o);
            }
            activated(conv.activation, y)
        }
        Op::Affine { scale, shift } => {
            x.iter().enumerate().map(|(i, v)| v * scale[i % scale.len()] + shift[i % shift.len()]).collect()
        }
        Op::Pad(p) => window(x, from, to, |map, y, x, c| {
            map(y as isize - p.top as isize, x as isize - p.left as isize, c).unwrap_or(0.0)
        }),
        Op::Activation(a) => activated(*a, x.to_vec()),
        Op::Add => x.iter().zip(reads[1].0).map(|(a, b)| a + b).collect(),
        Op::Concat => {
            let Shape::Map { height, width, .. } = to else { panic!("not a map") };
            let part = |cell: usize, (v, s): &(&[f32], Shape)| {
                let channels = s.values() / (height * width);
                v[cell * channels..(cell + 1) * channels].to_vec()
            };
            (0..height * width).flat_map(|cell| reads.iter().flat_map(move |r| part(cell, r))).collect()
        }
        Op::MaxPool(p) => pool(p, x, from, to, |cells| cells.iter().copied().fold(f32::MIN, f32::max)),
        Op::AvgPool(p) => pool(p, x, from, to, |cells| cells.iter().sum::<f32>() / cells.len() as f32),
        Op::GlobalAvgPool => {
            let Shape::Flat(channels) = to else { panic!("not flat") };
            let cells = x.len() / channels;
            (0..channels).map(|c| x.iter().skip(c).step_by(channels).sum::<f32>() / cells as f32).collect()
        }
        Op::Flatten => x.to_vec(),
        Op::Dense(d) => {
            let row = |o: usize| {
                d.weight[o * d.inputs..(o + 1) * d.inputs].iter().zip(x).map(|(w, v)| w * v).sum::<f32>()
                    + d.bias[o]
            };
            activated(d.activation, (0..d.outputs).map(row).collect())
        }
        Op::Softmax => {
            let sum: f32 = x.iter().map(|v| v.exp()).sum();
            x.iter().map(|v| v.exp() / sum).collect()
        }
    }
}

fn activated(activation: Activation, mut values: Vec<f32>) -> Vec<f32> {
    for v in &mut values {
        *v = match activation {
            Activation::None => *v,
            Activation::Relu => v.max(0.0),
            Activation::Relu6 => v.clamp(0.0, 6.0),
        };
    }
    values
}

/// Calls `cell(read, y, x, c)` for each value of a map; `read` gives the input there, or `None` outside.
fn window(
    x: &[f32],
    from: Shape,
    to: Shape,
    cell: impl Fn(&dyn Fn(isize, isize, usize) -> Option<f32>, usize, usize, usize) -> f32,
) -> Vec<f32> {
    let (
        Shape::Map { height, width, channels },
        Shape::Map { height: rows, width: columns, channels: outputs },
    ) = (from, to)
    else {
        panic!("not maps")
    };
    let read = |row: isize, column: isize, c: usize| {
        let inside = (0..height as isize).contains(&row) && (0..width as isize).contains(&column);
        inside.then(|| x[(row as usize * width + column as usize) * channels + c])
    };
    let mut result = Vec::with_capacity(rows * columns * outputs);
    for at in 0..rows * columns * outputs {
        result.push(cell(&read, at / outputs / columns, at / outputs % columns, at % outputs));
    }
    result
}

fn convolve(conv: &Conv, x: &[f32], from: Shape, to: Shape) -> Vec<f32> {
    let f = &conv.filter;
    let per_group = f.outputs / conv.groups;
    window(x, from, to, |read, row, column, output| {
        let mut sum = f64::from(conv.bias[output]);
        for at in 0..f.rows * f.columns * f.inputs {
            let (r, c, i) = (at / f.inputs / f.columns, at / f.inputs % f.columns, at % f.inputs);
            let y = (row * conv.stride[0] + r * conv.dilation[0]) as isize - conv.padding.top as isize;
            let x = (column * conv.stride[1] + c * conv.dilation[1]) as isize - conv.padding.left as isize;
            let value = read(y, x, output / per_group * f.inputs + i).unwrap_or(0.0);
            sum += f64::from(value) * f64::from(f.values[output * f.rows * f.columns * f.inputs + at]);
        }
        sum as f32
    })
}

fn pool(pool: &Pool, x: &[f32], from: Shape, to: Shape, end: impl Fn(&[f32]) -> f32) -> Vec<f32> {
    let Padding { top, left, .. } = pool.padding;
    window(x, from, to, |read, row, column, c| {
        let cell = |at: usize| {
            let y = row * pool.stride[0] + at / pool.window[1];
            let x = column * pool.stride[1] + at % pool.window[1];
            read(y as isize - top as isize, x as isize - left as isize, c)
        };
        let cells: Vec<f32> = (0..pool.window[0] * pool.window[1]).filter_map(cell).collect();
        end(&cells)
    })
}
