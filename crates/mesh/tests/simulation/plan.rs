//! What a seed stands for: how the world is made, and what happens to it when.

use std::time::Duration;

use rand::{Rng, SeedableRng, rngs::SmallRng};
use sightline_mesh::client::{Balance, MeshOptions, PoolOptions, RetryBudgetOptions};

use crate::{faults::Fault, replica::HEALTH};

pub const MS: Duration = Duration::from_millis(1);
/// When the trouble begins: all is connected by then.
pub const BEGIN: Duration = Duration::from_secs(1);
/// When it ends.
pub const END: Duration = Duration::from_secs(6);
/// When messages begin to be sent, and when the last is: both sides of the trouble.
pub const LOAD: (Duration, Duration) = (Duration::from_millis(700), Duration::from_millis(6300));
/// Longer than any world takes. One that runs on hangs.
pub const LONGEST: Duration = Duration::from_secs(180);

/// How a replica serves.
#[derive(Debug, Clone, Copy)]
pub struct Serving {
    pub delay_ms: u64,
    pub lame_duck: Duration,
    pub drain_timeout: Duration,
    /// Zero: connections are not replaced.
    pub max_connection_age: Duration,
    /// Between a process that stopped and the next.
    pub downtime: Duration,
}

/// A world.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub replicas: Vec<Serving>,
    /// Nothing happens to the first replica.
    pub calm: bool,
    /// What each stream is granted.
    pub credits: u32,
    /// Between two looks at the network.
    pub tick: Duration,
    /// The longest that a packet takes, without trouble.
    pub latency: Duration,
    pub mesh: MeshOptions,
    pub pool: PoolOptions,
    /// The longest pause between two messages; most are shorter.
    pub pace_ms: u64,
    pub faults: Vec<(Duration, Fault)>,
    /// The servers are looked at too when the client has gone, which takes as long as their keepalive.
    pub patient: bool,
}

fn ms(rng: &mut SmallRng, range: std::ops::Range<u64>) -> Duration {
    Duration::from_millis(rng.random_range(range))
}

impl Plan {
    pub fn new(seed: u64) -> Self {
        let rng = &mut SmallRng::seed_from_u64(seed);
        let count = rng.random_range(3..=5);
        let ages = rng.random_bool(0.3);
        let mut replicas: Vec<Serving> = (0..count).map(|_| serving(rng, ages)).collect();
        let calm = rng.random_bool(0.4);
        if calm {
            replicas[0].max_connection_age = Duration::ZERO;
        }
        let mut plan = Self {
            seed,
            replicas,
            calm,
            // Where all of it may go to one replica, that has room for it.
            credits: if calm { 16 } else { rng.random_range(2..=8) },
            tick: ms(rng, 2..6),
            latency: ms(rng, 1..20),
            mesh: mesh(rng),
            pool: pool(rng, seed),
            pace_ms: rng.random_range(20..100),
            faults: Vec::new(),
            patient: seed % 32 == 5,
        };
        for replica in usize::from(calm)..count {
            plan.trouble(rng, |rng, at, faults| on_host(rng, replica, at, faults));
            plan.trouble(rng, |rng, at, faults| on_link(rng, replica, at, faults));
        }
        if !calm && rng.random_bool(0.3) {
            let (from, rate) = (ms(rng, 1000..4000), rng.random_range(0.0002..0.002));
            plan.faults.push((from, Fault::Loss(rate)));
            plan.faults.push((from + ms(rng, 200..2000), Fault::Loss(0.0)));
        }
        plan.faults.sort_by_key(|(at, _)| *at);
        plan
    }

    /// Randomness for one use of many.
    pub fn rng(&self, purpose: u64) -> SmallRng {
        SmallRng::seed_from_u64(self.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ purpose)
    }

    /// Whether a message that may be repeated and has time must be answered: each of its attempts goes to another replica,
    /// so that one meets the replica nothing happens to.
    pub fn must_answer(&self) -> bool {
        self.calm && self.replicas.len() <= self.pool.max_attempts
    }

