//! The threads that own a model. Started once, named, never a tokio worker: libtorch keeps state per thread.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    sync::{Arc, mpsc},
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use sightline_model::manifest::{Manifest, Output};
use tracing::{debug, error, warn};

use crate::{
    backend::{Backend, BackendError, Executor},
    error::{ClassifierError, StartError},
    events,
    pixels::{Scaling, softmax},
    queue::{Done, Entry, Queue},
    traces,
};

/// Batch sizes that the measurement at start tries.
const BATCH_SIZES: [usize; 6] = [1, 2, 4, 8, 16, 32];
/// Runs of each size; the fastest counts, because everything else on the machine only ever makes a run slower.
const CALIBRATION_RUNS: usize = 4;
/// A larger batch must cost at most this much more per tensor than the best: it also costs latency.
const WORTHWHILE: f64 = 1.02;

/// What every executor of a model shares.
pub(crate) struct Plan {
    pub(crate) manifest: Manifest,
    pub(crate) folder: std::path::PathBuf,
    /// "name@version".
    pub(crate) name: String,
    pub(crate) scaling: Scaling,
    pub(crate) queue: Arc<Queue>,
    pub(crate) backend: Arc<dyn Backend>,
}

/// Starts `count` executors; each has loaded and tried its model when this returns. Gives the threads and the
/// largest batch they take: `max_batch`, or when that is 0 the size the first executor measured as best. When one of
/// them cannot start, those before it have ended.
pub(crate) fn start(
    plan: &Arc<Plan>,
    count: usize,
    max_batch: usize,
) -> Result<(Vec<JoinHandle<()>>, usize), StartError> {
    let mut threads = Vec::with_capacity(count);
    let mut batch = max_batch;
    for index in 0..count {
        match start_one(plan, index, batch) {
            Ok((thread, size)) => {
                threads.push(thread);
                batch = size;
            }
            Err(error) => {
                plan.queue.close();
                threads.into_iter().for_each(|thread| drop(thread.join()));
                return Err(error);
            }
        }
    }
    Ok((threads, batch))
}

fn start_one(
    plan: &Arc<Plan>,
    index: usize,
    max_batch: usize,
) -> Result<(JoinHandle<()>, usize), StartError> {
    let (ready, started) = mpsc::sync_channel(1);
    let plan_here = Arc::clone(plan);
    let thread = thread::Builder::new().name(format!("executor-{index}")).spawn(move || {
        let mut worker = match Worker::new(plan_here, max_batch) {
            Ok(worker) => worker,
            Err(problem) => return drop(ready.send(Err(problem))),
        };
        if ready.send(Ok(worker.max_batch)).is_ok() {
            worker.run();
        }
    })?;
    let lost = || BackendError("the executor thread ended while it loaded the model".into());
    match started.recv().unwrap_or_else(|_| Err(lost())) {
        Ok(size) => Ok((thread, size)),
        Err(source) => {
            drop(thread.join());
            Err(StartError::Backend { model: plan.name.clone(), source })
        }
    }
}

struct Worker {
    plan: Arc<Plan>,
    executor: Box<dyn Executor>,
    max_batch: usize,
    output: Vec<f32>,
}

impl Worker {
    /// Loads the model on this thread, checks the shape of its answer and measures batch sizes where asked to.
    fn new(plan: Arc<Plan>, max_batch: usize) -> Result<Self, BackendError> {
        plan.backend.prepare_thread();
        let executor = plan.backend.load(&plan.manifest, Path::new(&plan.folder))?;
        let mut worker = Self { plan, executor, max_batch, output: Vec::new() };
        worker.measure(1)?;
        if max_batch == 0 {
            worker.max_batch = worker.calibrate()?;
        } else {
            worker.measure(max_batch)?;
        }
        Ok(worker)
    }

    fn calibrate(&mut self) -> Result<usize, BackendError> {
        let mut per_tensor = Vec::new();
        for size in BATCH_SIZES {
            let fastest = match self.fastest(size) {
                Ok(fastest) => fastest,
                // A device without the memory for this many, or a module of fixed sizes, serves what it can.
                Err(problem) if size > 1 => {
                    warn!(
                        model = self.plan.name,
                        size, "batches of this size fail and are not used: {problem}"
                    );
                    break;
                }
                Err(problem) => return Err(problem),
            };
            per_tensor.push((size, fastest.as_secs_f64() / size as f64));
            // On a CPU larger batches only lose: stop looking once they do.
            if per_tensor.len() > 2 && per_tensor[per_tensor.len() - 1].1 > per_tensor[0].1 * WORTHWHILE {
                break;
            }
        }
        let best = per_tensor.iter().map(|(_, cost)| *cost).fold(f64::MAX, f64::min);
        let chosen = per_tensor.iter().find(|(_, cost)| *cost <= best * WORTHWHILE);
        debug!(model = self.plan.name, ?per_tensor, "measured batch sizes");
        Ok(chosen.map_or(1, |(size, _)| *size))
    }

