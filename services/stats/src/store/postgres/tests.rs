//! The conformance suite on a real PostgreSQL, straight and through PgBouncer, and what only PostgreSQL can get wrong.

use std::{
    collections::BTreeSet,
    fs,
    path::Path,
    process::Command,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicU32, Ordering},
    },
};

use sightline_config::{HumanDuration, ServerUrl};
use sightline_servers::{PgBouncer, Postgres, there};
use sightline_telemetry::dependencies::Dependencies;
use uuid::Uuid;

use super::{PostgresStore, migrations, partitions::Partition};
use crate::{
    config::StatsConfig,
    store::{
        Event, Group, Hour, Query, Store, StoreError,
        conformance::{Fixture, conformance, conformance_durable},
    },
};

/// One of each for all tests of this process.
struct Servers {
    bouncer: PgBouncer,
    postgres: Postgres,
}

/// Connections that PgBouncer keeps to each database: fewer than the store's own pool, so that they are really shared.
const BOUNCER_POOL: usize = 2;

/// The servers of the tests that run now: the last one to end takes them down, and their files with them.
fn servers() -> Option<Arc<Servers>> {
    static RUNNING: Mutex<Weak<Servers>> = Mutex::new(Weak::new());
    let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(servers) = running.upgrade() {
        return Some(servers);
    }
    let start = || {
        let postgres = Postgres::start(&["max_connections=300"])?;
        let bouncer = PgBouncer::start(&postgres, BOUNCER_POOL)?;
        Ok(Servers { bouncer, postgres })
    };
    let servers = Arc::new(there(start())?);
    *running = Arc::downgrade(&servers);
    Some(servers)
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Way {
    Straight,
    Bouncer,
}

/// A database of its own, with the schema.
pub(super) struct Database {
    config: StatsConfig,
    name: String,
    servers: Arc<Servers>,
}

impl Database {
    async fn empty(way: Way) -> Option<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let made = name.clone();
        let made = tokio::task::spawn_blocking(move || {
            let servers = servers()?;
            let straight = servers.postgres.database(&made).unwrap();
            Some((if way == Way::Straight { straight } else { servers.bouncer.url(&made) }, servers))
        });
        let (url, servers) = made.await.unwrap()?;
        let mut config = StatsConfig { postgres_url: Some(ServerUrl::new(url)), ..StatsConfig::default() };
        config.raw_retention = config.dedupe_window;
        config.rollup_retention = HumanDuration::from_secs(20 * 365 * 24 * 3600);
        Some(Self { config, name, servers })
    }

    pub(super) async fn new(way: Way) -> Option<Self> {
        let database = Self::empty(way).await?;
        migrations::migrate(&database.config).await.unwrap();
        Some(database)
    }

    async fn open(&self) -> Result<PostgresStore, String> {
        PostgresStore::open(&self.config, &Dependencies::default()).await.map_err(|error| error.to_string())
    }

    async fn sql(&self, text: &str) -> String {
        let (name, text, servers) = (self.name.clone(), text.to_owned(), Arc::clone(&self.servers));
        let run = move || servers.postgres.sql(&name, &text).unwrap();
        tokio::task::spawn_blocking(run).await.unwrap()
    }
}

impl Fixture for Database {
    async fn open(&self) -> Arc<dyn Store> {
        Arc::new(Self::open(self).await.unwrap())
    }
}

conformance!(straight, super::Database::new(super::Way::Straight).await);
conformance_durable!(straight_again, super::Database::new(super::Way::Straight).await);
conformance!(through_pgbouncer, super::Database::new(super::Way::Bouncer).await);
conformance_durable!(through_pgbouncer_again, super::Database::new(super::Way::Bouncer).await);

const START: i64 = 480_000;

fn event(n: u128) -> Event {
    Event {
        id: Uuid::from_u128(n + 1),
        hour: Hour(START),
        tenant: String::new(),
        user: format!("user-{}", n % 7),
        application: String::new(),
        level: 1,
        source: 1,
    }
}

