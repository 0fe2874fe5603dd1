//! The tasks that write: group commit, exactly once, retried while that is safe, which it always is.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::{Mutex, OwnedSemaphorePermit, mpsc, oneshot};
use tokio_postgres::{Row, types::Type};
use tracing::{error, warn};
use uuid::Uuid;

use super::{
    connect::Database,
    error::Trouble,
    partitions::{self, Known, Partition},
    rows::Prepared,
    transaction::{Statement, Transaction, begin},
};
use crate::{
    events,
    store::{Event, Recorded, StoreError},
};

/// How often a group is tried before its callers are told to send it again themselves.
const ATTEMPTS: u32 = 5;
/// The pause before the second attempt; twice as long before each further one.
const PAUSE: Duration = Duration::from_millis(20);
/// What an attempt may take beyond its statements' own limits, for the way there and back.
const SLACK: Duration = Duration::from_secs(1);

/// Stores the events that are new and says which: one round trip, one snapshot. Writes nothing when `$8`, the earliest
/// hour, lies before the hour up to which ids were forgotten.
const STORE: Statement<'static> = Statement {
    name: "store events",
    sql: "WITH stored AS (
            INSERT INTO sightline_stats.events (key, hour, level, source, tenant, user_id, application)
            SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7)
            WHERE (SELECT forgotten_before FROM sightline_stats.state) <= $8
            ON CONFLICT DO NOTHING RETURNING key)
          SELECT (SELECT forgotten_before FROM sightline_stats.state), (SELECT array_agg(key) FROM stored)",
};
/// Counts rollups up that are there, in the order of their keys, and says which: most of them, and twice as cheap as
/// making them with `ON CONFLICT`. One index look-up each, see [`IN_ORDER`].
const COUNT_UP: Statement<'static> = Statement {
    name: "count events",
    sql: "WITH counted AS (
            UPDATE sightline_stats.rollups AS old SET frames = old.frames + new.frames
            FROM unnest($1, $2, $3) AS new (key, hour, frames)
            WHERE old.hour = new.hour AND old.key = new.key AND old.hour BETWEEN $4 AND $5 RETURNING old.key)
          SELECT array_agg(key) FROM counted",
};
/// Makes the other rollups; another replica may have made one since.
const COUNT_NEW: Statement<'static> = Statement {
    name: "make rollups",
    sql: "INSERT INTO sightline_stats.rollups AS old
            (key, frames, hour, level, source, tenant, user_id, application)
          SELECT * FROM unnest($1, $2, $3, $4, $5, $6, $7, $8)
          ON CONFLICT (hour, key) DO UPDATE SET frames = old.frames + excluded.frames",
};
/// Makes PostgreSQL go through the keys as they come, whatever it believes about the tables' sizes: rows are locked in the
/// same order by all replicas, and a table is never read as a whole.
const IN_ORDER: &str = "; SET LOCAL enable_hashjoin = off; SET LOCAL enable_mergejoin = off; \
                        SET LOCAL enable_seqscan = off; SET LOCAL enable_sort = off";

/// A batch that waits. Its permit counts its events until it is answered, whether or not somebody still listens.
#[derive(Debug)]
pub(super) struct Batch {
    pub events: Vec<Event>,
    pub reply: oneshot::Sender<Result<Recorded, StoreError>>,
    pub permit: OwnedSemaphorePermit,
}

/// When a group of batches is closed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grouping {
    pub max_events: usize,
    pub max_wait: Duration,
}

/// What all writers of a store share.
#[derive(Debug)]
pub(super) struct Writer {
    pub database: Database,
    pub grouping: Grouping,
    pub statement_timeout: Duration,
    pub known: Known,
    /// The hour before which ids were forgotten, as last seen.
    pub forgotten: AtomicI64,
}

/// Who holds it gathers; the others commit meanwhile.
pub(super) type Inbox = Arc<Mutex<mpsc::Receiver<Batch>>>;

impl Writer {
    /// Works until nobody can send any more, and all that was sent is done.
    pub(super) async fn run(self: Arc<Self>, inbox: Inbox) {
        while let Some(group) = self.gather(&inbox).await {
            self.commit(group).await;
        }
    }

    async fn gather(&self, inbox: &Inbox) -> Option<Vec<Batch>> {
        let mut inbox = inbox.lock().await;
        let first = inbox.recv().await?;
        let until = tokio::time::Instant::now() + self.grouping.max_wait;
        let mut events = first.events.len();
        let mut group = vec![first];
        while events < self.grouping.max_events {
            let Ok(Some(batch)) = tokio::time::timeout_at(until, inbox.recv()).await else { break };
            events += batch.events.len();
            group.push(batch);
        }
        Some(group)
    }

    async fn commit(&self, group: Vec<Batch>) {
        let started = Instant::now();
        let (mut events, mut waiting) = (Vec::with_capacity(group.len()), Vec::with_capacity(group.len()));
        for Batch { events: batch, reply, permit } in group {
            events.push(batch);
            waiting.push((reply, permit));
        }
        let outcomes = match self.write(Arc::new(events)).await {
            Ok(outcomes) => outcomes,
            Err(trouble) => {
                error!(error = %trouble, batches = waiting.len(), "statistics could not be committed");
                let failed = StoreError::Failed(Arc::new(trouble));
                waiting.iter().map(|_| Err(failed.clone())).collect()
            }
        };
        let sum = outcomes.iter().flatten().fold((0, 0), |(stored, duplicates), outcome| {
            (stored + u64::from(outcome.stored), duplicates + u64::from(outcome.duplicates))
        });
        events::committed(sum.0, sum.1, started.elapsed());
        for ((reply, permit), outcome) in waiting.into_iter().zip(outcomes) {
            drop(permit);
            // The caller went away; what it sent is counted all the same, and redelivery will find it.
            let _ = reply.send(outcome);
        }
    }

