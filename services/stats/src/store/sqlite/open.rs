//! Opening the file: settings of the connections, the schema and its version.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};
use uuid::Uuid;

use crate::config::{Durability, StatsConfig};

/// "SLst": marks the file as ours, so that another program's database is never written to.
const APPLICATION_ID: i64 = 0x534c_7374;
/// The version of the schema that this code reads and writes.
const SCHEMA_VERSION: i64 = 1;
/// Only a second process on the same file, or `VACUUM` in a shell, can hold the lock; a commit takes far less.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// Pages in the write-ahead log before they are copied into the file: 64 MiB. Random ids touch a page each, and the
/// longer the log, the more of them share a page by then: of a million random ids, twice as
/// many a second were committed as with 16 MiB.
const CHECKPOINT_PAGES: i64 = 16_384;

/// `events` remembers ids, `rollups` counts. `rollups_by_user` holds no count, so that counting up does not touch it.
/// `state.forgotten_before` is the hour before which ids were forgotten.
const SCHEMA: &str = "
    CREATE TABLE events (
        event_id BLOB NOT NULL,
        tenant TEXT NOT NULL,
        hour INTEGER NOT NULL,
        PRIMARY KEY (event_id, tenant)
    ) STRICT, WITHOUT ROWID;
    CREATE TABLE rollups (
        tenant TEXT NOT NULL,
        hour INTEGER NOT NULL,
        user_id TEXT NOT NULL,
        application TEXT NOT NULL,
        level INTEGER NOT NULL,
        source INTEGER NOT NULL,
        frames INTEGER NOT NULL,
        PRIMARY KEY (tenant, hour, user_id, application, level, source)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX rollups_by_user ON rollups (tenant, user_id, hour);
    CREATE TABLE state (only INTEGER PRIMARY KEY CHECK (only = 1), forgotten_before INTEGER NOT NULL) STRICT;
    INSERT INTO state VALUES (1, 0);
";

/// Why the file cannot be used. The message names the setting, the file and what to do.
#[derive(Debug, thiserror::Error)]
#[error("`stats.database` ({}): {problem}", path.display())]
pub struct OpenError {
    path: PathBuf,
    problem: String,
    #[source]
    source: Option<rusqlite::Error>,
}

/// Where the database is.
#[derive(Debug, Clone)]
pub(super) enum Location {
    File(PathBuf),
    /// SQLite's `memdb` file system: a database in memory that several connections of this process share by its name.
    Memory(String),
}

impl Location {
    pub(super) fn new(database: &Path, data_dir: &Path) -> Self {
        if database == Path::new(":memory:") {
            return Self::Memory(format!("file:/sightline-stats-{}?vfs=memdb", Uuid::new_v4()));
        }
        Self::File(data_dir.join(database))
    }

    fn connect(&self, flags: OpenFlags) -> rusqlite::Result<Connection> {
        // Every connection stays on one thread.
        let flags = flags | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = match self {
            Self::File(path) => Connection::open_with_flags(path, flags),
            Self::Memory(uri) => Connection::open_with_flags(uri, flags | OpenFlags::SQLITE_OPEN_URI),
        }?;
        connection.busy_timeout(BUSY_TIMEOUT)?;
        Ok(connection)
    }

    fn error(&self, problem: impl Into<String>) -> OpenError {
        let path = match self {
            Self::File(path) => path.clone(),
            Self::Memory(_) => ":memory:".into(),
        };
        OpenError { path, problem: problem.into(), source: None }
    }

    fn explain(&self, source: rusqlite::Error) -> OpenError {
        let problem = match source.sqlite_error_code() {
            Some(ErrorCode::NotADatabase) => {
                "is not a SQLite database; name another file or move it away".into()
            }
            Some(ErrorCode::DatabaseCorrupt) => {
                "is damaged; restore it from a backup, or move it away to start anew".into()
            }
            Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
                "cannot be opened; check that it is a file that this user may read and write".into()
            }
            Some(ErrorCode::ReadOnly) => "cannot be written; check its permissions and its folder's".into(),
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
                "is locked by another process".into()
            }
            _ => format!("cannot be used: {source}"),
        };
        OpenError { source: Some(source), ..self.error(problem) }
    }
}

