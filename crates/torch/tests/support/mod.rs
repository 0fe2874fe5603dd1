//! Small TorchScript modules, made on the spot.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use sightline_torch::InputShape;
use tch::{CModule, Device, Kind, Tensor};
use tempfile::TempDir;
use zip::{ZipArchive, ZipWriter, write::SimpleFileOptions};

/// A folder of modules that vanishes with the test.
pub struct Modules {
    folder: TempDir,
}

impl Modules {
    pub fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Saves what `forward` does to `example`.
    pub fn traced(
        &self,
        name: &str,
        example: &Tensor,
        mut forward: impl FnMut(&Tensor) -> Tensor,
    ) -> PathBuf {
        let _no_grad = tch::no_grad_guard();
        let inputs = [example.shallow_clone()];
        let mut closure = |inputs: &[Tensor]| vec![forward(&inputs[0])];
        let module = CModule::create_by_tracing("M", "forward", &inputs, &mut closure).unwrap();
        let path = self.path(&format!("{name}.pt"));
        module.save(&path).unwrap();
        path
    }

    /// The mean of each channel: NCHW in, `[batch, channels]` out.
    pub fn channel_means(&self) -> PathBuf {
        let example = Tensor::zeros([2, 3, 4, 5], (Kind::Float, Device::Cpu));
        self.traced("channel_means", &example, |x| x.mean_dim([2_i64, 3].as_slice(), false, Kind::Float))
    }

    /// The brightest value of each row of pixels: NHWC in, `[batch, height]` out.
    pub fn row_maxima(&self) -> PathBuf {
        let example = Tensor::zeros([2, 4, 5, 3], (Kind::Float, Device::Cpu));
        self.traced("row_maxima", &example, |x| x.amax([2_i64, 3].as_slice(), false))
    }

    /// A module whose `forward` is this TorchScript, such as `-> Tensor:\n    return x`.
    ///
    /// tch cannot compile TorchScript, but the saved form of a module holds its source: this swaps it.
    pub fn scripted(&self, name: &str, signature_and_body: &str) -> PathBuf {
        let example = Tensor::zeros([1, 1, 1, 1], (Kind::Float, Device::Cpu));
        let donor = self.traced(&format!("{name}_donor"), &example, |x| x + 1.0);
        let source = format!(
            "class M(Module):\n  __parameters__ = []\n  __buffers__ = []\n  \
             def forward(self: __torch__.M,\n    x: Tensor) {signature_and_body}\n"
        );
        let path = self.path(&format!("{name}.pt"));
        replace_source(&donor, &path, &source);
        path
    }
}

fn replace_source(from: &Path, to: &Path, source: &str) {
    let mut archive = ZipArchive::new(File::open(from).unwrap()).unwrap();
    let mut writer = ZipWriter::new(File::create(to).unwrap());
    let stored = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for index in 0..archive.len() {
        let mut member = archive.by_index(index).unwrap();
        let name = member.name().unwrap().into_owned();
        let mut content = Vec::new();
        member.read_to_end(&mut content).unwrap();
        if name.ends_with(".debug_pkl") {
            continue; // speaks of the old source
        }
        if name.ends_with("code/__torch__.py") {
            content = source.as_bytes().to_vec();
        }
        writer.start_file(name, stored).unwrap();
        writer.write_all(&content).unwrap();
    }
    writer.finish().unwrap();
}

/// 0, 1, 2, …: every value differs, so that a wrong order shows.
pub fn counting(shape: InputShape) -> Vec<f32> {
    (0..shape.values().unwrap()).map(|value| value as f32).collect()
}

pub fn shape(batch: usize, height: usize, width: usize, channels: usize) -> InputShape {
    InputShape { batch, height, width, channels }
}

/// Resident bytes of this process.
pub fn resident_bytes() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    statm.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() * 4096
}
