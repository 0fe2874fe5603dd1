//! What every service of the mesh needs to serve and to call: nothing here knows of images.
//!
//! Client side
//! - [`client::Cluster`]: the replicas of one service over connections that we own. Discovered, connected again when they
//!   break, admitted by their health, ejected by a breaker, chosen by latency and load.
//! - [`client::Endpoints`]: lazily connected single-connection channels to the replicas of a service.
//! - [`client::StreamPool`]: long-lived bidi streams to each replica; a message goes to the stream with the fewest
//!   unanswered messages, answers are matched by id, credits bound what is in flight, a broken stream's messages move.
//! - [`client::Channel`]: what generated clients take to call a service: deadlines to the end of the answer, retries and
//!   hedges within budgets, by one table of what may be done with which method ([`client::MethodPolicies`]).
//!
//! Server side
//! - [`server::Server`]: one listener, its health, reflection and grpc-web; [`server::Lifecycle`] takes it from serving
//!   over a lame duck and draining to stopped within a bound. Connections grow old and move on; calls, streams, peers and
//!   bytes have bounds ([`server::ServerConfig`]). Its calls and connections are counted, timed and traced.
//! - [`stream`]: what the server's end of a stream of messages says of itself: its load, and when it drains.
//! - [`client::Inherit`]: calls made while a call is served inherit its deadline and its attempts.
//! - [`health::HealthRegistry`]: `grpc.health.v1` with the `Watch` the protocol asks for.
//!
//! Both
//! - [`RpcError`]: a canonical code, a stable reason and a message that names the field or limit (promise P8).
//! - [`Deadline`]: how long the caller still waits, carried from hop to hop (promise P4).
//! - [`WaitEstimate`]: how long a line is in time, so that who cannot be served in time hears so at once.
//! - [`auth`]: JWT verification, and the claims a service may trust.
//! - [`identity`]: TLS: certificates that reload, and peers known by their SPIFFE ids.
//!
//! # Another service
//!
//! `examples/greeter.rs`, which the tests run:
//!
//! ```ignore
#![doc = include_str!("../examples/greeter.rs")]
//! ```

pub mod auth;
pub mod client;
mod deadline;
mod error;
mod follow;
mod gather;
pub mod health;
pub mod identity;
pub mod io;
mod names;
mod observe;
pub mod server;
mod sizes;
pub mod stream;
mod wait;

pub use deadline::Deadline;
// For the macros.
pub use error::{DOMAIN, RpcError, reason};
#[doc(hidden)]
pub use tonic;
pub use wait::WaitEstimate;