    /// Tries until it is committed. An attempt whose commit was not answered may have worked: then the next one finds
    /// every id, and counts nothing.
    async fn write(&self, group: Arc<Vec<Vec<Event>>>) -> Result<Vec<Result<Recorded, StoreError>>, Trouble> {
        let mut pause = PAUSE;
        let mut attempt = 1;
        loop {
            let limit = self.statement_timeout + SLACK;
            let tried = tokio::time::timeout(limit, self.try_write(&group)).await;
            let trouble = match tried.unwrap_or(Err(Trouble::Slow(limit))) {
                Ok(outcomes) => {
                    self.database.healthy();
                    return Ok(outcomes);
                }
                Err(trouble) => trouble,
            };
            self.database.report(&trouble);
            if trouble.lacks_partition() {
                self.known.clear();
            }
            if attempt == ATTEMPTS || !trouble.is_transient() {
                return Err(trouble);
            }
            warn!(error = %trouble, attempt, "a commit of statistics is tried again");
            tokio::time::sleep(pause).await;
            pause *= 2;
            attempt += 1;
        }
    }

    async fn try_write(
        &self,
        group: &Arc<Vec<Vec<Event>>>,
    ) -> Result<Vec<Result<Recorded, StoreError>>, Trouble> {
        loop {
            let forgotten = self.forgotten.load(Ordering::Relaxed);
            let prepared = prepare(Arc::clone(group), forgotten).await;
            if prepared.is_empty() {
                return Ok(prepared.outcomes);
            }
            self.make(&prepared.partitions).await?;
            let opening = begin(self.statement_timeout) + IN_ORDER;
            let mut transaction = Transaction::new(&self.database, opening).await?;
            match self.store(&mut transaction, group, &prepared).await {
                // Ids were forgotten since: some batch is refused now, so nothing was written. The hour only grows.
                Ok((now, _)) if now > prepared.earliest => {
                    transaction.rollback().await;
                    self.forgotten.fetch_max(now, Ordering::Relaxed);
                }
                Ok((_, stored)) => return count(transaction, group, prepared, stored).await,
                Err(trouble) => {
                    transaction.rollback().await;
                    return Err(trouble);
                }
            }
        }
    }

    /// Makes partitions that are not known to be there.
    pub(super) async fn make(&self, wanted: &BTreeSet<Partition>) -> Result<(), Trouble> {
        partitions::make(&self.database, begin(self.statement_timeout), &self.known, wanted).await
    }

    async fn store(
        &self,
        transaction: &mut Transaction<'_>,
        group: &[Vec<Event>],
        prepared: &Prepared,
    ) -> Result<(i64, Vec<Uuid>), Trouble> {
        let columns = prepared.events(group);
        let mut parameters = columns.parameters().to_vec();
        parameters.push((&prepared.earliest, Type::INT8));
        let rows = transaction.query(STORE, &parameters).await?;
        let stored = keys(&rows, 1)?;
        Ok((rows[0].try_get(0)?, stored))
    }
}

/// Counts what was new and commits.
async fn count(
    mut transaction: Transaction<'_>,
    group: &[Vec<Event>],
    mut prepared: Prepared,
    stored: Vec<Uuid>,
) -> Result<Vec<Result<Recorded, StoreError>>, Trouble> {
    let (outcomes, rollups) = prepared.settle(group, stored);
    if rollups.is_empty() {
        transaction.commit().await?;
        return Ok(outcomes);
    }
    let (first, last) = rollups.hours();
    let mut parameters = rollups.counts().to_vec();
    parameters.extend([(&first as _, Type::INT4), (&last as _, Type::INT4)]);
    let counted = match transaction.query(COUNT_UP, &parameters).await.and_then(|rows| keys(&rows, 0)) {
        Ok(counted) => counted,
        Err(trouble) => {
            transaction.rollback().await;
            return Err(trouble);
        }
    };
    let rest = rollups.without(counted);
    match rest.is_empty() {
        true => transaction.commit().await?,
        false => transaction.finish(COUNT_NEW, &rest.parameters()).await?,
    }
    Ok(outcomes)
}

/// The keys in a column of the only row; none, when it is null.
fn keys(rows: &[Row], column: usize) -> Result<Vec<Uuid>, Trouble> {
    let row = rows.first().ok_or_else(|| Trouble::Unexpected("PostgreSQL gave no row".into()))?;
    Ok(row.try_get::<_, Option<Vec<Uuid>>>(column)?.unwrap_or_default())
}

/// Sorting ten thousand events is too long for a tokio worker.
async fn prepare(group: Arc<Vec<Vec<Event>>>, forgotten: i64) -> Prepared {
    tokio::task::spawn_blocking(move || Prepared::new(&group, forgotten))
        .await
        .expect("preparing is neither cancelled nor does it panic")
}
