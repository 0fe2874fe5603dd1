//! What comes out of good modules.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use sightline_torch::{Device, Layout, Model, OutputShape, TorchError};
use support::{Modules, counting, shape};

/// Means over the pixels of each channel, reckoned here from NHWC values.
fn means(values: &[f32], batch: usize, pixels: usize, channels: usize) -> Vec<f32> {
    let mut means = vec![0.0; batch * channels];
    for (index, value) in values.iter().enumerate() {
        let image = index / (pixels * channels);
        means[image * channels + index % channels] += value / pixels as f32;
    }
    means
}

fn assert_close(got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(expected) {
        assert!((got - expected).abs() <= 1e-4 * expected.abs().max(1.0), "{got} is not {expected}");
    }
}

#[test]
fn an_nchw_module_sees_the_channels_of_an_nhwc_buffer() {
    let modules = Modules::new();
    let mut model = Model::load(&modules.channel_means(), Device::Cpu).unwrap();
    let mut output = Vec::new();
    // Batches of one and images of one channel are where strides are ambiguous.
    for (batch, height, width, channels) in [(1, 4, 5, 3), (2, 4, 5, 3), (7, 1, 1, 3), (3, 2, 9, 1)] {
        let shape = shape(batch, height, width, channels);
        let input = counting(shape);
        let got = model.forward(&input, shape, Layout::Nchw, &mut output).unwrap();
        assert_eq!(got, OutputShape { rows: batch, columns: channels });
        assert_close(&output, &means(&input, batch, height * width, channels));
    }
}

#[test]
fn an_nhwc_module_sees_the_buffer_as_it_is() {
    let modules = Modules::new();
    let mut model = Model::load(&modules.row_maxima(), Device::Cpu).unwrap();
    let shape = shape(2, 4, 5, 3);
    let mut output = Vec::new();
    let got = model.forward(&counting(shape), shape, Layout::Nhwc, &mut output).unwrap();
    assert_eq!(got, OutputShape { rows: 2, columns: 4 });
    assert_eq!(output, [14.0, 29.0, 44.0, 59.0, 74.0, 89.0, 104.0, 119.0]);
}

#[test]
fn a_smaller_batch_after_a_larger_one_holds_nothing_of_it() {
    let modules = Modules::new();
    let mut model = Model::load(&modules.channel_means(), Device::Cpu).unwrap();
    let (large, small) = (shape(8, 6, 6, 3), shape(1, 2, 2, 3));
    let mut output = Vec::new();
    model.forward(&counting(large), large, Layout::Nchw, &mut output).unwrap();
    model.forward(&counting(small), small, Layout::Nchw, &mut output).unwrap();
    assert_close(&output, &means(&counting(small), 1, 4, 3));
}

#[test]
fn filling_the_buffer_in_place_gives_the_same_answer() {
    let modules = Modules::new();
    let mut model = Model::load(&modules.channel_means(), Device::Cpu).unwrap();
    let shape = shape(2, 3, 3, 3);
    let (mut copied, mut filled) = (Vec::new(), Vec::new());
    let input = counting(shape);
    model.forward(&input, shape, Layout::Nchw, &mut copied).unwrap();
    model.forward_with(shape, Layout::Nchw, |buffer| buffer.copy_from_slice(&input), &mut filled).unwrap();
    assert_eq!(copied, filled);
}

#[test]
fn a_module_that_writes_into_its_input_does_not_touch_the_callers() {
    let modules = Modules::new();
    let path = modules.scripted(
        "in_place",
        "-> Tensor:\n    y = torch.clamp_(x, -1., 1.)\n    return torch.reshape(y, [torch.size(x, 0), -1])",
    );
    let mut model = Model::load(&path, Device::Cpu).unwrap();
    let (shape, mut output) = (shape(1, 2, 2, 1), Vec::new());
    let input = [5.0, -5.0, 0.5, 7.0];
    for _ in 0..3 {
        model.forward(&input, shape, Layout::Nchw, &mut output).unwrap();
        assert_eq!(output, [1.0, -1.0, 0.5, 1.0]);
    }
    assert_eq!(input, [5.0, -5.0, 0.5, 7.0]);
}

#[test]
fn half_and_double_answers_come_back_as_f32() {
    let modules = Modules::new();
    for (name, kind) in [("half", 5), ("double", 7), ("bfloat16", 15)] {
        let body = format!("-> Tensor:\n    return torch.to(torch.reshape(x, [1, -1]), {kind})");
        let mut model = Model::load(&modules.scripted(name, &body), Device::Cpu).unwrap();
        let mut output = Vec::new();
        model.forward(&[0.5, 2.0], shape(1, 1, 2, 1), Layout::Nchw, &mut output).unwrap();
        assert_eq!(output, [0.5, 2.0], "{name}");
    }
}

#[test]
fn a_model_moves_to_another_thread() {
    let modules = Modules::new();
    let mut model = Model::load(&modules.channel_means(), Device::Cpu).unwrap();
    let shape = shape(1, 2, 2, 3);
    let run = move || {
        sightline_torch::configure_worker_thread(std::num::NonZeroUsize::MIN);
        let mut output = Vec::new();
        model.forward(&counting(shape), shape, Layout::Nchw, &mut output).map(|_| output)
    };
    let output: Result<Vec<f32>, TorchError> = std::thread::spawn(run).join().unwrap();
    assert_close(&output.unwrap(), &[4.5, 5.5, 6.5]);
}
