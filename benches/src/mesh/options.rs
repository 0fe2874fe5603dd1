//! What the command line says.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// Shown by `--help`.
pub(crate) const HELP: &str = "\
mesh [OPTION…]: what the mesh layer costs, how it avoids a slow replica, and what tracing costs

  --only LIST        parts, of cost,slow,traces (all)
  --rounds N         rounds of each part; in each every contestant runs once, one after the other (5)
  --json             print the result as one JSON object
 cost: the same calls to the same server over tonic's channel and over the mesh's
  --callers LIST     callers at once (1,50)
  --length MS        how long one contestant calls in one round (1500)
 slow: three replicas, one of which becomes ten times slower
  --rate N           messages a second, at random times (800)
  --service US       the mean time that a healthy replica takes for one (10000)
  --places N         messages that a replica works on at once (32)
  --phase MS         how long all are healthy, and how long one is slow, in one round (5000)
 traces: `sightline dev` without traces, with one in a hundred, and with all
  --repeats N        repeated frames of a contestant in one round (20000)
  --frames N         unique frames of a contestant in one round (500)
  --in-flight N      frames that are unanswered at once (16)
  --discard          one in a hundred go to a collector that discards them too, not to Jaeger
  --set KEY=VALUE    a setting of `sightline dev`; may be repeated

SIGHTLINE_TEST_BINARY names the sightline binary; jaeger is looked for in SIGHTLINE_TOOLS and PATH.
Exits with 1 when a target is missed.";

const PARTS: [&str; 3] = ["cost", "slow", "traces"];

/// Everything that can be chosen.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) only: Vec<String>,
    pub(crate) rounds: usize,
    pub(crate) json: bool,
    pub(crate) callers: Vec<usize>,
    pub(crate) length: Duration,
    pub(crate) rate: usize,
    pub(crate) service: usize,
    pub(crate) places: usize,
    pub(crate) phase: Duration,
    pub(crate) repeats: usize,
    pub(crate) frames: usize,
    pub(crate) in_flight: usize,
    pub(crate) discard: bool,
    pub(crate) set: Vec<String>,
}

impl Options {
    /// `None`: help was asked for.
    pub(crate) fn read(mut arguments: impl Iterator<Item = String>) -> Result<Option<Self>> {
        let mut options = Self::default();
        while let Some(name) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{name} needs a value"));
            let milliseconds = |count: usize| Duration::from_millis(count as u64);
            match name.as_str() {
                "--only" => options.only = value()?.split(',').map(str::to_owned).collect(),
                "--rounds" => options.rounds = count(&value()?)?,
                "--json" => options.json = true,
                "--callers" => options.callers = value()?.split(',').map(count).collect::<Result<_>>()?,
                "--length" => options.length = milliseconds(count(&value()?)?),
                "--rate" => options.rate = count(&value()?)?,
                "--service" => options.service = count(&value()?)?,
                "--places" => options.places = count(&value()?)?,
                "--phase" => options.phase = milliseconds(count(&value()?)?),
                "--repeats" => options.repeats = count(&value()?)?,
                "--frames" => options.frames = count(&value()?)?,
                "--in-flight" => options.in_flight = count(&value()?)?,
                "--discard" => options.discard = true,
                "--set" => options.set.push(value()?),
                "--help" | "-h" => return Ok(None),
                _ => bail!("{name} is not an option\n\n{HELP}"),
            }
        }
        for part in &options.only {
            ensure!(PARTS.contains(&part.as_str()), "{part:?} is none of {}", PARTS.join(", "));
        }
        Ok(Some(options))
    }

    /// Whether a part is wanted.
    pub(crate) fn has(&self, part: &str) -> bool {
        self.only.iter().any(|only| only == part)
    }
}

impl Default for Options {
    fn default() -> Self {
        Self {
            only: PARTS.map(str::to_owned).to_vec(),
            rounds: 5,
            json: false,
            callers: vec![1, 50],
            length: Duration::from_millis(1500),
            rate: 800,
            service: 10_000,
            places: 32,
            phase: Duration::from_secs(5),
            repeats: 20_000,
            frames: 500,
            in_flight: 16,
            discard: false,
            set: Vec::new(),
        }
    }
}

fn count(text: &str) -> Result<usize> {
    match text.parse() {
        Ok(count @ 1..) => Ok(count),
        _ => bail!("{text:?} is not a number from 1 on"),
    }
}