async fn total(store: &dyn Store) -> u64 {
    store.query(Query { limit: 1, ..Query::default() }).await.unwrap().rows[0].frames
}

#[tokio::test]
async fn a_server_starts_only_on_the_schema_it_knows() {
    let Some(database) = Database::empty(Way::Straight).await else { return };
    let refused = database.open().await.unwrap_err();
    assert!(refused.ends_with("holds no schema of the statistics: run `sightline migrate`"), "{refused}");
    let standing = migrations::status(&database.config).await.unwrap();
    assert_eq!((standing.applied.len(), standing.pending.len()), (0, 1));

    // Several at once: each migration runs once.
    let all = (0..4).map(|_| migrations::migrate(&database.config));
    let done: usize =
        futures_util::future::join_all(all).await.into_iter().map(|done| done.unwrap().len()).sum();
    assert_eq!(done, 1);
    assert!(migrations::migrate(&database.config).await.unwrap().is_empty());
    database.open().await.unwrap().close().await;

    database.sql("INSERT INTO sightline_stats.migrations VALUES (2, 'from the future', 'x')").await;
    for refused in [
        database.open().await.unwrap_err(),
        migrations::migrate(&database.config).await.unwrap_err().to_string(),
    ] {
        assert!(
            refused.contains("holds schema version 2 (from the future), which this program does not know"),
            "{refused}"
        );
    }
    database.sql("DELETE FROM sightline_stats.migrations WHERE version = 2").await;
    database.sql("UPDATE sightline_stats.migrations SET checksum = 'edited'").await;
    assert!(database.open().await.unwrap_err().contains("was made by another text"));
    database.sql("DELETE FROM sightline_stats.migrations").await;
    assert!(database.open().await.unwrap_err().contains("run `sightline migrate`"));
    let refused = migrations::migrate(&database.config).await.unwrap_err().to_string();
    assert!(refused.contains("a migration failed") && refused.contains("already exists"), "{refused}");
}

#[tokio::test]
async fn an_address_where_nobody_listens_is_named_without_its_password() {
    let url = format!("postgresql://me:secret@127.0.0.1:{}/x", sightline_servers::free_port());
    let config = StatsConfig { postgres_url: Some(ServerUrl::new(url)), ..StatsConfig::default() };
    let refused = PostgresStore::open(&config, &Dependencies::default()).await.unwrap_err().to_string();
    assert!(refused.contains("me:***@127.0.0.1") && !refused.contains("secret"), "{refused}");
    assert!(refused.contains("refused"), "{refused}");
    let config =
        StatsConfig { postgres_url: Some(ServerUrl::new("postgresql://h/x?sslmode=maybe")), ..config };
    let refused = PostgresStore::open(&config, &Dependencies::default()).await.unwrap_err().to_string();
    assert!(refused.contains("sslmode"), "{refused}");
}

#[tokio::test]
async fn past_their_retention_days_and_months_are_dropped_whole() {
    let Some(mut database) = Database::new(Way::Bouncer).await else { return };
    database.config.rollup_retention = HumanDuration::from_secs(60 * 24 * 3600);
    let store = database.open().await.unwrap();
    // 90 days from 2024-10-04 on, one event each.
    let at = |day: i64| Event { hour: Hour(START + day * 24), ..event(day.unsigned_abs().into()) };
    store.record((0..90).map(at).collect()).await.unwrap();
    // 2025-01-01: the window and the retention of events end there, that of counts 60 − 7 days before, on 2024-11-09.
    store.prune(Hour(START + 89 * 24), 1).await.unwrap();
    let left = "SELECT string_agg(inhrelid::regclass::text, ' ' ORDER BY 1) FROM pg_inherits
                WHERE inhrelid::regclass::text < 'sightline_stats.x' AND inhrelid::regclass::text ~ '_2024|_202501'";
    let left = database.sql(left).await.replace("sightline_stats.", "");
    let tables: Vec<&str> =
        left.split(' ').filter(|name| !name.ends_with("_pkey") && !name.contains("_idx")).collect();
    assert_eq!(tables, ["events_20250101", "rollups_202411", "rollups_202412", "rollups_202501"]);
    assert_eq!(total(&store).await, 90 - 28, "October's four weeks are gone");
    assert!(matches!(store.record(vec![at(88)]).await, Err(StoreError::Forgotten { index: 0 })));
    assert_eq!(store.record(vec![at(89)]).await.unwrap().duplicates, 1);
    store.close().await;
}

