//! A backup as docs/CLUSTER.md describes it, taken while events are written: what is restored is whole, and events that are
//! sent again count once.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // helpers of tests: a panic is a failed test

use std::{
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use sightline_config::ServerUrl;
use sightline_servers::{Postgres, find, there};
use sightline_stats::{
    StatsConfig,
    store::{
        Event, Group, Hour, Query, Store,
        postgres::{PostgresStore, migrations},
        sqlite::SqliteStore,
    },
};
use sightline_telemetry::dependencies::Dependencies;
use tokio::{
    task::{JoinHandle, block_in_place},
    time::sleep,
};
use uuid::Uuid;

const BATCH: u64 = 100;
const USERS: u64 = 50;
/// What is there before the backup begins, so that it takes a while.
const BEFORE: u64 = 100;

fn batch(n: u64) -> Vec<Event> {
    let event = |n: u64| Event {
        id: Uuid::from_u128(u128::from(n) + 1),
        hour: Hour(480_000 + i64::try_from(n % 3).unwrap()),
        tenant: String::new(),
        user: format!("user-{}", n % USERS),
        application: String::new(),
        level: 1,
        source: 1,
    };
    (n * BATCH..(n + 1) * BATCH).map(event).collect()
}

/// Frames of every user.
async fn frames(store: &impl Store) -> Vec<u64> {
    let query = Query { groups: vec![Group::User], limit: 1_000, ..Query::default() };
    store.query(query).await.unwrap().rows.iter().map(|row| row.frames).collect()
}

/// Writes batch after batch until told to stop; says how many there are.
struct Writer {
    written: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Writer {
    async fn start(store: Arc<impl Store>) -> Self {
        let (written, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let task = tokio::spawn({
            let (written, stop) = (Arc::clone(&written), Arc::clone(&stop));
            async move {
                while !stop.load(Ordering::SeqCst) {
                    store.record(batch(written.load(Ordering::SeqCst))).await.unwrap();
                    written.fetch_add(1, Ordering::SeqCst);
                }
            }
        });
        let writer = Self { written, stop, task };
        while writer.written() < BEFORE {
            sleep(Duration::from_millis(5)).await;
        }
        writer
    }

    fn written(&self) -> u64 {
        self.written.load(Ordering::SeqCst)
    }

    /// How many batches there are in the end: a few that no backup can have were written after it.
    async fn stop(self) -> u64 {
        let backup = self.written();
        while self.written() < backup + 5 {
            sleep(Duration::from_millis(5)).await;
        }
        self.stop.store(true, Ordering::SeqCst);
        self.task.await.unwrap();
        self.written.load(Ordering::SeqCst)
    }
}

/// What was restored is all that was acknowledged before the backup, in whole batches; sent again, everything counts once.
async fn restored(store: &impl Store, at_least: u64, all: u64) {
    let counted = frames(store).await;
    let each = counted[0];
    assert_eq!(counted, vec![each; usize::try_from(USERS).unwrap()], "whole batches");
    assert!((at_least..all).contains(&(each * USERS / BATCH)), "{each} frames of each user");
    for n in 0..all {
        store.record(batch(n)).await.unwrap();
    }
    assert_eq!(frames(store).await, vec![all * BATCH / USERS; usize::try_from(USERS).unwrap()]);
}

fn config(url: &str) -> StatsConfig {
    let mut config = StatsConfig { postgres_url: Some(ServerUrl::new(url)), ..StatsConfig::default() };
    config.postgres_commit_max_wait.0 = Duration::from_millis(2);
    config
}

async fn open(url: &str) -> PostgresStore {
    PostgresStore::open(&config(url), &Dependencies::default()).await.unwrap()
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dump_of_postgresql_taken_under_load_is_restored_elsewhere() {
    let Some(first) = there(block_in_place(|| Postgres::start(&[]))) else { return };
    migrations::migrate(&config(&first.url())).await.unwrap();
    let writer = Writer::start(Arc::new(open(&first.url()).await)).await;
    let folder = tempfile::tempdir().unwrap();
    let dump = folder.path().join("stats.dump");
    let at_least = writer.written();
    block_in_place(|| {
        run(Command::new(find("pg_dump").unwrap()).arg("-Fc").arg("-f").arg(&dump).arg(first.url()));
    });
    let all = writer.stop().await;
    drop(first);

    let second = block_in_place(|| Postgres::start(&[])).unwrap();
    block_in_place(|| {
        let url = second.url();
        run(Command::new(find("pg_restore").unwrap()).args(["--exit-on-error", "-d", &url]).arg(&dump));
    });
    migrations::migrate(&config(&second.url())).await.unwrap();
    restored(&open(&second.url()).await, at_least, all).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_of_sqlite_taken_under_load_is_a_database_of_its_own() {
    let Some(sqlite3) = there(find("sqlite3")) else { return };
    let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = Arc::new(SqliteStore::open(&StatsConfig::default(), first.path()).await.unwrap());
    let writer = Writer::start(store).await;
    let file = |folder: &Path| folder.join(&StatsConfig::default().database);
    let at_least = writer.written();
    block_in_place(|| {
        let command = format!(".backup '{}'", file(second.path()).display());
        run(Command::new(sqlite3).args(["-cmd", ".timeout 10000"]).arg(file(first.path())).arg(command));
    });
    let all = writer.stop().await;

    let copy = SqliteStore::open(&StatsConfig::default(), second.path()).await.unwrap();
    restored(&copy, at_least, all).await;
}
