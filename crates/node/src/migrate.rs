//! The schemas of the stores on servers, for `sightline migrate`.

use sightline_stats::store::postgres::migrations;
pub use sightline_stats::store::postgres::migrations::{Migration, Standing};

use crate::{NodeConfig, NodeError};

/// Brings the schema of the statistics forward, and says what that took; nothing, when it is current.
///
/// # Errors
/// [`NodeError`]: PostgreSQL is not configured, not there, or holds a schema that this program does not know.
pub async fn migrate(config: &NodeConfig) -> Result<Vec<Migration>, NodeError> {
    check(config)?;
    let done = migrations::migrate(&config.stats).await;
    done.map_err(|error| NodeError::Stats(error.into()))
}

/// What is applied and what is left to do; changes nothing.
///
/// # Errors
/// As [`migrate`].
pub async fn migration_status(config: &NodeConfig) -> Result<Standing, NodeError> {
    check(config)?;
    let standing = migrations::status(&config.stats).await;
    standing.map_err(|error| NodeError::Stats(error.into()))
}

fn check(config: &NodeConfig) -> Result<(), NodeError> {
    if config.stats.postgres_url.is_none() {
        return Err(NodeError::Config(
            "`stats.postgres_url` is not set: only PostgreSQL needs `sightline migrate`; the SQLite file is made when \
             the statistics open it"
                .into(),
        ));
    }
    Ok(())
}
