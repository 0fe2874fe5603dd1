//! Memory stays flat. Alone in its process, since it reads the process's size.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use sightline_torch::{Device, Layout, Model};
use support::{Modules, counting, resident_bytes, shape};

const RUNS: usize = 10_000;
const ALLOWED_GROWTH: usize = 4 << 20;

#[test]
fn ten_thousand_forwards_and_as_many_failures_leave_memory_where_it_was() {
    let modules = Modules::new();
    let mut good = Model::load(&modules.channel_means(), Device::Cpu).unwrap();
    let mut bad =
        Model::load(&modules.scripted("tuple", "-> Tuple[Tensor, Tensor]:\n    return (x, x)"), Device::Cpu)
            .unwrap();
    let shapes = [shape(1, 32, 32, 3), shape(4, 32, 32, 3), shape(8, 32, 32, 3)];
    let inputs = shapes.map(counting);
    let mut output = Vec::new();
    let mut run = |times: usize| {
        for turn in 0..times {
            let which = turn % shapes.len();
            good.forward(&inputs[which], shapes[which], Layout::Nchw, &mut output).unwrap();
            bad.forward(&inputs[which], shapes[which], Layout::Nchw, &mut output).unwrap_err();
        }
    };
    run(RUNS / 10);
    let before = resident_bytes();
    run(RUNS);
    let growth = resident_bytes().saturating_sub(before);
    println!("{growth} bytes more after {RUNS} runs");
    assert!(growth < ALLOWED_GROWTH, "{growth} bytes more after {RUNS} runs");
}
