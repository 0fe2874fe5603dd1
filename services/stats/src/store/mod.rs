//! Where counts are kept: the [`Store`] trait, what goes in and out of it, and its implementations on SQLite and PostgreSQL.

#[cfg(test)]
mod conformance;
pub mod postgres;
pub mod sqlite;

use std::{error::Error, sync::Arc};

use uuid::Uuid;

/// Whole hours since 1970-01-01T00:00Z: the finest time that counts are kept by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Hour(pub i64);

impl Hour {
    /// The hour that holds this many seconds since the epoch.
    pub const fn from_seconds(seconds: i64) -> Self {
        Self(seconds.div_euclid(3600))
    }

    /// Its start, in seconds since the epoch.
    pub const fn seconds(self) -> i64 {
        self.0 * 3600
    }
}

/// One finished frame, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The same id counts once per tenant: ids may be the callers' own, and one tenant must not hide another's frames.
    pub id: Uuid,
    /// When it happened.
    pub hour: Hour,
    /// Empty in a single-tenant installation.
    pub tenant: String,
    /// Never empty.
    pub user: String,
    /// May be empty.
    pub application: String,
    /// The number of a `verdict.v1.Level`, 1 to 5.
    pub level: u8,
    /// The number of a `verdict.v1.VerdictSource`, from 1 on.
    pub source: u8,
}

/// What became of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Recorded {
    /// Events that were new.
    pub stored: u32,
    /// Events that had been counted before, in an earlier batch or in this one.
    pub duplicates: u32,
}

/// The length of a time bucket, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bucket {
    /// An hour.
    Hour,
    /// From midnight to midnight UTC.
    Day,
}

/// What rows are counted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// By user.
    User,
    /// By application.
    Application,
    /// By level.
    Level,
    /// By the verdict's source.
    Source,
}

/// One column of a row's key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(untagged)]
pub enum Key {
    /// The first [`Hour`] of a bucket, a level or a source.
    Number(i64),
    /// A user or an application.
    Text(String),
}

/// A question. Rows come in the order of their keys: the bucket first, then the groups as listed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Query {
    /// Whose frames.
    pub tenant: String,
    /// From this hour on.
    pub from: Option<Hour>,
    /// Before this hour.
    pub to: Option<Hour>,
    /// `None`: the whole time is one bucket.
    pub bucket: Option<Bucket>,
    /// No group twice.
    pub groups: Vec<Group>,
    /// Only these; empty: all.
    pub users: Vec<String>,
    /// Only these; empty: all.
    pub applications: Vec<String>,
    /// Only these; empty: all.
    pub levels: Vec<u8>,
    /// At most this many rows.
    pub limit: usize,
    /// Rows after this key, with one value for the bucket if there is one, and one per group.
    pub after: Option<Vec<Key>>,
}

/// One count.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The bucket's first hour if the query has buckets, then one value per group.
    pub key: Vec<Key>,
    /// Distinct finished frames.
    pub frames: u64,
}

/// Rows in the order of their keys. Without bucket and groups it is one row, even when it counts nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Page {
    /// At most [`Query::limit`], fewer when they would take more than [`MAX_PAGE_BYTES`].
    pub rows: Vec<Row>,
    /// Whether rows follow after the last one.
    pub more: bool,
}

/// What a page's keys may take together, so that the answer passes the 4 MiB that gRPC clients accept by default.
pub const MAX_PAGE_BYTES: usize = 2 << 20;

/// What one step of forgetting did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pruned {
    /// Ids forgotten; an estimate where they are dropped by whole days.
    pub removed: usize,
    /// Whether every id has now been looked at.
    pub finished: bool,
}

/// Why a store did not do what it was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Too much waits already.
    #[error("too many {what} wait for the statistics store (limit {limit})")]
    QueueFull {
        /// `events`, `batches` or `queries`.
        what: &'static str,
        /// The limit.
        limit: usize,
    },
    /// The ids of that time were forgotten, so the event could count twice. Nothing of its batch was stored.
    #[error("event {index} of the batch is older than the ids that the store remembers")]
    Forgotten {
        /// The place in the batch.
        index: usize,
    },
    /// The store was closed.
    #[error("the statistics store is closed")]
    Closed,
    /// The store cannot do it now. Nothing was acknowledged, so sending it again is safe.
    #[error("the statistics store failed: {0}")]
    Failed(#[source] Arc<dyn Error + Send + Sync>),
}

/// Counts events exactly once. Every implementation passes the suite in `conformance.rs`.
///
/// Promise P2: at every moment the sum over all rollups is the number of distinct events recorded.
#[tonic::async_trait]
pub trait Store: std::fmt::Debug + Send + Sync + 'static {
    /// Counts the events that are new. Resolves when that is durable, and not before. All of the batch or nothing.
    ///
    /// Dropping the future does not take the batch back: it may or may not be stored.
    ///
    /// # Errors
    /// [`StoreError`]; the batch may be sent again. After [`StoreError::Forgotten`] that helps only once somebody has
    /// put the store right.
    async fn record(&self, events: Vec<Event>) -> Result<Recorded, StoreError>;

    /// Answers one page. Dropping the future stops the work.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn query(&self, query: Query) -> Result<Page, StoreError>;

    /// Forgets ids of events before the hour `before`, looking at no more than `limit` ids, from where the last step
    /// stopped. From then on, events before that hour are refused with [`StoreError::Forgotten`], whatever the clock
    /// says. Counts are kept. A store may forget by whole days, and a little later than it refuses.
    ///
    /// # Errors
    /// [`StoreError`].
    async fn prune(&self, before: Hour, limit: usize) -> Result<Pruned, StoreError>;

    /// Finishes what waits, flushes and closes. Later calls get [`StoreError::Closed`].
    async fn close(&self);
}
