//! What the command line says.

use anyhow::{Context, Result, bail, ensure};

/// Shown by `--help`.
pub(crate) const HELP: &str = "\
ratelimiter [OPTION…]: CPU per check against the Go service that Envoy's users run

  --rounds N       rounds; in each every contestant runs once, one after the other (5)
  --checks N       checks of a contestant in one round (50000)
  --users N        different users and addresses, each with its own counters (20000)
  --in-flight N    calls that wait for an answer at once (32)
  --on-stream N    checks of the stream that wait for an answer at once (256)
  --only LIST      contestants, of peer,unary,stream (all)
  --set KEY=VALUE  a setting of `sightline serve ratelimiter`; may be repeated

SIGHTLINE_TEST_BINARY names the sightline binary; envoy-ratelimit is looked for in SIGHTLINE_TOOLS and PATH.
Exits with 1 when a target is missed.";

const CONTESTANTS: [&str; 3] = ["peer", "unary", "stream"];

/// Everything that can be chosen.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) rounds: usize,
    pub(crate) checks: usize,
    pub(crate) users: usize,
    pub(crate) in_flight: usize,
    pub(crate) on_stream: usize,
    pub(crate) only: Vec<String>,
    pub(crate) set: Vec<String>,
}

impl Options {
    /// `None`: help was asked for.
    pub(crate) fn read(mut arguments: impl Iterator<Item = String>) -> Result<Option<Self>> {
        let mut options = Self {
            rounds: 5,
            checks: 50_000,
            users: 20_000,
            in_flight: 32,
            on_stream: 256,
            only: CONTESTANTS.map(str::to_owned).to_vec(),
            set: Vec::new(),
        };
        while let Some(name) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{name} needs a value"));
            match name.as_str() {
                "--rounds" => options.rounds = count(&value()?)?,
                "--checks" => options.checks = count(&value()?)?,
                "--users" => options.users = count(&value()?)?,
                "--in-flight" => options.in_flight = count(&value()?)?,
                "--on-stream" => options.on_stream = count(&value()?)?,
                "--only" => options.only = value()?.split(',').map(str::to_owned).collect(),
                "--set" => options.set.push(value()?),
                "--help" | "-h" => return Ok(None),
                _ => bail!("{name} is not an option\n\n{HELP}"),
            }
        }
        for name in &options.only {
            ensure!(CONTESTANTS.contains(&name.as_str()), "{name:?} is none of {}", CONTESTANTS.join(", "));
        }
        Ok(Some(options))
    }
}

fn count(text: &str) -> Result<usize> {
    match text.parse() {
        Ok(count @ 1..) => Ok(count),
        _ => bail!("{text:?} is not a number from 1 on"),
    }
}
