//! Ingest: the public edge. Takes frames from clients and answers with verdicts.
//!
//! The way of a frame ([`pipeline`]):
//! 1. [`frame`]: who, where, when; ids and sizes are checked before anything is spent.
//! 2. [`limits`]: one message to the rate limiter about every rule that applies.
//! 3. [`cache`]: the same bytes again are answered from memory; twins in flight share one inference.
//! 4. [`picture`]: the image is decoded within its limits and resized as the model's manifest says.
//! 5. [`infer`]: the pixels travel to a classifier over a pooled stream; scores come back.
//! 6. [`policy`] turns scores into a level; [`cadence`] says when the client should send its next frame.
//! 7. [`record`]: an event joins the stream to the statistics, and stays in memory or in the [`spool`] on disk until it is
//!    acknowledged.
//!
//! Invariants
//! - Every error a client sees is an [`IngestError`]: a canonical code, a stable reason, a message naming the field (P8).
//! - Nothing is decoded before the limits on bytes and pixels were checked (P3), and only on blocking threads.
//! - Pixels and digests are in no log, span, metric or error (P6).

pub mod cache;
pub mod cadence;
pub mod config;
pub mod decoders;
mod delivery;
pub mod error;
mod events;
pub mod frame;
pub mod infer;
pub mod limits;
pub mod models;
pub mod picture;
pub mod pipeline;
pub mod policy;
mod quiet;
pub mod record;
pub mod service;
pub mod shared;
pub mod spool;
mod traces;
mod users;

pub use config::{IngestConfig, PolicyConfig};
pub use error::IngestError;
pub use frame::MAX_AGE;
pub use pipeline::Pipeline;
pub use service::Service;