    fn fastest(&mut self, size: usize) -> Result<Duration, BackendError> {
        let mut fastest = Duration::MAX;
        for _ in 0..CALIBRATION_RUNS {
            fastest = fastest.min(self.measure(size)?);
        }
        Ok(fastest)
    }

    /// One run of grey pixels.
    fn measure(&mut self, size: usize) -> Result<Duration, BackendError> {
        let since = Instant::now();
        self.infer(size, &mut |pixels| pixels.fill(0.5))?;
        let took = since.elapsed();
        (0..size).try_for_each(|index| self.scores(index).map(drop))?;
        Ok(took)
    }

    fn run(&mut self) {
        while let Some(batch) = self.plan.queue.take(self.max_batch) {
            if !batch.is_empty() {
                self.classify(batch);
            }
        }
    }

    fn classify(&mut self, batch: Vec<Entry>) {
        let since = Instant::now();
        match self.attempt(&batch) {
            Err(problem) if batch.len() > 1 => self.one_by_one(batch, &problem),
            outcome => self.answer(batch, since, &outcome),
        }
    }

    /// Runs what waits in `batch`; the scores are left in `output`.
    fn attempt(&mut self, batch: &[Entry]) -> Result<(), BackendError> {
        let plan = Arc::clone(&self.plan);
        let mut fill = |values: &mut [f32]| {
            for (entry, values) in batch.iter().zip(values.chunks_exact_mut(plan.scaling.values())) {
                plan.scaling.write(&entry.pixels, values);
            }
        };
        let _spans = traces::run(batch);
        catch_unwind(AssertUnwindSafe(|| self.infer(batch.len(), &mut fill)))
            .unwrap_or_else(|_| Err(BackendError("the executor panicked".into())))
    }

    /// A batch failed as a whole: whatever made it fail must not cost the tensors beside it (P8).
    fn one_by_one(&mut self, batch: Vec<Entry>, problem: &BackendError) {
        let size = batch.len();
        warn!(model = self.plan.name, size, "a batch failed and is run again one by one: {problem}");
        for entry in batch {
            match entry.futile(tokio::time::Instant::now()) {
                Some(why) => (entry.reply)(Err(why)),
                None => self.classify(vec![entry]),
            }
        }
    }

    fn answer(&self, batch: Vec<Entry>, since: Instant, outcome: &Result<(), BackendError>) {
        let (size, inference) = (batch.len(), since.elapsed());
        if outcome.is_ok() {
            events::batch_run(&self.plan.name, size, inference);
        }
        for (index, entry) in batch.into_iter().enumerate() {
            let scores = outcome.clone().and_then(|()| self.scores(index)).map_err(|problem| {
                // Whose fault it is decides whether callers leave this replica.
                if !self.plan.scaling.in_range(&entry.pixels) {
                    return ClassifierError::PixelRange;
                }
                error!(model = self.plan.name, size, "a tensor could not be classified: {problem}");
                ClassifierError::from(problem)
            });
            (entry.reply)(scores.map(|scores| Done {
                scores,
                queued: since.saturating_duration_since(entry.since),
                inference,
                batch_size: size,
            }));
        }
    }

    /// Runs what `fill` writes; leaves as many rows in `output` as there are images.
    fn infer(&mut self, size: usize, fill: &mut dyn FnMut(&mut [f32])) -> Result<(), BackendError> {
        let classes = self.plan.manifest.classes.len();
        self.executor.run(size, fill, &mut self.output)?;
        if self.output.len() != size * classes {
            return Err(BackendError(format!(
                "the module gives {} values for {size} images where model.toml names {classes} classes",
                self.output.len()
            )));
        }
        Ok(())
    }

    /// One row of `output` as probabilities, or why it cannot be: each row is checked by itself (P8).
    fn scores(&self, index: usize) -> Result<Vec<f32>, BackendError> {
        let classes = self.plan.manifest.classes.len();
        let mut scores = self.output[index * classes..][..classes].to_vec();
        if scores.iter().any(|value| !value.is_finite()) {
            return Err(BackendError("the module gives values that are not finite".into()));
        }
        if self.plan.manifest.output == Output::Logits {
            softmax(&mut scores, classes);
        }
        Ok(scores)
    }
}
