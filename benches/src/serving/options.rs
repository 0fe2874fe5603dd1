//! What the command line says.

use anyhow::{Context, Result, bail};

/// Shown by `--help`.
pub(crate) const HELP: &str = "\
serving [OPTION…]: end to end against the usual Python way, a bare libtorch loop, and repeats

  --rounds N       rounds; in each every contestant runs once, one after the other (5)
  --frames N       unique frames of a contestant in one round (240)
  --repeats N      repeated frames of a contestant in one round (10000)
  --in-flight N    frames that a contestant has unanswered at once (16)
  --only LIST      contestants, of mesh,peer,bare,repeats (all); targets of the others are not looked at
  --peer W,T,O     the peer with W workers, T threads a pass and offload O (0 or 1), instead of the best of several
  --set KEY=VALUE  a setting of `sightline dev`; may be repeated
  --threads        show which threads of sightline the time went to
  --json           print the result as one JSON object

Exits with 1 when a target is missed.";

/// How the peer runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PeerSettings {
    /// Processes.
    pub(crate) workers: usize,
    /// Threads of one forward pass.
    pub(crate) threads: usize,
    /// Images on a thread pool instead of in the event loop.
    pub(crate) offload: bool,
}

impl std::fmt::Display for PeerSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = if self.offload { "thread pool" } else { "event loop" };
        write!(f, "{} workers, {} threads a pass, {place}", self.workers, self.threads)
    }
}

/// Everything that can be chosen.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    pub(crate) rounds: usize,
    pub(crate) frames: usize,
    pub(crate) repeats: usize,
    pub(crate) in_flight: usize,
    pub(crate) only: Vec<String>,
    pub(crate) peer: Option<PeerSettings>,
    pub(crate) set: Vec<String>,
    pub(crate) threads: bool,
    pub(crate) json: bool,
}

/// Names for `--only`.
const CONTESTANTS: [&str; 4] = ["mesh", "peer", "bare", "repeats"];

impl Options {
    /// Reads the arguments; `None` when help was asked for.
    pub(crate) fn read(mut arguments: impl Iterator<Item = String>) -> Result<Option<Self>> {
        let mut options = Self {
            rounds: 5,
            frames: 240,
            repeats: 10_000,
            in_flight: 16,
            only: CONTESTANTS.map(str::to_owned).to_vec(),
            peer: None,
            set: Vec::new(),
            threads: false,
            json: false,
        };
        while let Some(name) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{name} needs a value"));
            match name.as_str() {
                "--rounds" => options.rounds = count(&value()?)?,
                "--frames" => options.frames = count(&value()?)?,
                "--repeats" => options.repeats = count(&value()?)?,
                "--in-flight" => options.in_flight = count(&value()?)?,
                "--only" => options.only = names(&value()?)?,
                "--peer" => options.peer = Some(peer(&value()?)?),
                "--set" => options.set.push(value()?),
                "--threads" => options.threads = true,
                "--json" => options.json = true,
                "--help" | "-h" => return Ok(None),
                _ => bail!("{name} is not an option\n\n{HELP}"),
            }
        }
        Ok(Some(options))
    }

    /// Whether a contestant takes part.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.only.iter().any(|only| only == name)
    }
}

fn count(text: &str) -> Result<usize> {
    match text.parse() {
        Ok(count @ 1..) => Ok(count),
        _ => bail!("{text:?} is not a number from 1 on"),
    }
}

fn names(text: &str) -> Result<Vec<String>> {
    let names: Vec<String> = text.split(',').map(str::to_owned).collect();
    match names.iter().find(|name| !CONTESTANTS.contains(&name.as_str())) {
        Some(name) => bail!("{name:?} is none of {}", CONTESTANTS.join(", ")),
        None => Ok(names),
    }
}

fn peer(text: &str) -> Result<PeerSettings> {
    let numbers: Vec<usize> = text.split(',').filter_map(|number| number.parse().ok()).collect();
    match numbers[..] {
        [workers, threads, offload] if workers > 0 && threads > 0 && offload < 2 => {
            Ok(PeerSettings { workers, threads, offload: offload == 1 })
        }
        _ => bail!("--peer wants three numbers such as 2,1,0, not {text:?}"),
    }
}
