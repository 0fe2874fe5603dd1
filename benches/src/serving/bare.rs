//! The upper bound: threads that decode and run the model on frames in memory, and nothing else.

use std::{
    num::NonZeroUsize,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use anyhow::{Context, Result, anyhow};
use bytes::Bytes;
use sightline_benches::product::Scores;
use sightline_ingest::picture::{Limits, prepare};
use sightline_model::manifest::{self, Manifest};
use sightline_proto::classifier::InputSpec;
use sightline_torch::{Device, InputShape, Layout, Model, configure_worker_thread};

/// Threads with a model each, as many as the machine has cores.
pub(crate) struct Bare {
    workers: Vec<(SyncSender<Work>, Receiver<Result<Scores>>)>,
}

#[derive(Clone)]
struct Work {
    frames: Arc<Vec<Bytes>>,
    next: Arc<AtomicUsize>,
}

impl Bare {
    /// Loads the same file as the mesh on this machine; `input` is how ingest is told to prepare pixels.
    pub(crate) fn start(folder: &Path, input: &InputSpec) -> Result<Self> {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let mut workers = Vec::new();
        for _ in 0..cores {
            let (give, work) = sync_channel::<Work>(1);
            let (answer, answers) = sync_channel(1);
            let (folder, input) = (folder.to_owned(), *input);
            thread::Builder::new().name("bare".into()).spawn(move || {
                let mut worker = match Worker::new(&folder, input) {
                    Ok(worker) => worker,
                    Err(error) => return drop(answer.send(Err(error))),
                };
                answer.send(Ok(Scores::new())).ok();
                for work in work {
                    answer.send(worker.run(&work)).ok();
                }
            })?;
            workers.push((give, answers));
        }
        let bare = Self { workers };
        bare.collect()?;
        Ok(bare)
    }

    /// Classifies every frame and gives the scores in the frames' order.
    pub(crate) fn classify(&self, frames: &[Bytes]) -> Result<Scores> {
        let work = Work { frames: Arc::new(frames.to_vec()), next: Arc::default() };
        for (give, _) in &self.workers {
            give.send(work.clone()).map_err(|_| anyhow!("a thread of the bare loop ended"))?;
        }
        self.collect()
    }

    fn collect(&self) -> Result<Scores> {
        let mut all = Scores::new();
        for (_, answers) in &self.workers {
            all.extend(answers.recv().context("a thread of the bare loop ended")??);
        }
        Ok(all)
    }
}

struct Worker {
    model: Model,
    shape: InputShape,
    input: InputSpec,
    /// From a u16 of the wire to what the model takes.
    factor: f32,
}

impl Worker {
    fn new(folder: &Path, input: InputSpec) -> Result<Self> {
        configure_worker_thread(NonZeroUsize::MIN);
        let manifest = Manifest::load(folder)?;
        let (file, _) = manifest.archive(manifest::Device::Cpu);
        let (height, width) = (input.height as usize, input.width as usize);
        let shape = InputShape { batch: 1, height, width, channels: 3 };
        let mut model = Model::load(&folder.join(file), Device::Cpu)?;
        for _ in 0..3 {
            model.forward_with(shape, Layout::Nchw, |pixels| pixels.fill(0.5), &mut Vec::new())?;
        }
        Ok(Self { model, shape, input, factor: (manifest.input.scale / 257.0) as f32 })
    }

    fn run(&mut self, work: &Work) -> Result<Scores> {
        let limits = Limits { max_pixels: 1 << 20, max_side: 1 << 10 };
        let mut scores = Scores::new();
        loop {
            let at = work.next.fetch_add(1, Ordering::Relaxed);
            let Some(frame) = work.frames.get(at) else { return Ok(scores) };
            let pixels = prepare(frame, limits, &self.input)?;
            let mut output = Vec::new();
            let fill = |buffer: &mut [f32]| {
                for (value, two) in buffer.iter_mut().zip(pixels.as_chunks::<2>().0) {
                    *value = f32::from(u16::from_le_bytes(*two)) * self.factor;
                }
            };
            self.model.forward_with(self.shape, Layout::Nchw, fill, &mut output)?;
            scores.insert(at, output);
        }
    }
}