#[tokio::test]
async fn a_partition_that_another_replica_dropped_is_made_again() {
    let Some(database) = Database::new(Way::Straight).await else { return };
    let store = database.open().await.unwrap();
    store.record(vec![event(1)]).await.unwrap();
    database.sql("DROP TABLE sightline_stats.events_20241004, sightline_stats.rollups_202410").await;
    assert_eq!(store.record(vec![event(2)]).await.unwrap().stored, 1);
    assert_eq!(total(&store).await, 1);
    store.close().await;
}

#[tokio::test]
async fn replicas_that_count_in_the_same_rows_never_fail() {
    let Some(database) = Database::new(Way::Straight).await else { return };
    let mut replicas = Vec::new();
    for _ in 0..3 {
        replicas.push(Arc::new(database.open().await.unwrap()));
    }
    let mut writers = tokio::task::JoinSet::new();
    for (n, replica) in replicas.iter().enumerate() {
        let replica = Arc::clone(replica);
        writers.spawn(async move {
            let mut stored = 0;
            for round in 0..40 {
                // Half of each batch is another replica's too, and every batch touches every row, in some other order.
                let mut batch: Vec<Event> =
                    (0..100).map(|i| event(round * 200 + (n as u128) * 50 + i)).collect();
                batch.rotate_left((round as usize * 17 + n) % 100);
                stored += u64::from(replica.record(batch).await.unwrap().stored);
            }
            stored
        });
    }
    let stored: u64 = writers.join_all().await.into_iter().sum();
    assert_eq!(stored, 40 * 200);
    assert_eq!(total(&*replicas[0]).await, stored);
    assert_eq!(database.sql("SELECT count(*) FROM sightline_stats.events").await, "8000");
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()";
    assert_eq!(database.sql(deadlocks).await, "0");
    for replica in replicas {
        replica.close().await;
    }
}

#[tokio::test]
async fn a_commit_that_fails_leaves_nothing_and_the_next_one_works() {
    let Some(database) = Database::new(Way::Bouncer).await else { return };
    let store = database.open().await.unwrap();
    store.record(vec![event(100)]).await.unwrap();
    // Events go in and then the rollups fail: this stands for every reason a transaction may fail half-way.
    database.sql("ALTER TABLE sightline_stats.rollups RENAME COLUMN frames TO hidden").await;
    assert!(matches!(store.record(vec![event(1)]).await, Err(StoreError::Failed(_))));
    database.sql("ALTER TABLE sightline_stats.rollups RENAME COLUMN hidden TO frames").await;
    assert_eq!(store.record(vec![event(1)]).await.unwrap().stored, 1, "the failed batch left no id behind");
    store.close().await;
}

