//! What every service of the mesh needs to serve and to call: nothing here knows of images.
//!
//! Client side
//! - [`client::Endpoints`]: lazily connected single-connection channels to the replicas of a service.
//! - [`client::StreamPool`]: long-lived bidi streams to each replica; a message goes to the stream with the fewest
//!   unanswered messages, answers are matched by id, credits bound what is in flight, a broken stream's messages move.
//!
//! Server side
//! - [`server::Server`]: one listener, its health, reflection, grpc-web and token check; [`server::Lifecycle`] takes it
//!   from serving over draining to stopped within a bound.
//!   Its calls and connections are counted, timed and traced.
//! - [`health::HealthRegistry`]: `grpc.health.v1` with the `Watch` the protocol asks for.
//!
//! Both
//! - [`RpcError`]: a canonical code, a stable reason and a message that names the field or limit (promise P8).
//! - [`Deadline`]: how long the caller still waits, carried from hop to hop (promise P4).
//! - [`auth`]: JWT verification, and the claims a service may trust.

pub mod auth;
pub mod client;
mod deadline;
mod error;
pub mod health;
mod observe;
pub mod server;

pub use deadline::Deadline;
pub use error::{DOMAIN, RpcError, reason};
