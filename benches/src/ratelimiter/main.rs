//! Rate limits: side by side with the service that Envoy's users run.
//!
//! In one run, in turns, on the same Redis, called from this process by the same client, each check by two limits:
//! - `peer`: the Go service (github.com/envoyproxy/ratelimit) with its defaults, over Envoy's unary call;
//! - `unary`: `sightline serve ratelimiter`, over the same call;
//! - `stream`: the same over `CheckStream`, as ingest calls it.
//!
//! CPU per check, of the server and of Redis, is read from /proc before and after: on a machine that is not ours alone
//! it is steadier than throughput. Everybody is under the limit: refusals, which ours remembers, would flatter it.

mod contestants;
mod load;
mod options;
mod report;

use std::{process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use contestants::Contestants;
use options::Options;

fn main() -> ExitCode {
    let options = match Options::read(std::env::args().skip(1)) {
        Ok(Some(options)) => options,
        Ok(None) => {
            print(options::HELP);
            return ExitCode::SUCCESS;
        }
        Err(error) => return fail(&error),
    };
    // One thread: a client that spreads over cores would only take them from what is measured.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.map_err(anyhow::Error::from).and_then(|runtime| run(&options, &runtime)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("ratelimiter: {error:#}");
    ExitCode::from(2)
}

#[allow(clippy::print_stdout)] // a benchmark's result
fn print(text: &str) {
    println!("{text}");
}

/// What one contestant did in one round.
#[derive(Debug, Clone, Default)]
pub(crate) struct Round {
    pub(crate) checks: usize,
    pub(crate) wall: Duration,
    pub(crate) server: Duration,
    pub(crate) redis: Duration,
    /// Ascending.
    pub(crate) latencies: Vec<Duration>,
}

fn run(options: &Options, runtime: &tokio::runtime::Runtime) -> Result<bool> {
    let contestants = Contestants::start(options)?;
    let mut results: Vec<(&str, Vec<Round>)> =
        options.only.iter().map(|name| (name.as_str(), Vec::new())).collect();
    for round in 0..=options.rounds {
        for (name, rounds) in &mut results {
            let checks = if round == 0 { options.checks / 10 } else { options.checks };
            let server = contestants.server(name);
            let before = (server.cpu(), contestants.redis.server.cpu());
            let (wall, latencies) = runtime
                .block_on(load::drive(name, contestants.address(name), checks, options))
                .with_context(|| format!("{name}: the calls failed"))?;
            let after = (server.cpu(), contestants.redis.server.cpu());
            eprintln!("round {round}: {name} took {wall:.2?}");
            // The first one warms everybody up.
            if round > 0 {
                let (server, redis) = (after.0 - before.0, after.1 - before.1);
                rounds.push(Round { checks, wall, server, redis, latencies });
            }
        }
    }
    let report = report::Report::of(&results);
    print(&report.text());
    Ok(report.met())
}
