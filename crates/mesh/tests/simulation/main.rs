//! The mesh on a simulated network: each seed is a world of a few replicas, a client and a row of faults, in which some
//! promises must hold ([`ledger`]). The same seed is the same world, event by event.
//!
//! `SIGHTLINE_SIM_SEEDS` sets how many worlds are tried and `SIGHTLINE_SIM_FROM` which is the first. A world that breaks a
//! promise says so and how to run it alone; `SIGHTLINE_SIM_TRACE=1` then shows everything that happens in it.

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)] // a panic is a failed test, figures are of use

mod batch;
mod client;
mod entropy;
mod faults;
mod lane;
mod ledger;
mod network;
mod plan;
mod plant;
mod replica;
#[path = "../scripted/mod.rs"]
mod scripted;
mod settle;
mod trace;
mod world;

use plant::Plant;

/// How many worlds are tried where nobody says: as many as two slow cores finish in a minute.
const SEEDS: u64 = 120;
/// How many worlds a planted bug may stay unseen.
const PATIENCE: u64 = 60;

/// Not a test by itself: one world, in the process that [`batch::child`] starts, or by hand for a seed that failed.
#[test]
fn one_world() {
    if let Some(seed) = batch::number(batch::SEED) {
        world::alone(seed);
    }
}

#[test]
fn whatever_happens_to_the_network_the_promises_hold() {
    let first = batch::number("SIGHTLINE_SIM_FROM").unwrap_or(0);
    let count = batch::number("SIGHTLINE_SIM_SEEDS").unwrap_or(SEEDS);
    let (tally, failed) = batch::run(first..first + count);
    println!("{tally}");
    assert!(failed.is_empty(), "worlds that broke a promise: {failed:?}");
    tally.check();
}

#[test]
fn the_same_seed_is_the_same_world() {
    let mut hashes = Vec::new();
    for seed in [1, 2, 3] {
        let (first, second) = (batch::child(seed, None), batch::child(seed, None));
        assert!(first.trace().is_some(), "{}", first.said);
        assert_eq!(first.trace(), second.trace(), "seed {seed}");
        hashes.push(first.trace().map(str::to_owned));
    }
    hashes.dedup();
    assert_eq!(hashes.len(), 3, "and another seed another one");
}

#[test]
fn a_planted_bug_is_found() {
    for plant in Plant::ALL {
        let found = (0..PATIENCE).map(|seed| batch::child(seed, Some(plant))).find(|world| !world.held);
        let world = found.unwrap_or_else(|| panic!("{plant:?} is not found in {PATIENCE} worlds"));
        println!("{plant:?}: found by seed {}", world.seed);
        assert!(world.said.contains(plant.breaks()), "{plant:?}: not {:?}\n{}", plant.breaks(), world.said);
    }
}
