//! Real faults of the statistics on PostgreSQL, each ending in exact totals.
//!
//! `SIGHTLINE_FAULT_ROUNDS` (50): how often a writing process is killed. `SIGHTLINE_FAULT_SECONDS` (3): how long
//! PostgreSQL is away; the full exercise is 60.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // helpers of tests: a panic is a failed test

use std::{
    env,
    io::{BufRead, BufReader},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use rand::Rng;
use sightline_config::ServerUrl;
use sightline_servers::{Postgres, there};
use sightline_stats::{
    StatsConfig,
    store::{
        Event, Group, Hour, Query, Store, StoreError,
        postgres::{PostgresStore, migrations},
    },
};
use sightline_telemetry::dependencies::Dependencies;
use tokio::task::{JoinSet, block_in_place};
use uuid::Uuid;

/// Set for the process that is killed: where it writes, and from which batch on.
const URL: &str = "STATS_FAULT_TEST_URL";
const FROM: &str = "STATS_FAULT_TEST_FROM";
const BATCH: u64 = 100;
/// Batches that the process has on their way at once.
const IN_FLIGHT: u64 = 4;
const USERS: u64 = 50;

fn number(variable: &str, otherwise: u64) -> u64 {
    env::var(variable).map_or(otherwise, |text| text.parse().unwrap())
}

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

fn config(url: &str) -> StatsConfig {
    let mut config = StatsConfig { postgres_url: Some(ServerUrl::new(url)), ..StatsConfig::default() };
    config.postgres_commit_max_wait.0 = Duration::from_millis(2);
    config.postgres_connect_timeout.0 = Duration::from_secs(1);
    config
}

async fn open(url: &str) -> PostgresStore {
    PostgresStore::open(&config(url), &Dependencies::default()).await.unwrap()
}

/// A PostgreSQL with the schema; `None`, said aloud, when it is not installed.
async fn postgres() -> Option<Postgres> {
    let postgres = there(block_in_place(|| Postgres::start(&[])))?;
    migrations::migrate(&config(&postgres.url())).await.unwrap();
    Some(postgres)
}

/// Every rollup sums up to what distinct events make: a batch has the same number of each user.
async fn exact(store: &PostgresStore, batches: u64) {
    let query = Query { groups: vec![Group::User], limit: 1_000, ..Query::default() };
    let rows = store.query(query).await.unwrap().rows;
    let expected = batches * BATCH / USERS;
    assert_eq!(rows.len() as u64, USERS);
    for row in rows {
        assert_eq!(row.frames, expected, "{:?}", row.key);
    }
}

/// The process that is killed; does nothing when it runs as a test of its own.
#[tokio::test(flavor = "multi_thread")]
async fn writer_process() {
    let Some(url) = env::var_os(URL) else { return };
    let store = Arc::new(open(url.to_str().unwrap()).await);
    let next = Arc::new(AtomicU64::new(number(FROM, 0)));
    let mut writers = JoinSet::new();
    for _ in 0..IN_FLIGHT {
        let (store, next) = (Arc::clone(&store), Arc::clone(&next));
        writers.spawn(async move {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                store.record(batch(n)).await.unwrap();
                println!("acknowledged {n}");
            }
        });
    }
    writers.join_all().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_killed_in_the_middle_of_batches_costs_and_doubles_nothing() {
    let Some(postgres) = postgres().await else { return };
    let url = postgres.url();
    let mut acknowledged = std::collections::BTreeSet::<u64>::new();
    for _ in 0..number("SIGHTLINE_FAULT_ROUNDS", 50) {
        // What was on its way comes again, with more behind it.
        let from = (0..).find(|n| !acknowledged.contains(n)).unwrap();
        let mut child = Command::new(env::current_exe().unwrap())
            .args(["writer_process", "--exact", "--nocapture"])
            .env(URL, &url)
            .env(FROM, from.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pause = Duration::from_micros(rand::rng().random_range(0..8_000));
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let mut said = lines
            .filter_map(|line| line.split_once("acknowledged ").and_then(|(_, n)| n.parse::<u64>().ok()));
        acknowledged.extend(block_in_place(|| said.next()));
        // Somewhere in the middle of a transaction.
        tokio::time::sleep(pause).await;
        child.kill().unwrap();
        child.wait().unwrap();
        acknowledged.extend(said);
    }
    let store = open(&url).await;
    let sent = acknowledged.last().unwrap() + IN_FLIGHT;
    for n in 0..=sent {
        let recorded = store.record(batch(n)).await.unwrap();
        assert!(recorded.stored == 0 || !acknowledged.contains(&n), "batch {n} was acknowledged and gone");
    }
    exact(&store, sent + 1).await;
    store.close().await;
}

/// Writers that send each batch until it is acknowledged, as ingest does, while `fault` happens to PostgreSQL.
async fn under_load(postgres: Postgres, fault: impl FnOnce(&mut Postgres) + Send + 'static) {
    const WRITERS: u64 = 4;
    let store = Arc::new(open(&postgres.url()).await);
    let (next, over) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
    let mut writers = JoinSet::new();
    for _ in 0..WRITERS {
        let (store, next, over) = (Arc::clone(&store), Arc::clone(&next), Arc::clone(&over));
        writers.spawn(async move {
            let mut refused = 0;
            while !over.load(Ordering::Relaxed) {
                let n = next.fetch_add(1, Ordering::Relaxed);
                while let Err(error) = store.record(batch(n)).await {
                    assert!(matches!(error, StoreError::Failed(_)), "{error}");
                    refused += 1;
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
            refused
        });
    }
    let (postgres, acknowledged_before) = tokio::task::spawn_blocking({
        let next = Arc::clone(&next);
        move || {
            let mut postgres = postgres;
            fault(&mut postgres);
            (postgres, next.load(Ordering::Relaxed))
        }
    })
    .await
    .unwrap();
    // It goes on by itself.
    let goes_on = async {
        while next.load(Ordering::Relaxed) < acknowledged_before + 50 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), goes_on).await.expect("writing goes on");
    over.store(true, Ordering::Relaxed);
    let refused: u64 = writers.join_all().await.into_iter().sum();
    println!("{} batches; {refused} times a writer was told to send again", next.load(Ordering::Relaxed));
    let sent = next.load(Ordering::Relaxed);
    exact(&store, sent).await;
    assert_eq!(
        block_in_place(|| postgres.sql("sightline", "SELECT count(*) FROM sightline_stats.events").unwrap()),
        (sent * BATCH).to_string()
    );
    store.close().await;
}

#[allow(clippy::disallowed_methods)] // on a thread that may block
fn pause(time: Duration) {
    std::thread::sleep(time);
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_stopped_under_load_and_back() {
    let Some(postgres) = postgres().await else { return };
    let away = Duration::from_secs(number("SIGHTLINE_FAULT_SECONDS", 3));
    under_load(postgres, move |postgres| {
        pause(Duration::from_millis(500));
        // The fast way to stop: connections are closed, transactions taken back.
        Command::new("kill").args(["-INT", &postgres.server.pid().to_string()]).status().unwrap();
        while postgres.server.is_running() {
            pause(Duration::from_millis(10));
        }
        pause(away);
        postgres.server.restart().unwrap();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_killed_under_load_again_and_again() {
    let Some(postgres) = postgres().await else { return };
    under_load(postgres, |postgres| {
        for _ in 0..5 {
            pause(Duration::from_millis(300));
            postgres.server.kill();
            postgres.server.restart().unwrap();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_that_hangs_is_given_up_and_found_again() {
    let Some(postgres) = postgres().await else { return };
    under_load(postgres, |postgres| {
        pause(Duration::from_millis(300));
        // Every process of it: the one that listens and those that serve connections.
        let pid = postgres.server.pid();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        let all = |signal: &str| Command::new("kill").arg(signal).args(children.split_whitespace()).status();
        postgres.server.pause();
        all("-STOP").unwrap();
        pause(Duration::from_secs(2));
        all("-CONT").unwrap();
        postgres.server.resume();
    })
    .await;
}
