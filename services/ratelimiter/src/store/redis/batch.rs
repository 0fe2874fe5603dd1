//! Checks that arrive together share a round trip.
//!
//! A few workers take turns at one bounded queue: each takes all that waits there, up to a batch, asks Redis, answers, and
//! comes back. While all of them wait for Redis, checks gather; so a lone check goes out at once, and the busier it is, the
//! larger the batches. One call of the script carries all checks of a batch whose keys share a slot: measured on Redis 7.0
//! for checks of two rules, CPU of Redis per check is 17 µs with 32 unary callers and 7.4 µs with a busy stream
//! (docs/BENCHMARKS.md), since most of a call's cost is parsing it, entering Lua and writing the answer.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use sightline_redis::{Link, LinkError, Script, Topology};
use tokio::{
    sync::{Mutex, mpsc, oneshot},
    task::yield_now,
};
use tracing::warn;

use super::{
    Settings,
    clock::Clock,
    key::Charge,
    wire::{Call, Op, Verdict},
};

/// Batches on their way at once: while Redis works on one, the next gathers and is written. With a third, batches were smaller
/// and checks took a tenth more CPU.
const WORKERS: usize = 2;
/// Counters of one call: Redis runs nothing else meanwhile, and Lua takes no more than 8,000 keys at once.
const MAX_COUNTERS: usize = 2048;

/// One check, or what of it shares a slot.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) op: Op,
    pub(super) charges: Vec<Charge>,
    /// Told the verdict, or dropped when Redis did not decide.
    pub(super) reply: oneshot::Sender<Verdict>,
}

/// The queue's end that callers hold. The workers end with the last of them.
pub(super) type Queue = mpsc::Sender<Entry>;

/// Starts the workers.
pub(super) fn start(link: Link, settings: Settings, clock: Clock) -> Queue {
    let Settings { prefix, batch, queue, keep, .. } = settings;
    let (sender, receiver) = mpsc::channel(queue);
    let receiver = Arc::new(Mutex::new(receiver));
    let caller =
        Arc::new(Caller { link, prefix, clock, keep, script: Script::new(include_str!("gcra.lua")) });
    for _ in 0..WORKERS {
        tokio::spawn(work(Arc::clone(&caller), Arc::clone(&receiver), batch));
    }
    sender
}

async fn work(caller: Arc<Caller>, queue: Arc<Mutex<mpsc::Receiver<Entry>>>, batch: usize) {
    let mut entries = Vec::with_capacity(batch);
    while gather(&mut *queue.lock().await, &mut entries, batch).await {
        // Who stopped waiting is not charged. A refund is owed all the same.
        entries.retain(|entry| entry.op == Op::Refund || !entry.reply.is_closed());
        caller.decide(&mut entries).await;
    }
}

/// Waits for checks and takes those that arrive together; false when there will be no more. The first check wakes this task
/// at once, before the thread has come to the other checks that the same read of a socket brought: they go first.
async fn gather(queue: &mut mpsc::Receiver<Entry>, entries: &mut Vec<Entry>, batch: usize) -> bool {
    if queue.recv_many(entries, batch).await == 0 {
        return false;
    }
    yield_now().await;
    while entries.len() < batch
        && let Ok(entry) = queue.try_recv()
    {
        entries.push(entry);
    }
    true
}

struct Caller {
    link: Link,
    prefix: String,
    clock: Clock,
    keep: Duration,
    script: Script,
}

impl Caller {
    async fn decide(&self, entries: &mut Vec<Entry>) {
        if self.link.topology() != Topology::Cluster {
            let mut rest = entries.drain(..).peekable();
            while rest.peek().is_some() {
                let mut counters = 0;
                let mut call = Vec::new();
                while let Some(entry) = rest.next_if(|entry| {
                    counters += entry.charges.len();
                    counters <= MAX_COUNTERS || call.is_empty()
                }) {
                    call.push(entry);
                }
                self.call(call).await;
            }
            return;
        }
        let mut by_slot: BTreeMap<u16, Vec<Entry>> = BTreeMap::new();
        for entry in entries.drain(..) {
            by_slot.entry(entry.charges[0].key.slot()).or_default().push(entry);
        }
        // Written one after the other without waiting: redis-rs pipelines them to each node.
        futures_util::future::join_all(by_slot.into_values().map(|entries| self.call(entries))).await;
    }

    /// One call for entries whose keys share a slot.
    async fn call(&self, entries: Vec<Entry>) {
        let checks = entries.iter().map(|entry| (entry.op, &entry.charges[..]));
        let call = Call::new(&self.prefix, self.clock.times(self.keep), checks);
        let verdicts = match self.link.script(&self.script, |cmd| call.fill(cmd)).await {
            Ok(answer) => call.read(&answer),
            Err(LinkError::Away(_)) => return,
            Err(LinkError::Refused(error)) => {
                warn!("Redis refused a batch of checks: {error}");
                return;
            }
        };
        let Some(verdicts) = verdicts else {
            warn!("Redis answered a batch of checks with what is no answer");
            return;
        };
        for (entry, verdict) in entries.into_iter().zip(verdicts) {
            // Who stopped waiting was charged; that is the price of not knowing.
            entry.reply.send(verdict).ok();
        }
    }
}
