//! Counts finished frames per tenant, user, application, level and source, by the hour.
//!
//! Invariants
//! - **P2, exact**: the sum of all rollups is the number of distinct events. An event's id and the rollup it counts in
//!   are written in one transaction; an id counts once per tenant. Ids are forgotten only for hours that the store
//!   refuses from then on, so no redelivery counts twice, however late.
//! - A batch is acknowledged after it is committed, and survives what `stats.durability` says (SQLite) or what the server promises (PostgreSQL). A batch without an
//!   answer is sent again by the caller; that changes nothing if it was stored.
//! - A batch is stored as a whole or not at all; a bad event refuses its batch and names the field.
//! - Memory is bounded: events and batches that wait, batches in flight per stream, queries that wait, rows per page.
//! - Nothing here blocks a tokio worker.
//!
//! The way of a batch: [`Service`] → `record` (one task per stream) → `intake` (checks) → [`store::Store`] →
//! [`store::sqlite`], or [`store::postgres`] when `stats.postgres_url` is set. The way of a query: [`Service`] → `query` (checks, pages) → [`store::Store`].
//! `retention` forgets old ids. What the rollups cannot say (devices, models) is not kept.

mod config;
mod error;
mod events;
mod intake;
mod page_token;
mod query;
mod record;
mod retention;
mod service;
pub mod store;
mod traces;

use std::{path::Path, sync::Arc};

pub use config::{Durability, StatsConfig};
pub use error::StatsError;
pub use intake::MAX_NAME_CHARS;
pub use query::{MAX_FILTER_VALUES, MAX_PAGE_SIZE};
pub use service::Service;
use sightline_mesh::server::Lifecycle;
use sightline_telemetry::dependencies::Dependencies;
use store::{
    Store,
    postgres::{PostgresError, PostgresStore},
    sqlite::{OpenError, SqliteStore},
};

/// The largest message that keeps to the limits of `max_batch_events`, which is at most 5,000: give it to
/// `StatsServiceServer::max_decoding_message_size`. (5,000 events of five names of 128 characters of up to 4 bytes.)
pub const MAX_REQUEST_BYTES: usize = 16 << 20;

/// Why the service cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A setting that makes no sense.
    #[error("{0}")]
    Config(String),
    /// The database cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// PostgreSQL cannot be used.
    #[error(transparent)]
    Postgres(#[from] PostgresError),
}

/// The running service without its port.
#[derive(Debug)]
pub struct Stats {
    service: Service,
    store: Arc<dyn Store>,
}

/// Opens the store and starts what runs beside the calls. A relative `stats.database` is under `data_dir`.
/// When `lifecycle` drains, record streams answer what they read and end. PostgreSQL is registered in `dependencies`.
///
/// # Errors
/// [`BuildError`], naming the setting and the file.
pub async fn build(
    config: &StatsConfig,
    data_dir: &Path,
    lifecycle: Lifecycle,
    dependencies: &Dependencies,
) -> Result<Stats, BuildError> {
    config.validate().map_err(BuildError::Config)?;
    let store: Arc<dyn Store> = match &config.postgres_url {
        Some(_) => Arc::new(PostgresStore::open(config, dependencies).await?),
        None => Arc::new(SqliteStore::open(config, data_dir).await?),
    };
    tokio::spawn(retention::sweep(Arc::clone(&store), config.dedupe_window.0, lifecycle.clone()));
    Ok(Stats { service: Service::new(config, Arc::clone(&store), lifecycle), store })
}

impl Stats {
    /// For `StatsServiceServer`.
    pub fn service(&self) -> Service {
        self.service.clone()
    }

    /// Commits what waits and closes the store: call it when the server has ended.
    pub async fn close(self) {
        self.store.close().await;
    }
}
