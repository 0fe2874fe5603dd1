//! Archives written without libtorch, loaded and run by libtorch.

use std::{num::NonZeroUsize, path::Path};

use sightline_model::{
    graph::{Activation, Graph, GraphBuilder, reference},
    manifest::{self, Manifest},
    torchscript::{self, Flavour},
};
use sightline_testkit::setup;
use sightline_torch::{Device, InputShape, Layout, Model, configure_worker_thread};

use crate::support::{Scores, difference, expected, samples};

const FLAVOURS: [Flavour; 3] = [Flavour::Portable, Flavour::OneDnn, Flavour::Xnnpack];

fn load(folder: &Path, graph: &Graph, flavour: Flavour) -> Model {
    let path = folder.join(format!("{flavour:?}.pt"));
    std::fs::write(&path, torchscript::write(graph, flavour).unwrap()).unwrap();
    Model::load(&path, Device::Cpu).unwrap()
}

/// The scores of each picture.
fn run(model: &mut Model, pixels: &[f32], shape: InputShape) -> Vec<Vec<f32>> {
    let mut output = Vec::new();
    let answer = model.forward(pixels, shape, Layout::Nchw, &mut output).unwrap();
    assert_eq!(answer.rows, shape.batch);
    output.chunks(answer.columns).map(<[f32]>::to_vec).collect()
}

/// Pictures in rows, values in 0..1 that differ from picture to picture.
fn pictures(shape: InputShape) -> Vec<f32> {
    (0..shape.values().unwrap()).map(|at| (at * 7919 % 1009) as f32 / 1009.0).collect()
}

fn assert_close(one: &[f32], other: &[f32], tolerance: f32, what: &str) {
    assert_eq!(one.len(), other.len(), "{what}");
    let difference = one.iter().zip(other).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(difference < tolerance, "{what}: {one:?} and {other:?} differ by {difference}");
}

#[test]
fn every_flavour_computes_what_the_layers_say_at_every_batch_size() {
    let plain = GraphBuilder::classifier(32, 48, 5, 1).unwrap().graph;
    let blocks = GraphBuilder::new(24, 24, 2)
        .conv(8, 3, 2, Activation::Relu6)
        .and_then(|builder| builder.depthwise(3, 1, Activation::Relu6))
        .and_then(GraphBuilder::residual)
        .and_then(|builder| builder.conv(16, 1, 1, Activation::Relu))
        .and_then(GraphBuilder::residual)
        .and_then(|builder| builder.head(7))
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    for (name, graph, height, width) in [("plain", &plain, 32, 48), ("blocks", &blocks, 24, 24)] {
        let pixels = pictures(InputShape { batch: 4, height, width, channels: 3 });
        let picture = height * width * 3;
        let expected: Vec<_> = pixels.chunks(picture).map(|pixels| reference::run(graph, pixels)).collect();
        for flavour in FLAVOURS {
            let mut model = load(folder.path(), graph, flavour);
            // Back to one at the end: the plan for larger batches must not leak into smaller ones.
            for batch in [1, 2, 4, 1] {
                let shape = InputShape { batch, height, width, channels: 3 };
                // Three times: without `configure_worker_thread` the executor runs differently as it learns shapes.
                for _ in 0..3 {
                    let scores = run(&mut model, &pixels[..batch * picture], shape);
                    for (scores, expected) in scores.iter().zip(&expected) {
                        assert_close(scores, expected, 1e-5, &format!("{name} {flavour:?} batch {batch}"));
                    }
                }
            }
        }
    }
}

#[test]
fn two_workers_with_modules_of_their_own_agree() {
    let graph = GraphBuilder::classifier(64, 64, 5, 3).unwrap().graph;
    let folder = tempfile::tempdir().unwrap();
    let work = || {
        configure_worker_thread(NonZeroUsize::MIN);
        let mut model = Model::load(&folder.path().join("Xnnpack.pt"), Device::Cpu).unwrap();
        let shape = |index: usize| InputShape { batch: 1 + index % 2, height: 64, width: 64, channels: 3 };
        (0..50).map(|index| run(&mut model, &pictures(shape(index)), shape(index))).collect::<Vec<_>>()
    };
    drop(load(folder.path(), &graph, Flavour::Xnnpack));
    let [one, other] =
        std::thread::scope(|scope| [(); 2].map(|()| scope.spawn(work)).map(|worker| worker.join().unwrap()));
    assert_eq!(one, other);
}

/// Bilinear with aligned corners, divided by 255: what nsfwjs does to a picture, in full precision.
fn resized(path: &Path, side: usize) -> Vec<f32> {
    let image = image::open(path).unwrap().to_rgb8();
    let (width, height) = (image.width() as usize, image.height() as usize);
    let pixel = |y: usize, x: usize, c: usize| f32::from(image.as_raw()[(y * width + x) * 3 + c]) / 255.0;
    let place = |at: usize, from: usize| {
        let exact = (from - 1) as f32 / (side - 1) as f32 * at as f32;
        (exact.floor() as usize, (exact.ceil() as usize).min(from - 1), exact.fract())
    };
    let value = |at: usize| {
        let (c, (y0, y1, ty), (x0, x1, tx)) =
            (at % 3, place(at / 3 / side, height), place(at / 3 % side, width));
        let top = pixel(y0, x0, c) + (pixel(y0, x1, c) - pixel(y0, x0, c)) * tx;
        let bottom = pixel(y1, x0, c) + (pixel(y1, x1, c) - pixel(y1, x0, c)) * tx;
        top + (bottom - top) * ty
    };
    (0..side * side * 3).map(value).collect()
}

#[test]
fn both_archives_of_the_default_model_score_as_nsfwjs_does() {
    let (Some(folder), Some(photos)) = (setup::model(), samples()) else { return };
    let manifest = Manifest::load(&folder).unwrap();
    manifest.verify(&folder).unwrap();
    let side = manifest.input.width as usize;
    let shape = InputShape { batch: 1, height: side, width: side, channels: 3 };
    for device in [manifest::Device::Cpu, manifest::Device::Cuda] {
        // The archive for CUDA is the portable one, which runs here too.
        let mut model = Model::load(&folder.join(manifest.archive(device).0), Device::Cpu).unwrap();
        for name in ["astronaut.png", "coffee.png"] {
            let output = run(&mut model, &resized(&photos.join(name), side), shape).remove(0);
            let classes = manifest.classes.iter().map(|class| class.name.clone());
            let scores: Scores = classes.zip(output.into_iter().map(f64::from)).collect();
            let difference = difference(&scores, &expected(name));
            assert!(difference < 2e-5, "{name} for {device:?}: {scores:?} is off by {difference}");
        }
    }
}
