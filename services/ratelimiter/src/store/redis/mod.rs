//! Counters in Redis, shared by all replicas.
//!
//! - **Atomic.** All counters of a check whose keys share a slot are looked at and charged in one script (`gcra.lua`), by
//!   Redis's clock: replicas' clocks do not matter. On a plain server, and behind Sentinels, that is every check.
//! - **In a Cluster** a check's rules may live in different slots, on different nodes. They are asked at the same time, each decides
//!   alone, and when one refuses, those that had room are given back what they were charged before the answer is sent. So a
//!   refused check charges nothing in the end, and never is more admitted than a rule allows; for the moment in between, another
//!   check may see a counter fuller than it should be and be refused, and a replica that dies in it leaves the charge to
//!   run out by itself. Rules about one user share a slot ([`key`]), so this concerns checks that also ask about something else.
//! - **One round trip** per check, shared with those that arrive together ([`batch`]); none for callers known to be over their
//!   limit ([`seen`]).
//! - **Bounded waiting.** No check waits longer than `ratelimiter.redis_timeout` for Redis. After that, and at once while Redis is
//!   known to be away, each rule does what it declares ([`away`]), and the answer says so. A check that went unanswered may have been
//!   charged. Counts made meanwhile are not carried into Redis when it is back.
//! - **Rounding.** Redis counts in microseconds: a hit's interval is rounded up to the next one.

mod away;
mod batch;
mod clock;
mod key;
mod replicas;
mod seen;
mod wire;

use std::{
    sync::{Arc, atomic::AtomicU32},
    time::Duration,
};

use metrics::Counter as Metric;
use sightline_redis::{Link, Topology};
use sightline_telemetry::child_span;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout_at},
};
use tracing::Instrument;

use self::{
    away::Away,
    batch::{Entry, Queue},
    key::{Charge, charges},
    seen::{Seen, refused_by, standings},
    wire::{Op, Verdict},
};
use super::{Check, Decision, Store, StoreError, memory::MemoryStore};
use crate::events;

pub use self::{away::CLOSED_RETRY, clock::Clock};

/// How the store behaves.
#[derive(Debug, Clone)]
pub struct Settings {
    /// What its keys begin with.
    pub prefix: String,
    /// No check waits longer for Redis.
    pub timeout: Duration,
    /// Checks of one round trip, at most.
    pub batch: usize,
    /// Checks that may wait for one.
    pub queue: usize,
    /// How much longer than it needs a key is kept when its time to live is set.
    pub keep: Duration,
    /// Counters at their limit that are remembered.
    pub deny_cache: usize,
    /// Replicas that share a limit while Redis is away; unset: as many as said that they are alive.
    pub replicas: Option<u32>,
}

/// The store of many processes.
#[derive(Debug)]
pub struct RedisStore {
    link: Link,
    queue: Queue,
    seen: Seen,
    away: Away,
    clock: Clock,
    timeout: Duration,
    denied: Metric,
}

impl RedisStore {
    /// Asks over `link`; `local` counts while Redis is away. Called inside a tokio runtime.
    pub fn new(link: Link, settings: Settings, local: Arc<MemoryStore>, clock: Clock) -> Self {
        let replicas = match settings.replicas {
            Some(replicas) => Arc::new(AtomicU32::new(replicas)),
            None => replicas::watch(link.clone(), &settings.prefix),
        };
        let seen = Seen::new(settings.deny_cache);
        let timeout = settings.timeout;
        let queue = batch::start(link.clone(), settings, clock.clone());
        Self {
            link,
            queue,
            seen,
            away: Away::new(local, replicas),
            clock,
            timeout,
            denied: events::denied_locally(),
        }
    }

    /// Waits until Redis can be asked; false when it cannot by then.
    pub async fn available_within(&self, time: Duration) -> bool {
        self.link.available_within(time).await
    }

