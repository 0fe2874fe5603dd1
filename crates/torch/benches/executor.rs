//! What libtorch's graph-executor settings cost or give, and what one call of a trivial model costs.
//!
//! `cargo bench -p sightline-torch`. CPU time of the calling thread, not wall time: it hardly changes when the
//! machine has other work. Each setting is a ratio against libtorch's own defaults, measured in the same run.
#![allow(unsafe_code, reason = "reads the thread's CPU clock")]
#![allow(clippy::print_stdout, reason = "a benchmark's result is its output")]

use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use sightline_torch::{Device, InputShape, Layout, Model, configure_worker_thread};
use tch::{CModule, Kind, Tensor};

/// The best of so many is steady to 2 %; of 5, to 5 %.
const ROUNDS: usize = 10;
const CPU: (Kind, tch::Device) = (Kind::Float, tch::Device::Cpu);

#[derive(Clone, Copy)]
struct Settings {
    name: &'static str,
    profiling: bool,
    optimize: bool,
    fuser: bool,
}

const SETTINGS: [Settings; 5] = [
    Settings { name: "libtorch's defaults", profiling: true, optimize: true, fuser: true },
    Settings { name: "no tensor-expression fuser", profiling: true, optimize: true, fuser: false },
    Settings { name: "no profiling", profiling: false, optimize: true, fuser: true },
    Settings { name: "no profiling, no fuser", profiling: false, optimize: true, fuser: false },
    Settings { name: "ours: no optimization", profiling: true, optimize: false, fuser: true },
];

fn main() {
    let folder = tempfile::tempdir().expect("a bench needs a temporary folder");
    let conv = folder.path().join("conv.pt");
    let trivial = folder.path().join("trivial.pt");
    let _no_grad = tch::no_grad_guard();
    let side = 224;
    let image = Tensor::rand([1, 3, side, side], CPU);
    // Made in a run before the trace, the weights are constants of the module: frozen. Made in it, the making
    // would be a part of the module.
    let mut weights = Vec::new();
    let _ = mobilenet_like(&image, &mut |sizes| {
        weights.push(random_weight(sizes));
        weights[weights.len() - 1].shallow_clone()
    });
    save(&conv, &image, |x| {
        let mut made = weights.iter();
        mobilenet_like(x, &mut |_| made.next().expect("as many as before").shallow_clone())
    });
    save(&trivial, &Tensor::rand([1, 3, 2, 2], CPU), |x| {
        x.sum_dim_intlist([2_i64, 3].as_slice(), false, Kind::Float)
    });

    let image = |batch, side| InputShape { batch, height: side, width: side, channels: 3 };
    compare("MobileNetV2-like, 224², batch 1", &conv, image(1, 224), 12);
    compare("MobileNetV2-like, 224², batch 4", &conv, image(4, 224), 3);
    compare("one reduction over 12 values: the cost of a call", &trivial, image(1, 2), 20_000);
    first_calls(&conv, image(1, 224));
    copy(&trivial, image(1, 224));
}

/// Runs the settings in turn, several rounds, and prints for each the best round's CPU time of a call.
fn compare(title: &str, path: &Path, shape: InputShape, calls: usize) {
    let mut best = [Duration::MAX; SETTINGS.len()];
    let mut first = [Duration::MAX; SETTINGS.len()];
    for round in 0..ROUNDS {
        for turn in 0..SETTINGS.len() {
            let index = (round + turn) % SETTINGS.len(); // no setting always goes first
            let (warm_up, steady) = in_own_thread(SETTINGS[index], path, shape, calls);
            best[index] = best[index].min(steady);
            first[index] = first[index].min(warm_up);
        }
    }
    println!(
        "\n{title}\n{:<28} {:>12} {:>8} {:>22}",
        "setting", "CPU a call", "ratio", "first 3 calls and load"
    );
    for (index, settings) in SETTINGS.iter().enumerate() {
        let ratio = best[index].as_secs_f64() / best[0].as_secs_f64();
        println!("{:<28} {:>12.2?} {ratio:>8.3} {:>22.2?}", settings.name, best[index], first[index]);
    }
}

/// What each of the first calls costs, the best of the rounds: a plan made anew shows.
fn first_calls(path: &Path, shape: InputShape) {
    println!("\nCPU of the first calls, MobileNetV2-like, 224², batch 1");
    let compared = [SETTINGS[0], SETTINGS[4]];
    let mut best = [[Duration::MAX; 5]; 2];
    for round in 0..ROUNDS {
        for turn in 0..compared.len() {
            let index = (round + turn) % compared.len();
            let calls = std::thread::scope(|scope| {
                let worker = scope.spawn(|| five_calls(compared[index], path, shape));
                worker.join().expect("the worker does not panic")
            });
            for (best, call) in best[index].iter_mut().zip(calls) {
                *best = call.min(*best);
            }
        }
    }
    for (settings, best) in compared.iter().zip(best) {
        println!("{:<28} {best:.2?}", settings.name);
    }
}

fn five_calls(settings: Settings, path: &Path, shape: InputShape) -> [Duration; 5] {
    apply(settings);
    let mut model = Model::load(path, Device::Cpu).expect("a module saved just now");
    let mut output = Vec::new();
    [(); 5].map(|()| {
        let start = thread_cpu_time();
        model.forward_with(shape, Layout::Nchw, |x| x.fill(0.5), &mut output).expect("a good module");
        thread_cpu_time() - start
    })
}