    /// One fault after another.
    fn trouble(
        &mut self,
        rng: &mut SmallRng,
        fault: impl Fn(&mut SmallRng, Duration, &mut Vec<(Duration, Fault)>) -> Duration,
    ) {
        let mut at = BEGIN + ms(rng, 0..2000);
        while at < END {
            at = fault(rng, at, &mut self.faults) + ms(rng, 50..2500);
        }
    }
}

fn serving(rng: &mut SmallRng, ages: bool) -> Serving {
    Serving {
        delay_ms: rng.random_range(1..30),
        lame_duck: ms(rng, 0..400),
        drain_timeout: ms(rng, 100..1500),
        max_connection_age: if ages { ms(rng, 1000..4000) } else { Duration::ZERO },
        downtime: ms(rng, 0..1500),
    }
}

fn mesh(rng: &mut SmallRng) -> MeshOptions {
    let balance = if rng.random_bool(0.3) { Balance::RoundRobin } else { Balance::LeastLoaded };
    let mut mesh = MeshOptions { balance, ..MeshOptions::default() };
    mesh.health.service = Some(HEALTH.into());
    mesh.breaker.longest_ejection = Duration::from_secs(2);
    mesh.breaker.consecutive_failures = rng.random_range(2..6);
    if rng.random_bool(0.7) {
        mesh.transport.connect_timeout = 500 * MS;
        mesh.transport.keepalive_interval = 400 * MS;
        mesh.transport.keepalive_timeout = 400 * MS;
        mesh.reconnect.longest = 500 * MS;
        mesh.breaker.ejection = 300 * MS;
        mesh.breaker.longest_ejection = 600 * MS;
    }
    mesh
}

fn pool(rng: &mut SmallRng, seed: u64) -> PoolOptions {
    let mut pool = PoolOptions { seed: Some(seed), ..PoolOptions::default() };
    pool.max_streams = rng.random_range(1..=4);
    pool.idle = ms(rng, 300..5000);
    // Streams that are replaced all the time, or those that keep what happened to them.
    if rng.random_bool(0.4) {
        pool.max_age = ms(rng, 500..2000);
    }
    pool.budget = RetryBudgetOptions { ratio: 1.0, min_per_second: 100.0, burst: 1000.0 };
    pool
}

/// Something bad on a host from `at` on. Returns when it is over.
fn on_host(rng: &mut SmallRng, host: usize, at: Duration, faults: &mut Vec<(Duration, Fault)>) -> Duration {
    let short = at + ms(rng, 1..100);
    let end = at + ms(rng, 20..2000);
    let (begin, over, end) = match rng.random_range(0..10) {
        0 => (Fault::Kill(host), Fault::Start(host), end),
        1 => (Fault::PowerOff(host), Fault::Start(host), end),
        2 | 3 => (Fault::Drain(host), Fault::Nothing, end),
        4 => (Fault::Notice(host), Fault::Nothing, short),
        5 => (Fault::Slow(host, rng.random_range(100..2000)), Fault::Fast(host), end),
        6 => (Fault::Full(host, true), Fault::Full(host, false), end),
        7 => (Fault::Breaks(host, true), Fault::Breaks(host, false), short + ms(rng, 0..400)),
        8 => (Fault::Healthy(host, false), Fault::Healthy(host, true), end),
        _ => (Fault::Named(host, false), Fault::Named(host, true), end),
    };
    faults.extend([(at, begin), (end.min(END), over)]);
    end
}

/// The same between a host and the client.
fn on_link(rng: &mut SmallRng, host: usize, at: Duration, faults: &mut Vec<(Duration, Fault)>) -> Duration {
    let end = at + ms(rng, 10..3000);
    let (begin, over) = match rng.random_range(0..5) {
        0 => (Fault::Partition(host), Fault::Mend(host)),
        1 => (Fault::PartitionTo(host), Fault::Mend(host)),
        2 => (Fault::PartitionFrom(host), Fault::Mend(host)),
        3 => (Fault::Hold(host), Fault::Release(host)),
        _ => (Fault::Latency(host, ms(rng, 20..400)), Fault::Latency(host, ms(rng, 1..20))),
    };
    faults.extend([(at, begin), (end.min(END), over)]);
    end
}
