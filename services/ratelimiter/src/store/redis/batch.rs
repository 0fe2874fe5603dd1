//! Checks that arrive together share a round trip.
//!
//! A lone check goes out at once. While Redis works on a batch, checks gather in a bounded queue; they go when it has answered,
//! or before that when they fill one. So the busier it is, the larger the batches. One call of the script carries all checks
//! of a batch whose keys share a slot: most of a call's cost is parsing it, entering Lua and writing the answer, of which a check
//! pays its share (docs/BENCHMARKS.md).

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use sightline_redis::{Link, LinkError, Script, Topology};
use tokio::{
    sync::{mpsc, oneshot},
    task::{JoinSet, yield_now},
    time::Instant,
};
use tracing::warn;

use super::{
    Settings,
    clock::Clock,
    key::Charge,
    wire::{Call, Op, Verdict},
};

/// Batches on their way at once: while Redis works on one, the next is written. With a third, batches were smaller and checks
/// took a tenth more CPU.
const ON_THEIR_WAY: usize = 2;
/// A check waits no longer than this for others to share its round trip, and no longer than a part of its patience with Redis.
const GATHER: Duration = Duration::from_micros(750);
const PART: u32 = 4;
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

/// The queue's end that callers hold. Who works on it ends with the last of them.
pub(super) type Queue = mpsc::Sender<Entry>;

/// Starts to work on a queue.
pub(super) fn start(link: Link, settings: Settings, clock: Clock) -> Queue {
    let Settings { prefix, batch, queue, keep, timeout, .. } = settings;
    let (sender, receiver) = mpsc::channel(queue);
    let caller = Caller { link, prefix, clock, keep, script: Script::new(include_str!("gcra.lua")) };
    tokio::spawn(work(Arc::new(caller), receiver, batch, GATHER.min(timeout / PART)));
    sender
}

async fn work(caller: Arc<Caller>, mut queue: mpsc::Receiver<Entry>, batch: usize, longest: Duration) {
    let mut on_their_way = JoinSet::new();
    let mut entries = Vec::with_capacity(batch);
    loop {
        let room = batch - entries.len();
        tokio::select! {
            Some(_) = on_their_way.join_next() => {}
            taken = queue.recv_many(&mut entries, room), if room > 0 => if taken == 0 {
                return;
            },
        }
        let goes = match on_their_way.len() {
            0 => !entries.is_empty(),
            less if less < ON_THEIR_WAY => entries.len() == batch,
            _ => false,
        };
        if !goes {
            continue;
        }
        gather(&mut queue, &mut entries, batch, longest).await;
        let mut entries = std::mem::replace(&mut entries, Vec::with_capacity(batch));
        // Who stopped waiting is not charged. A refund is owed all the same.
        entries.retain(|entry| entry.op == Op::Refund || !entry.reply.is_closed());
        let caller = Arc::clone(&caller);
        on_their_way.spawn(async move { caller.decide(entries).await });
    }
}

/// Takes the checks that arrive together with what was taken: those of one read of a socket, to which the thread has not come
/// yet when the first wakes this task, and of the other sockets that can be read too. As long as each turn of the thread brings
/// some, it has work that is to be done before their answers anyway.
async fn gather(
    queue: &mut mpsc::Receiver<Entry>,
    entries: &mut Vec<Entry>,
    batch: usize,
    longest: Duration,
) {
    let until = Instant::now() + longest;
    while entries.len() < batch {
        let before = entries.len();
        yield_now().await;
        while entries.len() < batch
            && let Ok(entry) = queue.try_recv()
        {
            entries.push(entry);
        }
        if entries.len() == before || Instant::now() >= until {
            return;
        }
    }
}

struct Caller {
    link: Link,
    prefix: String,
    clock: Clock,
    keep: Duration,
    script: Script,
}

impl Caller {
    async fn decide(&self, entries: Vec<Entry>) {
        if self.link.topology() != Topology::Cluster {
            let mut rest = entries.into_iter().peekable();
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
        for entry in entries {
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

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        Entry { op: Op::Refund, charges: Vec::new(), reply: oneshot::channel().0 }
    }

    /// Sends one in each of so many turns of the thread.
    fn each_turn(turns: usize) -> mpsc::Receiver<Entry> {
        let (sender, queue) = mpsc::channel(1024);
        tokio::spawn(async move {
            for _ in 0..turns {
                sender.try_send(entry()).unwrap();
                yield_now().await;
            }
            std::future::pending::<()>().await;
        });
        queue
    }

    async fn gathered(turns: usize, batch: usize, longest: Duration) -> usize {
        let (mut queue, mut entries) = (each_turn(turns), vec![entry()]);
        gather(&mut queue, &mut entries, batch, longest).await;
        entries.len()
    }

    #[tokio::test]
    async fn a_batch_grows_while_each_turn_brings_checks_until_it_is_full() {
        const LONG: Duration = Duration::from_secs(60);
        assert_eq!(gathered(0, 64, LONG).await, 1, "alone");
        assert_eq!(gathered(5, 64, LONG).await, 6);
        assert_eq!(gathered(100, 64, LONG).await, 64);
    }

    #[tokio::test]
    async fn nobody_waits_longer_for_others_than_is_allowed() {
        assert_eq!(gathered(100, 64, Duration::ZERO).await, 2, "those of the first turn");
    }
}