    /// Asks Redis; `None` when it did not decide.
    async fn ask(&self, charges: &[Charge]) -> Option<Decision> {
        if !self.link.is_available() {
            return None;
        }
        let deadline = Instant::now() + self.timeout;
        let sent = self.clock.now();
        let groups = self.groups(charges);
        let mut verdicts = self.all(deadline, Op::Charge, &groups).await;
        let refused = |verdict: &Option<Verdict>| verdict.as_ref().is_some_and(|verdict| !verdict.admitted);
        let settled = verdicts.iter().all(|verdict| verdict.as_ref().is_some_and(|verdict| verdict.admitted));
        if !settled && groups.len() > 1 {
            self.refund(deadline, &groups, &mut verdicts).await;
        }
        let refused = verdicts.iter().any(refused);
        let mut used = vec![0; charges.len()];
        for (group, verdict) in groups.iter().zip(verdicts) {
            for (place, left) in group.places.iter().zip(verdict?.used) {
                used[*place] = left;
            }
        }
        self.seen.remember(charges, &used, !refused, sent, self.clock.now());
        Some(match refused {
            true => refused_by(charges, &used),
            false => Decision { refusal: None, standings: standings(charges, &used), degraded: false },
        })
    }

    /// Gives back what some slots charged and another refused, or did not decide.
    async fn refund(&self, deadline: Instant, groups: &[Group], verdicts: &mut [Option<Verdict>]) {
        let charged: Vec<usize> = (0..groups.len())
            .filter(|group| verdicts[*group].as_ref().is_some_and(|verdict| verdict.admitted))
            .collect();
        let owed: Vec<_> = charged.iter().map(|group| groups[*group].clone()).collect();
        for (group, refunded) in charged.into_iter().zip(self.all(deadline, Op::Refund, &owed).await) {
            // Unanswered, it is on its way, or runs out by itself: what was charged is the best that is known.
            if refunded.is_some() {
                verdicts[group] = refunded;
            }
        }
    }

    /// Asks about every group at once.
    async fn all(&self, deadline: Instant, op: Op, groups: &[Group]) -> Vec<Option<Verdict>> {
        if let [group] = groups {
            return vec![self.one(deadline, op, group.charges.clone()).await];
        }
        let asked = groups.iter().map(|group| self.one(deadline, op, group.charges.clone()));
        futures_util::future::join_all(asked).await
    }

    async fn one(&self, deadline: Instant, op: Op, charges: Vec<Charge>) -> Option<Verdict> {
        let (reply, verdict) = oneshot::channel();
        let asked = async {
            self.queue.send(Entry { op, charges, reply }).await.ok()?;
            verdict.await.ok()
        };
        timeout_at(deadline, asked).await.ok()?
    }

    fn groups(&self, charges: &[Charge]) -> Vec<Group> {
        if self.link.topology() != Topology::Cluster {
            let places = (0..charges.len()).collect();
            return vec![Group { slot: 0, places, charges: charges.to_vec() }];
        }
        let mut groups: Vec<Group> = Vec::new();
        for (place, charge) in charges.iter().enumerate() {
            let slot = charge.key.slot();
            match groups.iter_mut().find(|group| group.slot == slot) {
                Some(group) => {
                    group.places.push(place);
                    group.charges.push(*charge);
                }
                None => groups.push(Group { slot, places: vec![place], charges: vec![*charge] }),
            }
        }
        groups
    }
}

/// Charges that can be decided together.
#[derive(Debug, Clone)]
struct Group {
    slot: u16,
    /// Their places in the check.
    places: Vec<usize>,
    charges: Vec<Charge>,
}

impl Store for RedisStore {
    async fn check(&self, check: &Check<'_>) -> Result<Decision, StoreError> {
        check.fits()?;
        if check.counters.is_empty() {
            return Ok(Decision::unlimited());
        }
        let charges = charges(check);
        if let Some(refusal) = self.seen.refusal(&charges, self.clock.now()) {
            self.denied.increment(1);
            return Ok(refusal);
        }
        let span = child_span!("redis.eval", otel.kind = "client", db.system = "redis");
        match self.ask(&charges).instrument(span).await {
            Some(decision) => Ok(decision),
            None => Ok(self.away.decide(check)),
        }
    }
}

#[cfg(test)]
mod tests;
