//! The classifier: resized pixels in, class probabilities out.
//!
//! A [`registry::Registry`] holds the models. Each model has a bounded [`queue::Queue`] and a few [`executor`] threads
//! of its own; every thread owns a copy of the module and runs it and nothing else. [`service::Service`] speaks the
//! protocol: it hands a stream credits, puts its tensors into queues and sends the answers back.
//!
//! Invariants
//! - A place in a queue belongs to the entry, not to the caller's future: a caller that goes away frees nothing until
//!   its entry has left the queue, so the bound on memory holds (P3).
//! - A batch closes when an executor is free, never earlier; entries whose deadline passed or whose caller went away
//!   are answered without being run (P4).
//! - Every tensor that was read is answered exactly once, and has a place for its answer before it is queued. When its
//!   stream's answers are no longer read it is not run.
//! - A tensor costs only itself: a batch that fails is run again one by one, and scores are checked row by row.
//! - Only executor threads touch the model, and they are started once: nothing blocks a tokio worker.

mod answers;
pub mod backend;
pub mod config;
pub mod error;
mod events;
mod executor;
mod pixels;
pub mod queue;
pub mod registry;
pub mod service;
mod traces;

pub use config::ClassifierConfig;
pub use error::{ClassifierError, StartError};
pub use registry::Registry;
pub use service::Service;
pub use traces::Traced;
