//! Statistics on PostgreSQL: our store against one INSERT per event and against COPY of the raw rows.
//!
//! All three write the same events into the same PostgreSQL, into tables with the same unique index, in turns:
//! - `store`: [`sightline_stats`]' PostgreSQL store, called as the service calls it, in batches as ingest sends them:
//!   dedupe, hourly counts per user, acknowledged after the commit;
//! - `insert`: one INSERT per event on one connection, prepared, each acknowledged: the usual simple way;
//! - `copy`: binary COPY in batches of 5,000, without dedupe or counts: about the fastest that rows go in.
//!
//! Events are made before the clock starts. CPU is that of this process and of PostgreSQL together. With `--seconds`, the
//! store also takes `--rate` events/s for that long, and its memory is watched.

mod contestants;
mod events;
mod options;
mod steady;

use std::{
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use options::Options;
use sightline_servers::Postgres;
use sightline_stats::store::{Event, Store};
use tokio::task::block_in_place;

/// Against whom, how many times its events/s are asked for, and what is aimed at.
const TARGETS: [(&str, f64, f64); 2] = [("insert", 12.0, 20.0), ("copy", 0.25, 0.25)];

fn main() -> ExitCode {
    let options = match Options::read(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print(options::HELP);
            return ExitCode::SUCCESS;
        }
        Err(error) => return fail(&error),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    match runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(run(&options))) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("stats: {error:#}");
    ExitCode::from(2)
}

#[allow(clippy::print_stdout)] // a benchmark's result
pub(crate) fn print(text: &str) {
    println!("{text}");
}

/// What one contestant did in one round.
#[derive(Debug, Clone, Copy)]
struct Measured {
    events: usize,
    took: Duration,
    cpu: Duration,
}

impl Measured {
    fn per_second(self) -> f64 {
        self.events as f64 / self.took.as_secs_f64()
    }

    fn cpu_micros(self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.events as f64
    }
}

/// CPU time of this process and its PostgreSQL.
fn cpu(postgres: &Postgres) -> Duration {
    postgres.server.cpu() + events::own_cpu()
}

async fn run(options: &Options) -> Result<bool> {
    // What a small dedicated server would have; the rest is as it comes, fsync and all.
    let settings = ["shared_buffers=512MB", "max_wal_size=4GB", "max_connections=50"];
    let postgres = block_in_place(|| Postgres::start(&settings))?;
    let mut results: [Vec<Measured>; 3] = Default::default();
    for round in 0..options.rounds {
        let url = |name: &str| block_in_place(|| postgres.database(&format!("round_{round}_{name}")));
        let all = events::make(options.events, options.users);
        let few = &all[..options.inserts.min(all.len())];

        let store = Arc::new(contestants::store(&url("store")?).await?);
        results[0].push(measure(&postgres, &all, contestants::record(&store, &all)).await?);
        store.close().await;
        let client = contestants::plain(&url("insert")?).await?;
        results[1].push(measure(&postgres, few, contestants::insert(&client, few)).await?);
        let client = contestants::plain(&url("copy")?).await?;
        results[2].push(measure(&postgres, &all, contestants::copy(&client, &all)).await?);
    }
    let met = report(options, &results);
    if options.seconds > 0 {
        let url = block_in_place(|| postgres.database("steady"))?;
        steady::run(options, &postgres, &url).await?;
    }
    Ok(met)
}

/// Runs what stores all events and gives how many it stored.
async fn measure(
    postgres: &Postgres,
    all: &[Event],
    work: impl Future<Output = Result<u64>>,
) -> Result<Measured> {
    let (before, since) = (cpu(postgres), Instant::now());
    let stored = work.await?;
    let (took, after) = (since.elapsed(), cpu(postgres));
    ensure!(stored == all.len() as u64, "{stored} of {} events were stored", all.len());
    Ok(Measured { events: all.len(), took, cpu: after.saturating_sub(before) })
}

fn report(options: &Options, results: &[Vec<Measured>; 3]) -> bool {
    let middle = |values: Vec<f64>| {
        let mut values = values;
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    let speed = |at: usize| middle(results[at].iter().map(|one| one.per_second()).collect());
    let cpu = |at: usize| middle(results[at].iter().map(|one| one.cpu_micros()).collect());
    print(&format!("{} rounds, {} events, {} users; medians", options.rounds, options.events, options.users));
    print("           events/s  µs CPU/event");
    for (at, name) in ["store", "insert", "copy"].iter().enumerate() {
        print(&format!("{name:<8} {:>10.0} {:>13.1}", speed(at), cpu(at)));
    }
    let mut met = true;
    for (at, (name, least, aim)) in TARGETS.iter().enumerate() {
        let (ratio, of_cpu) = (speed(0) / speed(at + 1), cpu(at + 1) / cpu(0));
        met &= ratio >= *least;
        let verdict = if ratio >= *least { "met" } else { "MISSED" };
        print(&format!(
            "store : {name:<6} {ratio:>6.2}× events/s ({verdict}: at least {least}, aim {aim}); {of_cpu:.2}× events per CPU"
        ));
    }
    if options.json {
        let one = |at: usize| serde_json::json!({ "events_per_second": speed(at), "cpu_micros": cpu(at) });
        print(&serde_json::json!({ "store": one(0), "insert": one(1), "copy": one(2) }).to_string());
    }
    met
}
