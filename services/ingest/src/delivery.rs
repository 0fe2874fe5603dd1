//! Events on their way to the statistics: from memory, and over the disk when memory is not enough.
//!
//! A batch goes out at once while there is a place for it and nothing older waits on disk. It goes to the spool when the
//! buffer is half full, when older ones are there already, and when the statistics have not acknowledged for
//! `ingest.spool_after`: then also what is on its way, so that SIGKILL costs no more than that. At a stop, what was not
//! acknowledged in time stays on disk for the next start. Delivery repeats; the statistics count an event's id once.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use prost::Message;
use sightline_proto::stats::Event;
use tokio::{
    sync::mpsc,
    task::{AbortHandle, Id, JoinSet},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{
    events,
    spool::{Batch, Spool},
};

/// Batches on their way at once: one being committed, others behind it on the wire.
pub(crate) const BATCHES_IN_FLIGHT: usize = 4;

/// Sends a batch until it is acknowledged, however long that takes.
pub(crate) trait Deliver: Clone + Send + Sync + 'static {
    /// Completes when every event is stored, or refused for good.
    fn deliver(&self, batch: Vec<Event>) -> impl Future<Output = ()> + Send;
}

/// A batch on its way.
struct Flight {
    since: Instant,
    abort: AbortHandle,
    from: From,
}

/// Where the batch is while it is on its way.
enum From {
    Memory(Arc<Vec<Event>>),
    /// In the spool, up to this number.
    Disk {
        start: u64,
        end: u64,
    },
}

/// What the task needs; [`Delivery::run`] is the task.
pub(crate) struct Delivery<D> {
    pub to: D,
    pub spool: Option<Arc<Mutex<Spool>>>,
    /// Events in memory, acknowledged or spilled ones taken off.
    pub waiting: Arc<AtomicUsize>,
    /// No more events come: deliver what is there.
    pub stop: CancellationToken,
    /// No more time: put what is there on disk.
    pub give_up: CancellationToken,
    pub batch: usize,
    pub linger: Duration,
    /// Events in the queue from which on they are spilled.
    pub mark: usize,
    pub patience: Duration,
}

/// What the task holds.
#[derive(Default)]
struct State {
    tasks: JoinSet<()>,
    flights: BTreeMap<Id, Flight>,
    /// The batch that is being filled, and since when.
    filling: Vec<Event>,
    since: Option<Instant>,
    closed: bool,
    /// Numbers in the spool that are acknowledged behind others that are not: start to end.
    done: BTreeMap<u64, u64>,
    acknowledged: u64,
    /// What is in the spool, and what of it is not on its way.
    on_disk: u64,
    unread: u64,
    /// When the spool failed last: it is left alone for a moment.
    failed: Option<Instant>,
}

/// How long a spool that failed (a full disk) is left alone.
const SPOOL_REST: Duration = Duration::from_secs(1);

impl<D: Deliver> Delivery<D> {
    /// Works until asked to stop and done, or to give up.
    pub(crate) async fn run(self, mut queue: mpsc::Receiver<Event>) {
        let mut state = State::default();
        self.look(&mut state).await;
        loop {
            let due = self.is_due(&state);
            if due && self.dispatch(&mut state, queue.len()).await || self.send_from_disk(&mut state).await {
                continue;
            }
            if state.closed && state.filling.is_empty() && state.flights.is_empty() && state.unread == 0 {
                return;
            }
            self.wait(&mut state, &mut queue, due).await;
            if self.give_up.is_cancelled() {
                return self.surrender(state, queue).await;
            }
        }
    }

    /// Whether the batch is full or old enough.
    fn is_due(&self, state: &State) -> bool {
        let old = state.since.is_some_and(|since| since.elapsed() >= self.linger);
        !state.filling.is_empty() && (state.filling.len() >= self.batch || old || state.closed)
    }

