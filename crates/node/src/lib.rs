//! Runs roles in one process: all four for `sightline dev`, one each for `sightline serve`.
//!
//! Listeners are bound first, so that a taken port is an error before a model is loaded. Roles start in the order
//! ratelimiter, classifier, stats, ingest and stop in reverse: whoever is called outlives its callers. Between roles of
//! the same process calls go over loopback by the same client as between machines: one way, tested once.

mod check;
mod config;
mod error;
mod migrate;
mod node;
mod roles;
mod tls;
mod upstreams;

pub use check::check;
pub use config::{NodeConfig, NodeSettings, registry};
pub use error::NodeError;
pub use migrate::{Migration, Standing, migrate, migration_status};
pub use node::{Node, Role};
