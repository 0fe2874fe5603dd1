//! Counts in PostgreSQL, shared by every replica of the statistics.
//!
//! - Exactly once: an event's key and the rollup it counts in are written in one transaction (`writer`). Batches that
//!   arrive together share it. An answer follows the commit, so what was acknowledged survives what the server's
//!   `synchronous_commit` promises: SIGKILL and loss of power, unless an operator turned it off.
//! - Keys are sorted before they are written, so that replicas that touch the same rows wait for each other and not in a
//!   circle. (New rollups of three replicas in one moment could still make one: PostgreSQL ends one of them, and that
//!   one is tried again.)
//! - Rollups are complete at any moment, the open hour included: they are written with the events, not derived later.
//! - An id counts once per day (UTC) of the event, because a unique index cannot span partitions. An event that is sent
//!   again carries the same time, so that is the same day.
//! - Nothing stays on a connection between transactions: no named statement, no setting, no lock (PgBouncer).
//! - The schema is made by `sightline migrate` (`migrations`); a server only checks it. Partitions are made and dropped
//!   by the servers (`partitions`).

mod connect;
mod error;
pub mod migrations;
mod names;
mod partitions;
mod reader;
mod rows;
#[cfg(test)]
mod tests;
mod transaction;
mod writer;

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::{Duration, Instant, SystemTime},
};

pub use connect::PostgresError;
use sightline_telemetry::child_span;
use sightline_telemetry::dependencies::Dependencies;
use tokio::{
    sync::{Mutex as AsyncMutex, Semaphore, mpsc, oneshot},
    task::JoinHandle,
};
use tokio_postgres::types::Type;
use tracing::{Instrument, error, warn};

use self::{
    connect::{Connector, Database},
    error::Trouble,
    partitions::{Known, Partition},
    transaction::{Statement, Transaction, begin},
    writer::{Batch, Grouping, Writer},
};
use super::{Event, Hour, Page, Pruned, Query, Recorded, Store, StoreError};
use crate::{config::StatsConfig, events, intake::oldest_hour};

/// Days of events for which there are partitions ahead of time: a weekend without a server that could make them.
const DAYS_AHEAD: usize = 3;

/// See the module.
#[derive(Debug)]
pub struct PostgresStore {
    writer: Arc<Writer>,
    batches: Mutex<Option<mpsc::Sender<Batch>>>,
    writers: Mutex<Vec<JoinHandle<()>>>,
    /// One permit per event that may wait.
    waiting: Arc<Semaphore>,
    /// One permit per query that runs.
    running: Semaphore,
    /// One permit per query that runs or waits.
    queries: Semaphore,
    config: StatsConfig,
}

impl PostgresStore {
    /// Connects, checks the schema, makes partitions and starts the writers. The server is registered in `dependencies`.
    ///
    /// # Errors
    /// [`PostgresError`].
    pub async fn open(config: &StatsConfig, dependencies: &Dependencies) -> Result<Self, PostgresError> {
        let connector = Connector::new(config)?;
        let url = config.postgres_url.as_ref().map_or_else(String::new, |url| url.masked());
        let fail =
            |trouble: Trouble| PostgresError::Unreachable { url: url.clone(), problem: trouble.to_string() };
        let session = connector.open().await.map_err(fail)?;
        migrations::check(&session, &url).await?;
        warn_if_not_durable(&session.client).await.map_err(|error| fail(error.into()))?;
        drop(session);
        let writer = Arc::new(Writer {
            database: Database::new(config, connector, dependencies.register("postgres")),
            grouping: Grouping {
                max_events: config.commit_max_events,
                max_wait: config.postgres_commit_max_wait.0,
            },
            statement_timeout: config.postgres_statement_timeout.0,
            known: Known::default(),
            forgotten: 0.into(),
        });
        let (batches, inbox) = mpsc::channel(config.queue_batches);
        let inbox = Arc::new(AsyncMutex::new(inbox));
        let start = |_| tokio::spawn(Arc::clone(&writer).run(Arc::clone(&inbox)));
        let writers = (0..config.postgres_writers).map(start).collect();
        let store = Self {
            batches: Mutex::new(Some(batches)),
            writers: Mutex::new(writers),
            waiting: Arc::new(Semaphore::new(config.queue_events)),
            running: Semaphore::new(config.query_threads),
            queries: Semaphore::new(config.query_threads + config.queue_queries),
            config: config.clone(),
            writer,
        };
        store.make_ahead().await.map_err(fail)?;
        Ok(store)
    }

    /// Makes the partitions of the days that events may be of, and of some days ahead.
    async fn make_ahead(&self) -> Result<(), Trouble> {
        let oldest = oldest_hour(SystemTime::now(), self.config.dedupe_window.0);
        let today = Partition::day(oldest_hour(SystemTime::now(), Duration::ZERO).0);
        let mut days = vec![Partition::day(oldest.0)];
        while let Some(last) = days.last().filter(|last| **last < today) {
            days.push(last.next());
        }
        for _ in 0..DAYS_AHEAD {
            days.extend(days.last().map(|last| last.next()));
        }
        let months = days.iter().map(|day| Partition::month(day.start()));
        let wanted: BTreeSet<Partition> = days.iter().copied().chain(months).collect();
        self.writer.make(&wanted).await
    }

    fn report_depth(&self) {
        let free = self.waiting.available_permits().min(self.config.queue_events);
        events::queue_depth(self.config.queue_events - free);
    }