    /// Waits for the next thing that happens.
    async fn wait(&self, state: &mut State, queue: &mut mpsc::Receiver<Event>, due: bool) {
        let room = self.batch.saturating_sub(state.filling.len());
        // What is due and has no place waits for one, or for a spool that failed.
        let linger = match due {
            true => state.failed.map(|failed| failed + SPOOL_REST).filter(|rested| *rested > Instant::now()),
            false => state.since.map(|since| since + self.linger),
        };
        let patience = self.impatient_at(state);
        tokio::select! {
            biased;
            () = self.give_up.cancelled() => {}
            Some(ended) = state.tasks.join_next_with_id(), if !state.tasks.is_empty() => {
                let id = match ended {
                    Ok((id, ())) => id,
                    Err(error) => error.id(),
                };
                if let Some(flight) = state.flights.remove(&id) {
                    self.landed(state, flight).await;
                }
            }
            () = until(patience) => self.spill_flights(state).await,
            () = until(linger) => {}
            () = self.stop.cancelled(), if !queue.is_closed() => queue.close(),
            count = queue.recv_many(&mut state.filling, room), if room > 0 && !state.closed => {
                state.closed = count == 0;
                if !state.filling.is_empty() {
                    state.since.get_or_insert_with(Instant::now);
                }
            }
        }
    }

    /// When the oldest batch in memory has been on its way for too long.
    fn impatient_at(&self, state: &State) -> Option<Instant> {
        self.spool.as_ref()?;
        let rested = state.failed.map(|failed| failed + SPOOL_REST);
        let memory = state.flights.values().filter(|flight| matches!(flight.from, From::Memory(_)));
        let oldest = memory.map(|flight| flight.since + self.patience).min()?;
        Some(rested.map_or(oldest, |rested| rested.max(oldest)))
    }

    /// Sends the batch that is due, or puts it on disk. `false`: neither can be done now.
    async fn dispatch(&self, state: &mut State, queued: usize) -> bool {
        let free = state.flights.len() < BATCHES_IN_FLIGHT;
        if free && state.unread == 0 {
            let batch = std::mem::take(&mut state.filling);
            state.since = None;
            self.send(state, From::Memory(Arc::new(batch.clone())), batch);
            return true;
        }
        let rests = state.failed.is_some_and(|failed| failed.elapsed() < SPOOL_REST);
        if self.spool.is_none() || rests || (state.on_disk == 0 && queued < self.mark) {
            return false;
        }
        let batch = std::mem::take(&mut state.filling);
        match self.push(state, &batch).await {
            true => state.since = None,
            false => state.filling = batch,
        }
        state.filling.is_empty()
    }

    fn send(&self, state: &mut State, from: From, batch: Vec<Event>) {
        let to = self.to.clone();
        let abort = state.tasks.spawn(async move { to.deliver(batch).await });
        state.flights.insert(abort.id(), Flight { since: Instant::now(), abort, from });
    }

    async fn send_from_disk(&self, state: &mut State) -> bool {
        if state.unread == 0 || state.flights.len() >= BATCHES_IN_FLIGHT {
            return false;
        }
        let max = self.batch;
        let Some(batch) = self.with(move |spool| spool.read(max)).await else { return false };
        state.unread = state.unread.saturating_sub(batch.end - batch.start);
        let Batch { records, start, end, lost } = batch;
        let decoded: Vec<Event> =
            records.iter().filter_map(|record| Event::decode(record.as_slice()).ok()).collect();
        let lost = lost + (records.len() - decoded.len()) as u64;
        if lost > 0 {
            events::records_dropped(lost);
            error!(lost, "events on disk could not be read and were dropped");
        }
        if start == end {
            self.look(state).await;
            return false;
        }
        match decoded.is_empty() {
            true => self.acknowledge(state, start, end).await,
            false => self.send(state, From::Disk { start, end }, decoded),
        }
        true
    }

    /// A batch was delivered.
    async fn landed(&self, state: &mut State, flight: Flight) {
        match flight.from {
            From::Memory(batch) => self.left_memory(batch.len()),
            From::Disk { start, end } => self.acknowledge(state, start, end).await,
        }
    }

