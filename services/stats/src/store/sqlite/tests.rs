//! The conformance suite on a file and in memory, and what only SQLite can get wrong.

use std::{path::PathBuf, sync::Arc};

use tempfile::TempDir;
use uuid::Uuid;

use super::SqliteStore;
use crate::{
    config::{Durability, StatsConfig},
    store::{
        Event, Group, Hour, Query, Store, StoreError,
        conformance::{Fixture, conformance, conformance_durable},
    },
};

struct Database {
    config: StatsConfig,
    folder: TempDir,
}

impl Database {
    fn new(database: &str, durability: Durability) -> Self {
        let config = StatsConfig { database: PathBuf::from(database), durability, ..StatsConfig::default() };
        Self { config, folder: tempfile::tempdir().unwrap() }
    }
}

impl Fixture for Database {
    async fn open(&self) -> Arc<dyn Store> {
        Arc::new(SqliteStore::open(&self.config, self.folder.path()).await.unwrap())
    }
}

fn file() -> Database {
    Database::new("new folder/stats.db", Durability::Process)
}

conformance!(in_a_file, Some(super::file()));
conformance_durable!(in_a_file_again, Some(super::file()));
conformance_durable!(in_a_file_with_power, Some(super::Database::new("s.db", super::Durability::Power)));
conformance!(in_memory, Some(super::Database::new(":memory:", super::Durability::Process)));

fn events(count: u128) -> Vec<Event> {
    let event = |n: u128| Event {
        id: Uuid::from_u128(n + 1),
        hour: Hour(480_000),
        tenant: String::new(),
        user: format!("{n:0128}"),
        application: String::new(),
        level: 1,
        source: 1,
    };
    (0..count).map(event).collect()
}

#[tokio::test]
async fn what_waits_is_bounded_and_the_limit_is_named() {
    let mut database = file();
    database.config.queue_events = 100;
    // The first batch waits for company this long, so that the second finds it.
    database.config.commit_max_wait.0 = std::time::Duration::from_millis(200);
    let store = database.open().await;
    let (first, second) = tokio::join!(store.record(events(60)), store.record(events(60)));
    assert_eq!(first.unwrap().stored, 60);
    assert!(matches!(second, Err(StoreError::QueueFull { what: "events", limit: 100 })));
    assert_eq!(store.record(events(60)).await.unwrap().duplicates, 60, "the permits came back");
}

#[tokio::test]
async fn batches_that_wait_share_a_transaction() {
    let mut database = file();
    database.config.commit_max_wait.0 = std::time::Duration::from_secs(60);
    database.config.commit_max_events = 30;
    let store = database.open().await;
    // None of these fills a group alone: they are answered only because they are committed together.
    let all = events(30);
    let batch = |range: std::ops::Range<usize>| store.record(all[range].to_vec());
    let (a, b, c) = tokio::join!(batch(0..10), batch(5..15), batch(15..25));
    assert_eq!((a.unwrap().stored, b.unwrap().duplicates, c.unwrap().stored), (10, 5, 10));
}

#[tokio::test]
async fn a_page_of_long_names_is_cut_to_what_a_client_accepts() {
    let database = file();
    let store = database.open().await;
    let all = events(40_000);
    for batch in all.chunks(5_000) {
        store.record(batch.to_vec()).await.unwrap();
    }
    let mut query = Query { groups: vec![Group::User], limit: 100_000, ..Query::default() };
    let first = store.query(query.clone()).await.unwrap();
    assert!(first.more && (16_000..17_000).contains(&first.rows.len()), "{}", first.rows.len());
    query.after = first.rows.last().map(|row| row.key.clone());
    let second = store.query(query).await.unwrap();
    assert!(second.rows[0].key > first.rows.last().unwrap().key);
}

#[tokio::test]
async fn a_commit_that_fails_leaves_nothing_and_the_next_one_works() {
    let database = file();
    let store = database.open().await;
    let path = database.folder.path().join("new folder/stats.db");
    // Ids go in and then the rollups fail: this stands for every reason a transaction may fail half-way.
    let other = rusqlite::Connection::open(path).unwrap();
    other.execute_batch("ALTER TABLE rollups RENAME TO hidden").unwrap();
    assert!(matches!(store.record(events(5)).await, Err(StoreError::Failed(_))));
    other.execute_batch("ALTER TABLE hidden RENAME TO rollups").unwrap();
    let recorded = store.record(events(5)).await.unwrap();
    assert_eq!((recorded.stored, recorded.duplicates), (5, 0), "the failed batch left no id behind");
}

#[tokio::test]
async fn forgetting_looks_at_no_more_ids_than_it_is_told() {
    let database = file();
    let store = database.open().await;
    let at = |(n, event): (i64, Event)| Event { hour: Hour(480_000 + n), ..event };
    store.record((0..).zip(events(100)).map(at).collect()).await.unwrap();
    let (mut removed, mut steps) = (0, 0);
    loop {
        let pruned = store.prune(Hour(480_040), 7).await.unwrap();
        removed += pruned.removed;
        steps += 1;
        if pruned.finished {
            break;
        }
        assert!(pruned.removed <= 7);
    }
    assert_eq!(removed, 40);
    assert!((100 / 7..=100 / 7 + 2).contains(&steps), "{steps} steps");
}