    fn is_closed(&self) -> bool {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    fn push(&self, batch: Batch) -> Result<(), StoreError> {
        let sender = self.batches.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = sender.as_ref().ok_or(StoreError::Closed)?;
        sender.try_send(batch).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                StoreError::QueueFull { what: "batches", limit: self.config.queue_batches }
            }
            mpsc::error::TrySendError::Closed(_) => StoreError::Closed,
        })
    }

    async fn forget(&self, before: Hour) -> Result<Pruned, Trouble> {
        const FORGET: Statement<'static> = Statement {
            name: "forget ids",
            sql: "UPDATE sightline_stats.state SET forgotten_before = greatest(forgotten_before, $1)
                  RETURNING forgotten_before",
        };
        let begin = begin(self.config.postgres_statement_timeout.0);
        // Committed before anything is dropped: an id is never forgotten without its time being refused.
        let mut transaction = Transaction::new(&self.writer.database, begin.clone()).await?;
        let rows = match transaction.query(FORGET, &[(&before.0, Type::INT8)]).await {
            Ok(rows) => rows,
            Err(trouble) => {
                transaction.rollback().await;
                return Err(trouble);
            }
        };
        transaction.commit().await?;
        let forgotten: i64 = rows.first().map(|row| row.try_get(0)).transpose()?.unwrap_or(before.0);
        self.writer.forgotten.fetch_max(forgotten, Ordering::Relaxed);
        let kept = |retention: Duration| {
            let more = retention.saturating_sub(self.config.dedupe_window.0).as_secs() / 3600;
            forgotten.saturating_sub_unsigned(more)
        };
        let (events, rollups) = (kept(self.config.raw_retention.0), kept(self.config.rollup_retention.0));
        let removed = partitions::drop_before(&self.writer.database, &begin, events, rollups).await?;
        self.writer.known.clear();
        self.make_ahead().await?;
        Ok(Pruned { removed: usize::try_from(removed).unwrap_or(0), finished: true })
    }
}

/// What was acknowledged could be lost with the server then.
async fn warn_if_not_durable(client: &tokio_postgres::Client) -> Result<(), tokio_postgres::Error> {
    let sql = "SELECT current_setting('synchronous_commit') = 'off' OR current_setting('fsync') = 'off'";
    if client.query_typed_one(sql, &[]).await?.try_get(0)? {
        warn!(
            "PostgreSQL's synchronous_commit or fsync is off: acknowledged statistics may be lost when it crashes"
        );
    }
    Ok(())
}

fn failed(trouble: Trouble) -> StoreError {
    StoreError::Failed(Arc::new(trouble))
}

#[tonic::async_trait]
impl Store for PostgresStore {
    async fn record(&self, mut events: Vec<Event>) -> Result<Recorded, StoreError> {
        if events.is_empty() {
            return if self.is_closed() { Err(StoreError::Closed) } else { Ok(Recorded::default()) };
        }
        for event in &mut events {
            for name in [&mut event.tenant, &mut event.user, &mut event.application] {
                if let std::borrow::Cow::Owned(stored) = names::escape(name) {
                    *name = stored;
                }
            }
        }
        let full = StoreError::QueueFull { what: "events", limit: self.config.queue_events };
        let count = u32::try_from(events.len()).map_err(|_| full.clone())?;
        let permit = Arc::clone(&self.waiting).try_acquire_many_owned(count).map_err(|_| full)?;
        let (reply, answer) = oneshot::channel();
        self.push(Batch { events, reply, permit })?;
        self.report_depth();
        let span = child_span!("postgres.record", otel.kind = "client", db.system = "postgresql");
        let outcome = answer.instrument(span).await.map_err(|_| StoreError::Closed)?;
        self.report_depth();
        outcome
    }

    async fn query(&self, query: Query) -> Result<Page, StoreError> {
        if self.is_closed() {
            return Err(StoreError::Closed);
        }
        let full = |_| StoreError::QueueFull { what: "queries", limit: self.config.queue_queries };
        let _place = self.queries.try_acquire().map_err(full)?;
        let _turn = self.running.acquire().await.map_err(|_| StoreError::Closed)?;
        let started = Instant::now();
        let timeout = self.config.query_timeout.0;
        let span = child_span!("postgres.query", otel.kind = "client", db.system = "postgresql");
        let answer = reader::answer(&self.writer.database, &query, timeout).instrument(span);
        let answer = tokio::time::timeout(timeout, answer).await;
        events::queried(started.elapsed());
        match answer.unwrap_or(Err(Trouble::Slow(timeout))) {
            Ok(page) => {
                self.writer.database.healthy();
                Ok(page)
            }
            Err(trouble) => {
                self.writer.database.report(&trouble);
                error!(error = %trouble, "a statistics query failed");
                Err(failed(trouble))
            }
        }
    }

    /// Drops partitions whole: `limit` is not needed, and the events that went are an estimate.
    async fn prune(&self, before: Hour, _limit: usize) -> Result<Pruned, StoreError> {
        if self.is_closed() {
            return Err(StoreError::Closed);
        }
        self.forget(before).await.map_err(failed)
    }

    async fn close(&self) {
        self.batches.lock().unwrap_or_else(PoisonError::into_inner).take();
        let writers = std::mem::take(&mut *self.writers.lock().unwrap_or_else(PoisonError::into_inner));
        let until = tokio::time::Instant::now() + self.config.drain_timeout.0;
        for mut writer in writers {
            match tokio::time::timeout_at(until, &mut writer).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => error!("a writer of the statistics had panicked"),
                // Nothing was acknowledged, so whoever sent it keeps it.
                Err(_) => {
                    warn!("stopped before PostgreSQL took what waited");
                    writer.abort();
                }
            }
        }
    }
}
