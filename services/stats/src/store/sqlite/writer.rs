//! The one thread that writes: group commit, exactly once.

use std::{
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError},
    },
    time::{Duration, Instant},
};

use rusqlite::{Connection, TransactionBehavior, params};
use tokio::sync::{OwnedSemaphorePermit, oneshot};
use tracing::{error, warn};

use crate::{
    events,
    store::{Event, Hour, Pruned, Recorded, StoreError},
};

/// A batch that waits. Its permit counts its events until it is answered, whether or not somebody still listens.
#[derive(Debug)]
pub(super) struct Batch {
    pub events: Vec<Event>,
    pub reply: oneshot::Sender<Result<Recorded, StoreError>>,
    pub permit: OwnedSemaphorePermit,
}

/// What the thread is asked to do.
#[derive(Debug)]
pub(super) enum Command {
    Record(Batch),
    Prune { before: Hour, limit: usize, reply: oneshot::Sender<Result<Pruned, StoreError>> },
}

/// When a group of batches is closed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grouping {
    pub max_events: usize,
    pub max_wait: Duration,
}

pub(super) struct Writer {
    connection: Connection,
    grouping: Grouping,
    /// Where the next step of forgetting starts.
    pruned_to: (Vec<u8>, String),
}

impl Writer {
    pub(super) fn new(connection: Connection, grouping: Grouping) -> Self {
        Self { connection, grouping, pruned_to: Default::default() }
    }

    /// Works until nobody can send any more, and all that was sent is done.
    pub(super) fn run(mut self, commands: &Receiver<Command>) {
        let mut next = commands.recv().ok();
        while let Some(command) = next.take() {
            match command {
                Command::Record(first) => {
                    let group;
                    (group, next) = self.gather(first, commands);
                    self.commit(group);
                }
                Command::Prune { before, limit, reply } => {
                    let pruned = self.prune(before, limit).map_err(failed);
                    // Nobody waits any more: the work is done all the same.
                    let _ = reply.send(pruned);
                }
            }
            next = next.or_else(|| commands.recv().ok());
        }
        // Leaves one file without a log beside it: easier to copy. What fails here is repeated at the next start.
        if let Err(error) = self.connection.execute_batch("PRAGMA optimize; PRAGMA wal_checkpoint(TRUNCATE)")
        {
            warn!(%error, "the statistics database was closed without a checkpoint");
        }
    }

    /// Collects the batches of one transaction, and the command that ended the collection if it was another one.
    fn gather(&self, first: Batch, commands: &Receiver<Command>) -> (Vec<Batch>, Option<Command>) {
        let until = Instant::now() + self.grouping.max_wait;
        let mut events = first.events.len();
        let mut group = vec![first];
        while events < self.grouping.max_events {
            match commands.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(Command::Record(batch)) => {
                    events += batch.events.len();
                    group.push(batch);
                }
                Ok(other) => return (group, Some(other)),
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
            }
        }
        (group, None)
    }

    fn commit(&mut self, group: Vec<Batch>) {
        let started = Instant::now();
        let batches: Vec<&[Event]> = group.iter().map(|batch| batch.events.as_slice()).collect();
        let outcomes = match write(&mut self.connection, &batches) {
            Ok(outcomes) => outcomes,
            Err(source) => {
                error!(error = %source, batches = group.len(), "statistics could not be committed");
                let failed = failed(source);
                group.iter().map(|_| Err(failed.clone())).collect()
            }
        };
        let sum = outcomes.iter().flatten().fold((0, 0), |(stored, duplicates), outcome| {
            (stored + u64::from(outcome.stored), duplicates + u64::from(outcome.duplicates))
        });
        events::committed(sum.0, sum.1, started.elapsed());
        for (batch, outcome) in group.into_iter().zip(outcomes) {
            drop(batch.permit);
            // The caller went away; what it sent is counted all the same, and redelivery will find it.
            let _ = batch.reply.send(outcome);
        }
    }

    fn prune(&mut self, before: Hour, limit: usize) -> rusqlite::Result<Pruned> {
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // In the same transaction as the deletion: an id is never forgotten without its time being refused.
        transaction
            .execute("UPDATE state SET forgotten_before = max(forgotten_before, ?1)", params![before.0])?;
        let (id, tenant) = &self.pruned_to;
        let others = i64::try_from(limit.saturating_sub(1)).unwrap_or(i64::MAX);
        let end = transaction
            .prepare_cached(
                "SELECT event_id, tenant FROM events WHERE (event_id, tenant) > (?1, ?2)
                 ORDER BY event_id, tenant LIMIT 1 OFFSET ?3",
            )?
            .query_map(params![id, tenant, others], |row| {
                Ok((row.get::<_, Vec<u8>>(0)?, row.get::<_, String>(1)?))
            })?
            .next()
            .transpose()?;
        let removed = match &end {
            Some((end_id, end_tenant)) => transaction
                .prepare_cached(
                    "DELETE FROM events WHERE (event_id, tenant) > (?1, ?2) AND (event_id, tenant) <= (?3, ?4)
                     AND hour < ?5",
                )?
                .execute(params![id, tenant, end_id, end_tenant, before.0])?,
            None => transaction
                .prepare_cached("DELETE FROM events WHERE (event_id, tenant) > (?1, ?2) AND hour < ?3")?
                .execute(params![id, tenant, before.0])?,
        };
        transaction.commit()?;
        let finished = end.is_none();
        self.pruned_to = end.unwrap_or_default();
        Ok(Pruned { removed, finished })
    }
}

