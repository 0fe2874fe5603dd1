//! The schema, made and brought forward by `sightline migrate`, never by a server.
//!
//! Each migration runs in a transaction of its own, under an advisory lock that ends with it, so it works behind
//! PgBouncer and beside another `migrate`. What was applied is kept with a checksum. A server starts only on exactly the
//! schema that it knows. Migrations only go forward, and an applied one is never edited.

use std::time::Duration;

use tokio_postgres::types::Type;
use tracing::info;

use super::{
    connect::{Connector, PostgresError, Session},
    error::Trouble,
};
use crate::config::StatsConfig;

/// How long a migration waits for a table that is in use, before it gives up and nothing has changed.
const LOCK_TIMEOUT: Duration = Duration::from_secs(10);
/// The advisory lock of migrations.
const LOCK: i64 = 0x534c_7374_0000;

/// In order: the first is version 1.
const MIGRATIONS: [(&str, &str); 1] =
    [("events and rollups", include_str!("migrations/0001_events_and_rollups.sql"))];

/// One step of the schema.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Migration {
    /// From 1 on.
    pub version: i32,
    /// What it makes.
    pub name: String,
    /// BLAKE3 of its text, the first 32 hexadecimal digits.
    pub checksum: String,
}

/// How a database stands to what this program knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Standing {
    /// What it holds.
    pub applied: Vec<Migration>,
    /// What is left to run.
    pub pending: Vec<Migration>,
}

fn known() -> Vec<Migration> {
    let migration = |(version, (name, text)): (i32, &(&str, &str))| Migration {
        version,
        name: (*name).to_owned(),
        checksum: blake3::hash(text.as_bytes()).to_hex()[..32].to_owned(),
    };
    (1..).zip(&MIGRATIONS).map(migration).collect()
}

/// Looks, and changes nothing.
///
/// # Errors
/// [`PostgresError`]: also for a schema that is newer than this program, or was applied from another text.
pub async fn status(config: &StatsConfig) -> Result<Standing, PostgresError> {
    let (session, url) = connect(config).await?;
    standing(&session, &url).await
}

/// Runs what is pending, and says what that was. Nothing to do is fine.
///
/// # Errors
/// [`PostgresError`]; migrations before the one that failed stay applied.
pub async fn migrate(config: &StatsConfig) -> Result<Vec<Migration>, PostgresError> {
    let (session, url) = connect(config).await?;
    let mut done = Vec::new();
    loop {
        let step = step(&session).await;
        match step {
            Ok(Some(migration)) => {
                info!(version = migration.version, "{}: applied", migration.name);
                done.push(migration);
            }
            Ok(None) => break,
            Err(trouble) => {
                // The connection is dropped next, which rolls back too.
                session.client.batch_execute("ROLLBACK").await.ok();
                return Err(PostgresError::Schema { url, problem: format!("a migration failed: {trouble}") });
            }
        }
    }
    standing(&session, &url).await?;
    Ok(done)
}

/// What a server does before it serves.
pub(super) async fn check(session: &Session, url: &str) -> Result<(), PostgresError> {
    let standing = standing(session, url).await?;
    if standing.pending.is_empty() {
        return Ok(());
    }
    let found = standing.applied.len();
    let problem = match found {
        0 => "holds no schema of the statistics: run `sightline migrate`".into(),
        _ => format!(
            "holds schema version {found}, and this program needs version {}: run `sightline migrate`",
            MIGRATIONS.len()
        ),
    };
    Err(PostgresError::Schema { url: url.into(), problem })
}

async fn connect(config: &StatsConfig) -> Result<(Session, String), PostgresError> {
    let connector = Connector::new(config)?;
    let url = config.postgres_url.as_ref().map_or_else(String::new, |url| url.masked());
    let session = connector
        .open()
        .await
        .map_err(|trouble| PostgresError::Unreachable { url: url.clone(), problem: trouble.to_string() })?;
    Ok((session, url))
}

async fn standing(session: &Session, url: &str) -> Result<Standing, PostgresError> {
    let schema = |problem: String| PostgresError::Schema { url: url.to_owned(), problem };
    let applied = applied(session).await.map_err(|trouble| PostgresError::Unreachable {
        url: url.to_owned(),
        problem: trouble.to_string(),
    })?;
    let known = known();
    if let Some(newer) = applied.iter().find(|found| !known.iter().any(|one| one.version == found.version)) {
        return Err(schema(format!(
            "holds schema version {} ({}), which this program does not know (it knows up to {}): run a newer Sightline",
            newer.version,
            newer.name,
            known.len()
        )));
    }
    for (index, (found, expected)) in applied.iter().zip(&known).enumerate() {
        if found.version != expected.version || found.checksum != expected.checksum {
            return Err(schema(format!(
                "version {} of the schema was made by another text than this program's ({} instead of {}): restore \
                 a backup, or name another database",
                index + 1,
                found.checksum,
                expected.checksum
            )));
        }
    }
    let pending = known[applied.len()..].to_vec();
    Ok(Standing { applied, pending })
}

async fn applied(session: &Session) -> Result<Vec<Migration>, Trouble> {
    let there = "SELECT to_regclass('sightline_stats.migrations') IS NOT NULL";
    let row = session.client.query_typed_one(there, &[]).await?;
    if !row.try_get::<_, bool>(0)? {
        return Ok(Vec::new());
    }
    let sql = "SELECT version, name, checksum FROM sightline_stats.migrations ORDER BY version";
    let rows = session.client.query_typed(sql, &[]).await?;
    let read = |row: &tokio_postgres::Row| {
        Ok(Migration { version: row.try_get(0)?, name: row.try_get(1)?, checksum: row.try_get(2)? })
    };
    rows.iter().map(read).collect()
}

/// Runs the first migration that is missing, if any.
async fn step(session: &Session) -> Result<Option<Migration>, Trouble> {
    let client = &session.client;
    let opening = format!(
        "BEGIN; SET LOCAL lock_timeout = {}; SET LOCAL client_min_messages = warning; SELECT pg_advisory_xact_lock({LOCK});
         CREATE SCHEMA IF NOT EXISTS sightline_stats;
         CREATE TABLE IF NOT EXISTS sightline_stats.migrations (
            version int4 PRIMARY KEY, name text NOT NULL, checksum text NOT NULL,
            applied_at timestamptz NOT NULL DEFAULT now())",
        LOCK_TIMEOUT.as_millis()
    );
    client.batch_execute(&opening).await?;
    let applied = applied(session).await?;
    let next = known().into_iter().zip(&MIGRATIONS).nth(applied.len());
    let Some((migration, (_, text))) = next else {
        client.batch_execute("COMMIT").await?;
        return Ok(None);
    };
    client.batch_execute(text).await?;
    let sql = "INSERT INTO sightline_stats.migrations (version, name, checksum) VALUES ($1, $2, $3)";
    client
        .execute_typed(
            sql,
            &[
                (&migration.version, Type::INT4),
                (&migration.name, Type::TEXT),
                (&migration.checksum, Type::TEXT),
            ],
        )
        .await?;
    client.batch_execute("COMMIT").await?;
    Ok(Some(migration))
}