/// What [`Model::forward`] costs more than writing into the model's buffer.
fn copy(path: &Path, shape: InputShape) {
    const CALLS: u32 = 500;
    configure_worker_thread(NonZeroUsize::MIN);
    let mut model = Model::load(path, Device::Cpu).expect("a module saved just now");
    let input = vec![0.5; shape.values().expect("a small shape")];
    let mut output = Vec::new();
    let (mut copied, mut in_place) = (Duration::MAX, Duration::MAX);
    for _ in 0..2 * ROUNDS {
        let start = thread_cpu_time();
        for _ in 0..CALLS {
            model.forward(&input, shape, Layout::Nchw, &mut output).expect("a good module");
        }
        copied = copied.min((thread_cpu_time() - start) / CALLS);
        let start = thread_cpu_time();
        for _ in 0..CALLS {
            model.forward_with(shape, Layout::Nchw, |_| {}, &mut output).expect("a good module");
        }
        in_place = in_place.min((thread_cpu_time() - start) / CALLS);
    }
    println!("\ncopying a 224² image: {:.2?} of CPU", copied.saturating_sub(in_place));
}

fn apply(settings: Settings) {
    configure_worker_thread(NonZeroUsize::MIN);
    tch::jit::set_profiling_mode(settings.profiling);
    tch::jit::set_graph_executor_optimize(settings.optimize);
    tch::jit::set_tensor_expr_fuser_enabled(settings.fuser);
}

fn in_own_thread(settings: Settings, path: &Path, shape: InputShape, calls: usize) -> (Duration, Duration) {
    std::thread::scope(|scope| {
        let worker = scope.spawn(move || {
            apply(settings);
            let input = vec![0.5; shape.values().expect("a small shape")];
            let mut output = Vec::new();
            let start = thread_cpu_time();
            let mut model = Model::load(path, Device::Cpu).expect("a module saved just now");
            let mut run = |times: usize| {
                for _ in 0..times {
                    model.forward(&input, shape, Layout::Nchw, &mut output).expect("a module that runs");
                }
            };
            run(3);
            let warm_up = thread_cpu_time() - start;
            run(calls / 4 + 1);
            let start = thread_cpu_time();
            run(calls);
            (warm_up, (thread_cpu_time() - start) / u32::try_from(calls).expect("few calls"))
        });
        worker.join().expect("the worker does not panic")
    })
}

/// CPU time of this thread.
fn thread_cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is a valid place for the answer.
    let status = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(status, 0, "every Linux has this clock");
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

fn save(path: &Path, example: &Tensor, forward: impl Fn(&Tensor) -> Tensor) {
    let inputs = [example.shallow_clone()];
    let module =
        CModule::create_by_tracing("M", "forward", &inputs, &mut |x: &[Tensor]| vec![forward(&x[0])]);
    module.expect("an operator that can be traced").save(path).expect("a writable folder");
}

/// Where the layers get their weights, by shape, in order.
type Weights<'a> = &'a mut dyn FnMut([i64; 4]) -> Tensor;

/// The layers of MobileNetV2 at width 1, batch norm folded, ReLU6 as a clamp in place, weights
/// `channels_last`: what our converter writes.
fn mobilenet_like(image: &Tensor, weight: Weights<'_>) -> Tensor {
    // expansion, channels out, repeats, stride of the first
    const STAGES: [(i64, i64, usize, i64); 7] = [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ];
    let relu6 = |mut x: Tensor| x.clamp_(0.0, 6.0);
    let mut x = relu6(conv(image, 32, 3, 2, 1, weight));
    for (expansion, out, repeats, first_stride) in STAGES {
        for repeat in 0..repeats {
            let channels = x.size()[1];
            let stride = if repeat == 0 { first_stride } else { 1 };
            let wide = channels * expansion;
            let expanded =
                if expansion == 1 { x.shallow_clone() } else { relu6(conv(&x, wide, 1, 1, 1, weight)) };
            let deep = relu6(conv(&expanded, wide, 3, stride, wide, weight));
            let narrow = conv(&deep, out, 1, 1, 1, weight);
            x = if stride == 1 && channels == out { x + narrow } else { narrow };
        }
    }
    let wide = relu6(conv(&x, 1280, 1, 1, 1, weight));
    let pooled = wide.mean_dim([2_i64, 3].as_slice(), true, Kind::Float);
    conv(&pooled, 5, 1, 1, 1, weight).flatten(1, -1).softmax(-1, Kind::Float)
}

fn conv(x: &Tensor, out: i64, kernel: i64, stride: i64, groups: i64, weight: Weights<'_>) -> Tensor {
    let weight = weight([out, x.size()[1] / groups, kernel, kernel]);
    let pad = kernel / 2;
    x.conv2d(&weight, None::<Tensor>, [stride, stride], [pad, pad], [1, 1], groups)
}

/// He-initialised, `channels_last`.
fn random_weight([out, fan_in, height, width]: [i64; 4]) -> Tensor {
    let scale = (2.0 / (fan_in * height * width) as f64).sqrt();
    (Tensor::randn([out, height, width, fan_in], CPU) * scale).permute([0, 3, 1, 2])
}