pub(super) fn failed(source: rusqlite::Error) -> StoreError {
    StoreError::Failed(Arc::new(source))
}

/// Writes the batches in one transaction. The outer error is the transaction's, and then nothing was stored.
fn write(
    connection: &mut Connection,
    batches: &[&[Event]],
) -> rusqlite::Result<Vec<Result<Recorded, StoreError>>> {
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let forgotten: i64 =
        transaction.prepare_cached("SELECT forgotten_before FROM state")?.query_row((), |row| row.get(0))?;
    let mut outcomes: Vec<Result<Recorded, StoreError>> = batches
        .iter()
        .map(|events| match events.iter().position(|event| event.hour.0 < forgotten) {
            Some(index) => Err(StoreError::Forgotten { index }),
            None => Ok(Recorded::default()),
        })
        .collect();
    let new = insert_ids(&transaction, batches, &mut outcomes)?;
    count(&transaction, new)?;
    transaction.commit()?;
    Ok(outcomes)
}

/// Remembers the ids of the batches that are not refused, gives the events that were new, and counts into `outcomes`.
fn insert_ids<'e>(
    connection: &Connection,
    batches: &[&'e [Event]],
    outcomes: &mut [Result<Recorded, StoreError>],
) -> rusqlite::Result<Vec<&'e Event>> {
    let mut ordered: Vec<(&Event, usize)> = Vec::new();
    for (batch, events) in batches.iter().enumerate().filter(|(batch, _)| outcomes[*batch].is_ok()) {
        ordered.extend(events.iter().map(|event| (event, batch)));
    }
    // In the order of the index, so that neighbours are written together; of equal ones the first batch's comes first.
    ordered.sort_by(|(a, _), (b, _)| (a.id, &a.tenant).cmp(&(b.id, &b.tenant)));
    let mut insert = connection.prepare_cached(
        "INSERT INTO events (event_id, tenant, hour) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
    )?;
    let mut new = Vec::with_capacity(ordered.len());
    for (event, batch) in ordered {
        let stored = insert.execute(params![event.id.as_bytes(), event.tenant, event.hour.0])? == 1;
        let Ok(outcome) = &mut outcomes[batch] else { continue };
        if stored {
            outcome.stored += 1;
            new.push(event);
        } else {
            outcome.duplicates += 1;
        }
    }
    Ok(new)
}

/// Adds the events to the rollups: merged first, then one upsert per rollup, in the order of the index.
fn count(connection: &Connection, mut events: Vec<&Event>) -> rusqlite::Result<()> {
    fn key(event: &Event) -> (&str, Hour, &str, &str, u8, u8) {
        (&event.tenant, event.hour, &event.user, &event.application, event.level, event.source)
    }
    events.sort_unstable_by(|a, b| key(a).cmp(&key(b)));
    let mut upsert = connection.prepare_cached(
        "INSERT INTO rollups (tenant, hour, user_id, application, level, source, frames)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
         ON CONFLICT DO UPDATE SET frames = frames + excluded.frames",
    )?;
    for same in events.chunk_by(|a, b| key(a) == key(b)) {
        let (tenant, hour, user, application, level, source) = key(same[0]);
        upsert.execute(params![tenant, hour.0, user, application, level, source, same.len() as i64])?;
    }
    Ok(())
}