#[tokio::test]
async fn a_query_that_nobody_waits_for_is_stopped_at_the_server() {
    let Some(database) = Database::new(Way::Straight).await else { return };
    let store = database.open().await.unwrap();
    // Something that a query waits for.
    let holder = {
        let (name, servers) = (database.name.clone(), Arc::clone(&database.servers));
        let hold = "BEGIN; LOCK sightline_stats.rollups; SELECT pg_sleep(20)";
        tokio::task::spawn_blocking(move || servers.postgres.sql(&name, hold))
    };
    let busy = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND state = 'active'
                AND wait_event_type = 'Lock'";
    while database.sql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'BEGIN; LOCK%'").await != "1" {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    let query = Query { groups: vec![Group::User], limit: 10, ..Query::default() };
    let asked = tokio::time::timeout(std::time::Duration::from_millis(500), store.query(query)).await;
    assert!(asked.is_err());
    let since = std::time::Instant::now();
    while database.sql(busy).await != "0" {
        assert!(since.elapsed().as_secs() < 10, "the server still works on it");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    database
        .sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'BEGIN; LOCK%'")
        .await;
    holder.await.unwrap().unwrap_err();
    assert_eq!(total(&store).await, 0, "the pool still works");
    store.close().await;
}

#[tokio::test]
async fn partitions_are_there_before_they_are_needed() {
    let Some(database) = Database::new(Way::Straight).await else { return };
    let store = database.open().await.unwrap();
    let now = std::time::SystemTime::now();
    let hour = crate::intake::oldest_hour(now, std::time::Duration::ZERO).0;
    let days: BTreeSet<Partition> = (-7..=3).map(|day| Partition::day(hour + day * 24)).collect();
    assert!(store.writer.known.missing(&days).is_empty());
    store.close().await;
}

/// A certificate authority and a certificate for 127.0.0.1, for PostgreSQL.
fn certificates(folder: &Path) {
    fs::write(folder.join("names"), "subjectAltName=IP:127.0.0.1").unwrap();
    for arguments in [
        "req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj /CN=test",
        "req -newkey rsa:2048 -nodes -keyout key.pem -out request -subj /CN=postgres",
        "x509 -req -in request -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names -out cert.pem",
    ] {
        let made = Command::new("openssl").args(arguments.split(' ')).current_dir(folder).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    // PostgreSQL refuses a key that others may read, and runs as its own user when we are root.
    Command::new("chmod").args(["600", "key.pem"]).current_dir(folder).status().unwrap();
    Command::new("chmod").args(["755", "."]).current_dir(folder).status().unwrap();
    Command::new("chown").args(["postgres", "key.pem"]).current_dir(folder).output().unwrap();
}

#[tokio::test]
async fn over_tls_the_servers_certificate_is_checked() {
    if servers().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let postgres = {
        let (cert, key) = (path("cert.pem"), path("key.pem"));
        let folder = folder.path().to_owned();
        let start = move || {
            certificates(&folder);
            let (cert, key) =
                (format!("ssl_cert_file={}", cert.display()), format!("ssl_key_file={}", key.display()));
            Postgres::start(&["ssl=on", &cert, &key]).unwrap()
        };
        tokio::task::spawn_blocking(start).await.unwrap()
    };
    let config = |mode: &str, authority: Option<&str>| StatsConfig {
        postgres_url: Some(ServerUrl::new(format!("{}?sslmode={mode}", postgres.url()))),
        postgres_ca_file: authority.map(path),
        ..StatsConfig::default()
    };
    let trusting = config("require", Some("ca.pem"));
    assert_eq!(migrations::migrate(&trusting).await.unwrap().len(), 1);
    let store = PostgresStore::open(&trusting, &Dependencies::default()).await.unwrap();
    assert_eq!(store.record(vec![event(1)]).await.unwrap().stored, 1);
    store.close().await;
    let refused = migrations::status(&config("require", None)).await.unwrap_err().to_string();
    assert!(refused.contains("UnknownIssuer"), "{refused}");
    assert!(migrations::status(&config("disable", None)).await.is_ok());
    let refused = migrations::status(&config("require", Some("nothing.pem"))).await.unwrap_err().to_string();
    assert!(refused.starts_with("`stats.postgres_ca_file`"), "{refused}");
    let refused = migrations::status(&config("require", Some("names"))).await.unwrap_err().to_string();
    assert!(refused.contains("holds no PEM certificate"), "{refused}");
}
