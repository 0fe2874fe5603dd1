//! What was acknowledged survives SIGKILL, and is still counted once when it is sent again.

#![allow(clippy::unwrap_used)] // helpers of tests: a panic is a failed test

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
};

use sightline_stats::{
    Durability, StatsConfig,
    store::{Event, Hour, Query, Store, sqlite::SqliteStore},
};
use uuid::Uuid;

/// Set for the process that is killed: the folder of the database.
const FOLDER: &str = "STATS_KILL_TEST_FOLDER";
const BATCH: u128 = 100;

fn batch(n: u128) -> Vec<Event> {
    let event = |n: u128| Event {
        id: Uuid::from_u128(n + 1),
        hour: Hour(480_000),
        tenant: String::new(),
        user: format!("user-{}", n % 1_000),
        application: String::new(),
        level: 1,
        source: 1,
    };
    (n * BATCH..(n + 1) * BATCH).map(event).collect()
}

async fn open(folder: &Path) -> SqliteStore {
    // The weaker promise: nothing but the kernel keeps the commit.
    let config = StatsConfig { durability: Durability::Process, ..StatsConfig::default() };
    SqliteStore::open(&config, folder).await.unwrap()
}

/// The process that is killed; does nothing when it runs as a test of its own.
#[tokio::test(flavor = "multi_thread")]
async fn writer_process() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let store = open(Path::new(&folder)).await;
    for n in 0.. {
        store.record(batch(n)).await.unwrap();
        println!("acknowledged {n}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn acknowledged_events_survive_sigkill_and_count_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut sent: u128 = 0;
    for round in 1..=3 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["writer_process", "--exact", "--nocapture"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // Every round goes further than the one before, whose batches come again first.
        let acknowledged = loop {
            let line = lines.next().expect("the writer lives").unwrap();
            let n = line.split_once("acknowledged ").and_then(|(_, n)| n.parse::<u128>().ok());
            if let Some(n) = n.filter(|n| *n >= sent + 15 * round) {
                break n;
            }
        };
        child.kill().unwrap();
        child.wait().unwrap();
        let last = lines
            .map_while(Result::ok)
            .filter_map(|line| line.split_once("acknowledged ").and_then(|(_, n)| n.parse::<u128>().ok()));
        sent = last.last().unwrap_or(acknowledged) + 1;

        let store = open(folder.path()).await;
        let counted = u128::from(total(&store).await);
        // At most the one batch that was in flight is more than what was acknowledged.
        assert!((sent * BATCH..=(sent + 1) * BATCH).contains(&counted), "{counted} of {sent} batches");
        let mut missing = 0;
        for n in 0..=sent {
            let recorded = store.record(batch(n)).await.unwrap();
            missing += if n < sent { recorded.stored } else { 0 };
        }
        assert_eq!(missing, 0, "acknowledged events that were gone");
        assert_eq!(u128::from(total(&store).await), (sent + 1) * BATCH);
        store.close().await;
    }
}

async fn total(store: &SqliteStore) -> u64 {
    store.query(Query { limit: 1, ..Query::default() }).await.unwrap().rows[0].frames
}
