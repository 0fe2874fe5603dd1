//! Counts in a SQLite file: write-ahead log, one thread that writes with group commit, a few that read.
//!
//! - Exactly once: an id and the rollup it counts in are written in the same transaction (`writer`).
//! - An acknowledged batch is in the log before it is answered; what it survives is the setting `stats.durability`.
//! - Nothing here blocks a tokio worker: threads work, and answer by oneshot.

mod open;
mod reader;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    thread::{self, JoinHandle},
};

pub use open::OpenError;
use sightline_telemetry::child_span;
use tokio::sync::{Semaphore, oneshot};
use tracing::{Instrument, error};

use self::{
    open::Location,
    reader::Job,
    writer::{Batch, Command, Grouping, Writer},
};
use super::{Event, Hour, Page, Pruned, Query, Recorded, Store, StoreError};
use crate::{config::StatsConfig, events};

/// See the module.
#[derive(Debug)]
pub struct SqliteStore {
    commands: Queue<Command>,
    jobs: Queue<Job>,
    /// One permit per event that may wait.
    waiting: Arc<Semaphore>,
    queue_events: usize,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl SqliteStore {
    /// Opens or creates the database and starts the threads. A relative path is under `data_dir`.
    ///
    /// # Errors
    /// [`OpenError`].
    pub async fn open(config: &StatsConfig, data_dir: &Path) -> Result<Self, OpenError> {
        let location = Location::new(&config.database, data_dir);
        let config = config.clone();
        tokio::task::spawn_blocking(move || Self::open_blocking(&config, &location))
            .await
            .expect("opening is neither cancelled nor does it panic")
    }

    fn open_blocking(config: &StatsConfig, location: &Location) -> Result<Self, OpenError> {
        let writer = Writer::new(
            open::writer(location, config)?,
            Grouping { max_events: config.commit_max_events, max_wait: config.commit_max_wait.0 },
        );
        let readers =
            (0..config.query_threads).map(|_| open::reader(location)).collect::<Result<Vec<_>, _>>()?;

        let mut threads = Vec::new();
        let (commands, receiver) = sync_channel(config.queue_batches);
        threads.push(spawn("stats-writer", move || writer.run(&receiver)));
        let (jobs, receiver) = sync_channel(config.queue_queries);
        let receiver = Arc::new(Mutex::new(receiver));
        for connection in readers {
            let receiver = Arc::clone(&receiver);
            threads.push(spawn("stats-reader", move || reader::run(connection, &receiver)));
        }
        Ok(Self {
            commands: Queue::new("batches", config.queue_batches, commands),
            jobs: Queue::new("queries", config.queue_queries, jobs),
            waiting: Arc::new(Semaphore::new(config.queue_events)),
            queue_events: config.queue_events,
            threads: Mutex::new(threads),
        })
    }

    fn report_depth(&self) {
        events::queue_depth(self.queue_events - self.waiting.available_permits().min(self.queue_events));
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> JoinHandle<()> {
    thread::Builder::new().name(name.into()).spawn(work).expect("the system gives a few threads at start")
}

#[tonic::async_trait]
impl Store for SqliteStore {
    async fn record(&self, events: Vec<Event>) -> Result<Recorded, StoreError> {
        if events.is_empty() {
            return Ok(Recorded::default());
        }
        let full = StoreError::QueueFull { what: "events", limit: self.queue_events };
        let count = u32::try_from(events.len()).map_err(|_| full.clone())?;
        let permit = Arc::clone(&self.waiting).try_acquire_many_owned(count).map_err(|_| full)?;
        let (reply, answer) = oneshot::channel();
        self.commands.push(Command::Record(Batch { events, reply, permit }))?;
        self.report_depth();
        let span = child_span!("sqlite.record", otel.kind = "client", db.system = "sqlite");
        let outcome = answer.instrument(span).await.map_err(|_| StoreError::Closed)?;
        self.report_depth();
        outcome
    }

    async fn query(&self, query: Query) -> Result<Page, StoreError> {
        let (reply, answer) = oneshot::channel();
        let abandoned = Arc::new(AtomicBool::new(false));
        let _guard = SetOnDrop(Arc::clone(&abandoned));
        self.jobs.push(Job { query, reply, abandoned })?;
        let span = child_span!("sqlite.query", otel.kind = "client", db.system = "sqlite");
        answer.instrument(span).await.map_err(|_| StoreError::Closed)?
    }

    async fn prune(&self, before: Hour, limit: usize) -> Result<Pruned, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.commands.push(Command::Prune { before, limit, reply })?;
        answer.await.map_err(|_| StoreError::Closed)?
    }

    async fn close(&self) {
        self.commands.close();
        self.jobs.close();
        let threads = std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner));
        let joined = tokio::task::spawn_blocking(move || {
            for thread in threads {
                let name = thread.thread().name().unwrap_or_default().to_owned();
                if thread.join().is_err() {
                    error!(thread = name, "a thread of the statistics store had panicked");
                }
            }
        });
        // Joining neither panics nor is it cancelled.
        let _ = joined.await;
    }
}

/// A bounded way to a thread that can be closed: the thread ends when it has done what is in it.
#[derive(Debug)]
struct Queue<T> {
    what: &'static str,
    limit: usize,
    sender: Mutex<Option<SyncSender<T>>>,
}

impl<T> Queue<T> {
    fn new(what: &'static str, limit: usize, sender: SyncSender<T>) -> Self {
        Self { what, limit, sender: Mutex::new(Some(sender)) }
    }

    fn push(&self, item: T) -> Result<(), StoreError> {
        let sender = self.sender.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = sender.as_ref().ok_or(StoreError::Closed)?;
        sender.try_send(item).map_err(|error| match error {
            TrySendError::Full(_) => StoreError::QueueFull { what: self.what, limit: self.limit },
            TrySendError::Disconnected(_) => StoreError::Closed,
        })
    }

    fn close(&self) {
        self.sender.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

/// Tells the reader that nobody waits any more.
struct SetOnDrop(Arc<AtomicBool>);

impl Drop for SetOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
