//! Many worlds, each in a process of its own: what it leaves behind touches no other.

use std::{
    collections::BTreeMap,
    fmt,
    ops::Range,
    process::Command,
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use sightline_mesh::client::State;

use crate::{
    ledger::{Kind, Ledger},
    plan::Plan,
    plant::Plant,
};

/// Which world to run.
pub const SEED: &str = "SIGHTLINE_SIM_SEED";
/// The bug that is put into it.
pub const PLANT: &str = "SIGHTLINE_SIM_PLANT";

/// A long run says that it goes on after so many worlds.
const SAY: u64 = 500;

/// A number from the environment.
pub fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

/// A world that has been run.
pub struct World {
    pub seed: u64,
    /// No promise was broken.
    pub held: bool,
    /// All that it said.
    pub said: String,
}

impl World {
    /// Lines that begin with `word`, without it.
    fn lines<'a>(&'a self, word: &'a str) -> impl Iterator<Item = &'a str> {
        self.said.lines().filter_map(move |line| line.strip_prefix(word)?.strip_prefix(' '))
    }

    /// The hash of everything that happened.
    pub fn trace(&self) -> Option<&str> {
        self.lines("trace").next()
    }
}

/// Runs one world to its end.
pub fn child(seed: u64, plant: Option<Plant>) -> World {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "one_world", "--nocapture", "--test-threads=1"]).env(SEED, seed.to_string());
    match plant {
        Some(plant) => command.env(PLANT, format!("{plant:?}")),
        None => command.env_remove(PLANT),
    };
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = format!("{}{}", text(&output.stdout), text(&output.stderr));
    World { seed, held: output.status.success(), said }
}

/// Runs worlds on all processors. What came of them together, and the seeds of those that failed.
pub fn run(seeds: Range<u64>) -> (Tally, Vec<u64>) {
    let (since, next) = (Instant::now(), AtomicU64::new(seeds.start));
    let result = Mutex::new((Tally::default(), Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let world = child(seed, None);
                    let (tally, failed) = &mut *result.lock().unwrap();
                    tally.add(&world);
                    if !world.held {
                        eprintln!("{}", world.said);
                        failed.push(seed);
                    }
                    if tally.worlds % SAY == 0 {
                        eprintln!("{} worlds, {} failed, {:?}", tally.worlds, failed.len(), since.elapsed());
                    }
                }
            });
        }
    });
    let (mut tally, failed) = result.into_inner().unwrap();
    tally.took = since.elapsed();
    (tally, failed)
}

/// Says for the parent process what came of a world.
pub fn report(plan: &Plan, ledger: &Ledger) {
    println!("\ntrace {:016x}", ledger.hash());
    for ((kind, outcome), count) in ledger.tally() {
        println!("count {kind:?} {outcome}: {count}");
    }
    for state in State::ALL {
        let visits = ledger.visits().get(&state).copied().unwrap_or(0);
        println!("count endpoints {}: {visits}", state.name());
    }
    println!("count worlds with one calm replica: {}", usize::from(plan.must_answer()));
    println!("count faults: {}", plan.faults.len());
}

/// What came of many worlds.
#[derive(Default)]
pub struct Tally {
    worlds: u64,
    took: Duration,
    counts: BTreeMap<String, u64>,
}

impl Tally {
    fn add(&mut self, world: &World) {
        self.worlds += 1;
        for line in world.lines("count") {
            let (what, count) = line.rsplit_once(": ").unwrap();
            *self.counts.entry(what.to_owned()).or_default() += count.parse::<u64>().unwrap();
        }
    }

    /// The worlds were worth something: most messages came through, and what is to be tried was.
    pub fn check(&self) {
        let count = |what: &str| self.counts.get(what).copied().unwrap_or(0);
        for kind in Kind::ALL {
            let of_kind = |what: &&String| what.starts_with(&format!("{kind:?} "));
            let all: u64 = self.counts.iter().filter(|(what, _)| of_kind(what)).map(|(_, count)| count).sum();
            let answered = count(&format!("{kind:?} answered"));
            let least = if kind.may_repeat() { 85 } else { 70 };
            assert!(answered * 100 >= all * least, "{kind:?}: only {answered} of {all} are answered");
        }
        if self.worlds >= 50 {
            // Idle is before the first look, and who is no longer named is not looked at.
            let seen = |state: &State| !matches!(state, State::Idle | State::Draining);
            for state in State::ALL.into_iter().filter(seen) {
                assert!(count(&format!("endpoints {}", state.name())) > 0, "no endpoint was ever {state:?}");
            }
        }
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} worlds in {:.1} s", self.worlds, self.took.as_secs_f64())?;
        self.counts.iter().try_for_each(|(what, count)| writeln!(f, "  {what}: {count}"))
    }
}
