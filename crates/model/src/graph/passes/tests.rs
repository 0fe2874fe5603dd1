use super::*;
use crate::graph::reference::run;

/// Values that look random and are always the same.
fn noise(count: usize, salt: usize) -> Vec<f32> {
    (0..count).map(|i| ((i + salt * 97) * 7919 % 1000) as f32 / 500.0 - 1.0).collect()
}

fn conv(outputs: usize, kernel: usize, inputs: usize, groups: usize, stride: usize, padding: Padding) -> Op {
    Op::Conv(Conv {
        filter: Filter {
            outputs,
            rows: kernel,
            columns: kernel,
            inputs,
            values: noise(outputs * kernel * kernel * inputs, outputs + kernel),
        },
        bias: noise(outputs, 3),
        stride: [stride, stride],
        dilation: [1, 1],
        padding,
        groups,
        activation: Activation::None,
    })
}

fn affine(channels: usize) -> Op {
    Op::Affine { scale: noise(channels, 11), shift: noise(channels, 12) }
}

/// A small MobileNetV2: padded stem, inverted residual blocks with uneven padding, head.
fn small() -> Graph {
    let mut g = Graph::new("input", 16, 12, 3);
    let after = Padding { bottom: 1, right: 1, ..Padding::default() };
    let even = Padding { top: 1, bottom: 1, left: 1, right: 1 };
    let mut at = NodeId(0);
    let next = |g: &mut Graph, op: Op, from: &[NodeId]| g.push("n", op, from).unwrap();
    for op in [
        Op::Pad(after),
        conv(4, 3, 3, 1, 2, Padding::default()),
        affine(4),
        Op::Activation(Activation::Relu6),
    ] {
        at = next(&mut g, op, &[at]);
    }
    for op in [conv(8, 1, 4, 1, 1, Padding::default()), affine(8), Op::Activation(Activation::Relu6)] {
        at = next(&mut g, op, &[at]);
    }
    for op in [conv(8, 3, 1, 8, 2, after), affine(8), Op::Activation(Activation::Relu)] {
        at = next(&mut g, op, &[at]);
    }
    let before = at;
    for op in [conv(8, 3, 1, 8, 1, even), conv(8, 1, 8, 1, 1, Padding::default()), affine(8)] {
        at = next(&mut g, op, &[at]);
    }
    at = next(&mut g, Op::Add, &[before, at]);
    let mean = Op::AvgPool(Pool { window: [4, 3], stride: [4, 3], padding: Padding::default() });
    for op in [mean, Op::Flatten] {
        at = next(&mut g, op, &[at]);
    }
    let dense = crate::graph::Dense {
        outputs: 3,
        inputs: 8,
        weight: noise(24, 5),
        bias: noise(3, 6),
        activation: Activation::None,
    };
    for op in [Op::Dense(dense), Op::Softmax] {
        at = next(&mut g, op, &[at]);
    }
    g
}

fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn rewriting_keeps_the_numbers_whatever_the_padding_style() {
    let graph = small();
    let picture = noise(16 * 12 * 3, 1);
    let before = run(&graph, &picture);
    for style in [PaddingStyle::Rotate, PaddingStyle::Widen, PaddingStyle::Explicit] {
        let after = run(&optimise(&graph, style).unwrap(), &picture);
        assert!(largest_difference(&before, &after) < 1e-5, "{style:?}: {before:?} {after:?}");
    }
}

#[test]
fn everything_that_can_join_a_convolution_does() {
    let graph = optimise(&small(), PaddingStyle::Rotate).unwrap();
    let kinds: Vec<&str> = graph
        .nodes()
        .iter()
        .map(|n| match n.op {
            Op::Input => "input",
            Op::Rotate => "rotate",
            Op::Conv(_) if n.inputs.len() == 2 => "conv+residual",
            Op::Conv(_) => "conv",
            Op::GlobalAvgPool => "mean",
            Op::Dense(_) => "dense",
            Op::Softmax => "softmax",
            _ => "other",
        })
        .collect();
    assert_eq!(
        kinds,
        ["input", "rotate", "conv", "conv", "conv", "conv", "conv+residual", "mean", "dense", "softmax"]
    );
}

#[test]
fn a_normalisation_folds_into_the_convolution_before_it() {
    let mut graph = Graph::new("input", 5, 5, 2);
    let at = graph.push("conv", conv(3, 3, 2, 1, 1, Padding::default()), &[NodeId(0)]).unwrap();
    graph.push("norm", affine(3), &[at]).unwrap();
    let picture = noise(50, 2);
    let folded = optimise(&graph, PaddingStyle::Rotate).unwrap();
    assert_eq!(folded.nodes().len(), 2);
    assert!(largest_difference(&run(&graph, &picture), &run(&folded, &picture)) < 1e-5);
}

#[test]
fn a_convolution_that_is_read_twice_keeps_its_normalisation() {
    let mut graph = Graph::new("input", 4, 4, 2);
    let at = graph.push("conv", conv(2, 1, 2, 1, 1, Padding::default()), &[NodeId(0)]).unwrap();
    let norm = graph.push("norm", affine(2), &[at]).unwrap();
    graph.push("add", Op::Add, &[at, norm]).unwrap();
    let after = optimise(&graph, PaddingStyle::Rotate).unwrap();
    assert!(after.nodes().iter().any(|n| matches!(n.op, Op::Affine { .. })));
    let picture = noise(32, 4);
    assert!(largest_difference(&run(&graph, &picture), &run(&after, &picture)) < 1e-5);
}

#[test]
fn what_cannot_be_turned_is_widened() {
    // Flattening a map fixes the order of its cells.
    let mut graph = Graph::new("input", 4, 4, 1);
    let after = Padding { bottom: 1, right: 1, ..Padding::default() };
    let at = graph.push("conv", conv(2, 3, 1, 1, 2, after), &[NodeId(0)]).unwrap();
    graph.push("flatten", Op::Flatten, &[at]).unwrap();
    let rewritten = optimise(&graph, PaddingStyle::Rotate).unwrap();
    assert!(!rewritten.nodes().iter().any(|n| n.op == Op::Rotate));
    let picture = noise(16, 4);
    assert!(largest_difference(&run(&graph, &picture), &run(&rewritten, &picture)) < 1e-5);
}