    /// Acknowledges records of the spool, once all before them are.
    async fn acknowledge(&self, state: &mut State, start: u64, end: u64) {
        state.done.insert(start, end);
        let mut reached = state.acknowledged;
        while let Some(first) = state.done.first_entry().filter(|first| *first.key() <= reached) {
            reached = reached.max(first.remove());
        }
        if reached > state.acknowledged {
            state.acknowledged = reached;
            if let Some(Err(error)) = self.with(move |spool| spool.acknowledge(reached)).await {
                warn!("delivered events stay on disk, and will be sent again: {error}");
            }
        }
        self.look(state).await;
    }

    /// Puts a batch on disk. `false`: it is still in memory.
    async fn push(&self, state: &mut State, batch: &[Event]) -> bool {
        let records: Vec<Vec<u8>> = batch.iter().map(Message::encode_to_vec).collect();
        let first = state.on_disk == 0;
        let pushed = self.with(move |spool| spool.push(&records)).await;
        let kept = match pushed {
            Some(Ok(pushed)) => {
                self.left_memory(batch.len());
                events::spooled(batch.len());
                if first {
                    info!("the statistics are away or slow: events wait on disk");
                }
                if pushed.dropped > 0 {
                    events::records_dropped(pushed.dropped);
                    let dropped = pushed.dropped;
                    error!(
                        dropped,
                        "ingest.spool_max_bytes is reached: the oldest events on disk were dropped"
                    );
                }
                true
            }
            Some(Err(error)) => {
                state.failed = Some(Instant::now());
                error!("events cannot be put on disk and stay in memory: {error}");
                false
            }
            None => false,
        };
        self.look(state).await;
        kept
    }

    /// Puts what is on its way from memory on disk, oldest first, and sends it from there.
    async fn spill_flights(&self, state: &mut State) {
        let mut flights: Vec<(Id, Instant)> =
            state.flights.iter().map(|(id, flight)| (*id, flight.since)).collect();
        flights.sort_by_key(|(_, since)| *since);
        for (id, _) in flights {
            let Some(Flight { from: From::Memory(batch), abort, .. }) = state.flights.get(&id) else {
                continue;
            };
            let (batch, abort) = (Arc::clone(batch), abort.clone());
            if !self.push(state, &batch).await {
                return;
            }
            abort.abort();
            state.flights.remove(&id);
        }
    }

    /// Time is up: everything goes to disk.
    async fn surrender(&self, mut state: State, mut queue: mpsc::Receiver<Event>) {
        queue.close();
        state.failed = None;
        self.spill_flights(&mut state).await;
        state.tasks.abort_all();
        let mut left = std::mem::take(&mut state.filling);
        while let Some(event) = queue.recv().await {
            left.push(event);
        }
        for batch in left.chunks(self.batch) {
            if !self.push(&mut state, batch).await {
                break;
            }
        }
        let lost = self.waiting.load(Ordering::Relaxed);
        if lost > 0 {
            events::records_dropped(lost as u64);
            error!(events = lost, "stopped before the statistics acknowledged every event");
        } else if state.on_disk > 0 {
            info!(events = state.on_disk, "events stay on disk for the next start");
        }
    }

    fn left_memory(&self, count: usize) {
        events::record_depth(self.waiting.fetch_sub(count, Ordering::Relaxed) - count);
    }

    /// Looks at what is on disk.
    async fn look(&self, state: &mut State) {
        let Some((len, unread, bytes, acknowledged)) =
            self.with(|spool| (spool.len(), spool.unread(), spool.bytes(), spool.acknowledged())).await
        else {
            return;
        };
        (state.on_disk, state.unread) = (len, unread);
        state.acknowledged = state.acknowledged.max(acknowledged);
        events::spool_depth(len, bytes);
    }

    /// Runs something on the spool, where blocking is allowed. `None`: there is no spool.
    async fn with<R: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Spool) -> R + Send + 'static,
    ) -> Option<R> {
        let spool = Arc::clone(self.spool.as_ref()?);
        let done = tokio::task::spawn_blocking(move || {
            work(&mut spool.lock().unwrap_or_else(PoisonError::into_inner))
        });
        Some(done.await.expect("work on the spool is neither cancelled nor does it panic"))
    }
}

/// Never, without a time.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests;
