//! What the command line says.

use anyhow::{Context, Result, bail};

/// Shown by `--help`.
pub(crate) const HELP: &str = "\
stats [OPTION…]: statistics on PostgreSQL against one INSERT per event and against COPY

  --rounds N    rounds; in each every contestant runs once, one after the other (3)
  --events N    events that the store and COPY take in a round (1000000)
  --inserts N   events that single INSERTs take in a round (10000)
  --users N     users they are of (100000)
  --seconds N   then also a steady rate for so long (0: not)
  --rate N      its events/s (20000)
  --json        print the result as one JSON object too

Exits with 1 when a target is missed.";

/// Everything that can be chosen.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) rounds: usize,
    pub(crate) events: usize,
    pub(crate) inserts: usize,
    pub(crate) users: usize,
    pub(crate) seconds: u64,
    pub(crate) rate: usize,
    pub(crate) json: bool,
}

impl Options {
    /// Reads the arguments; `None` when help was asked for.
    pub(crate) fn read(mut arguments: impl Iterator<Item = String>) -> Result<Option<Self>> {
        let mut options = Self {
            rounds: 3,
            events: 1_000_000,
            inserts: 10_000,
            users: 100_000,
            seconds: 0,
            rate: 20_000,
            json: false,
        };
        while let Some(name) = arguments.next() {
            let mut number = || -> Result<usize> {
                let value = arguments.next().with_context(|| format!("{name} needs a number"))?;
                value.parse().with_context(|| format!("{name}: {value:?} is not a number"))
            };
            match name.as_str() {
                "--help" | "-h" => return Ok(None),
                "--rounds" => options.rounds = number()?.max(1),
                "--events" => options.events = number()?.max(1),
                "--inserts" => options.inserts = number()?.max(1),
                "--users" => options.users = number()?.max(1),
                "--seconds" => options.seconds = number()? as u64,
                "--rate" => options.rate = number()?.max(40),
                "--json" => options.json = true,
                other => bail!("{other}: unknown; see --help"),
            }
        }
        Ok(Some(options))
    }
}
