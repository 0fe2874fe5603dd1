//! Three replicas, one of which becomes ten times slower: how much it is sent, and what the slowest messages take.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result};
use tokio::{
    runtime::Runtime,
    task::JoinSet,
    time::{Instant, sleep_until},
};

use crate::{
    child::Child,
    contestants::{Contestant, Sender},
    options::Options,
};

const REPLICAS: usize = 3;
/// How many times as long the slow one takes.
const FACTOR: u32 = 10;
/// How long a new contestant sends before it is measured: connections are new, latencies not known.
const WARM_UP: Duration = Duration::from_secs(1);
/// Whose messages belong together where that counts.
const USERS: u64 = 10_000;

/// What one phase showed.
#[derive(Debug, Clone)]
pub(crate) struct Phase {
    pub(crate) messages: usize,
    pub(crate) failed: usize,
    /// What the replicas received: more than was sent where messages were sent twice.
    pub(crate) received: u64,
    /// The share of messages that the slow one received; that of the busiest while all are healthy.
    pub(crate) share: f64,
    /// Milliseconds.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

/// What one contestant did in one round.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) healthy: Phase,
    pub(crate) slow: Phase,
}

/// Samples of each round, by contestant.
pub(crate) type Slows = BTreeMap<Contestant, Vec<Sample>>;

pub(crate) fn run(options: &Options, runtime: &Runtime) -> Result<Slows> {
    let (mut replicas, mut addresses) = (Vec::new(), Vec::new());
    for _ in 0..REPLICAS {
        let (service, places) = (options.service.to_string(), options.places.to_string());
        let (replica, address) = Child::start(&["replica", &service, &places])?;
        replicas.push(replica);
        addresses.push(address);
    }
    let mut slows = Slows::new();
    for round in 0..options.rounds {
        for turn in 0..Contestant::ALL.len() {
            let contestant = Contestant::ALL[(turn + round) % Contestant::ALL.len()];
            let slow = round % REPLICAS;
            let sender = runtime.block_on(contestant.connect(&addresses)).context(contestant.name())?;
            runtime.block_on(send(&sender, options.rate, WARM_UP))?;
            let phase = |replicas: &mut [Child], of| {
                replicas.iter_mut().try_for_each(|replica| replica.number("count").map(drop))?;
                let latencies = runtime.block_on(send(&sender, options.rate, options.phase))?;
                phase(replicas, &latencies, of)
            };
            let healthy = phase(&mut replicas, None)?;
            replicas[slow].number(&format!("factor {FACTOR}"))?;
            let slowed = phase(&mut replicas, Some(slow));
            replicas[slow].number("factor 1")?;
            let sample = Sample { healthy, slow: slowed? };
            eprintln!(
                "round {round}: {}: {:.1} % to the slow one, p99 {:.1} against {:.1} ms",
                contestant.name(),
                100.0 * sample.slow.share,
                sample.slow.p99,
                sample.healthy.p99
            );
            slows.entry(contestant).or_default().push(sample);
        }
    }
    Ok(slows)
}

/// Sends messages at random times, `rate` a second in the mean, and waits for all answers: how long each took from the
/// time at which it was due, and whether it was answered.
async fn send(sender: &Sender, rate: usize, length: Duration) -> Result<Vec<(Duration, bool)>> {
    let (mut calls, mut due) = (JoinSet::new(), Instant::now());
    let end = due + length;
    while due < end {
        sleep_until(due).await;
        let (mut sender, user) = (sender.clone(), rand::random_range(0..USERS));
        calls.spawn(async move {
            let sent = sender.send(user).await;
            (due.elapsed(), sent.is_ok())
        });
        // Poisson arrivals: exponential pauses.
        let pause = -(1.0 - rand::random::<f64>()).ln() / rate as f64;
        due += Duration::from_secs_f64(pause);
    }
    Ok(calls.join_all().await)
}

fn phase(replicas: &mut [Child], latencies: &[(Duration, bool)], slow: Option<usize>) -> Result<Phase> {
    let counts = replicas.iter_mut().map(|replica| replica.number("count")).collect::<Result<Vec<u64>>>()?;
    let looked_at = match slow {
        Some(slow) => counts[slow],
        None => counts.iter().copied().max().unwrap_or_default(),
    };
    let mut sorted: Vec<f64> = latencies.iter().map(|(took, _)| took.as_secs_f64() * 1e3).collect();
    sorted.sort_by(f64::total_cmp);
    let at = |hundredths: usize| sorted[(sorted.len() - 1) * hundredths / 100];
    let messages = latencies.len();
    Ok(Phase {
        messages,
        failed: latencies.iter().filter(|(_, answered)| !answered).count(),
        received: counts.iter().sum(),
        share: looked_at as f64 / messages as f64,
        p50: at(50),
        p99: at(99),
    })
}