/// The connection that writes. Creates the file and its folder, and the schema in a new file.
pub(super) fn writer(location: &Location, config: &StatsConfig) -> Result<Connection, OpenError> {
    if let Location::File(path) = location
        && let Some(folder) = path.parent()
    {
        fs::create_dir_all(folder).map_err(|error| {
            location.error(format!("its folder {} cannot be made: {error}", folder.display()))
        })?;
    }
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE;
    let mut connection = location.connect(flags).map_err(|error| location.explain(error))?;
    check_or_create(location, &mut connection)?;
    tune(&connection, config).map_err(|error| location.explain(error))?;
    Ok(connection)
}

/// A connection that only reads.
pub(super) fn reader(location: &Location) -> Result<Connection, OpenError> {
    location.connect(OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(|error| location.explain(error))
}

fn check_or_create(location: &Location, connection: &mut Connection) -> Result<(), OpenError> {
    let transaction = connection
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(|error| location.explain(error))?;
    let number = |sql: &str| {
        transaction.query_row(sql, (), |row| row.get::<_, i64>(0)).map_err(|error| location.explain(error))
    };
    let (application, version) = (number("PRAGMA application_id")?, number("PRAGMA user_version")?);
    let objects = number("SELECT count(*) FROM sqlite_schema")?;
    match (application, version) {
        (0, 0) if objects == 0 => transaction
            .execute_batch(&format!(
                "{SCHEMA} PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};"
            ))
            .and_then(|()| transaction.commit())
            .map_err(|error| location.explain(error)),
        (APPLICATION_ID, SCHEMA_VERSION) => Ok(()),
        (APPLICATION_ID, newer) => Err(location.error(format!(
            "was written by a newer Sightline (schema {newer}, this one knows {SCHEMA_VERSION}); \
             run that version, or name another file"
        ))),
        _ => Err(location.error("is the database of another program; name another file")),
    }
}

fn tune(connection: &Connection, config: &StatsConfig) -> rusqlite::Result<()> {
    // Answers with the mode it got: a database in memory stays in its own.
    connection.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    let synchronous = match config.durability {
        Durability::Process => "NORMAL",
        Durability::Power => "FULL",
    };
    connection.pragma_update(None, "synchronous", synchronous)?;
    connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
    // Negative means KiB.
    let kib = i64::try_from(config.cache_size.0 >> 10).unwrap_or(i64::MAX);
    connection.pragma_update(None, "cache_size", -kib)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(path: &Path) -> Result<Connection, String> {
        writer(&Location::new(path, Path::new("/nowhere")), &StatsConfig::default())
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_file_that_cannot_be_used_is_named_with_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);

        std::fs::write(
            path("text"),
            "not a database, and long enough to have a whole header of one. ".repeat(20),
        )
        .unwrap();
        assert!(
            open(&path("text"))
                .unwrap_err()
                .ends_with("text): is not a SQLite database; name another file or move it away")
        );

        assert!(open(folder.path()).unwrap_err().contains("cannot be opened"));

        std::fs::write(path("file"), "").unwrap();
        let message = open(&path("file/stats.db")).unwrap_err();
        assert!(message.contains("its folder") && message.contains("cannot be made"), "{message}");

        drop(open(&path("newer")).unwrap());
        Connection::open(path("newer")).unwrap().pragma_update(None, "user_version", 9).unwrap();
        let message = open(&path("newer")).unwrap_err();
        assert!(
            message.contains("newer): was written by a newer Sightline (schema 9, this one knows 1)"),
            "{message}"
        );

        Connection::open(path("foreign")).unwrap().execute_batch("CREATE TABLE t (x)").unwrap();
        assert!(open(&path("foreign")).unwrap_err().contains("is the database of another program"));

        let whole = path("damaged");
        drop(open(&whole).unwrap());
        let mut bytes = std::fs::read(&whole).unwrap();
        bytes[100..].fill(0xa5);
        std::fs::write(&whole, bytes).unwrap();
        assert!(open(&whole).unwrap_err().contains("is damaged"));
    }

    #[test]
    fn acknowledged_means_what_the_setting_says() {
        let folder = tempfile::tempdir().unwrap();
        for (durability, synchronous) in [(Durability::Process, 1), (Durability::Power, 2)] {
            let config = StatsConfig { durability, ..StatsConfig::default() };
            let connection = writer(&Location::new(Path::new("stats.db"), folder.path()), &config).unwrap();
            let mode: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0)).unwrap();
            let found: i64 = connection.pragma_query_value(None, "synchronous", |row| row.get(0)).unwrap();
            assert_eq!((mode.as_str(), found), ("wal", synchronous));
        }
    }
}
