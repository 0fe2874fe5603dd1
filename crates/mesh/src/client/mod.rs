//! Calling other services.
//!
//! A [`Cluster`] is the replicas of one service: [`discovery`] says where they are, an [`Endpoint`] is one of them over a
//! connection that we own ([`Transport`]), and [`Cluster::pick`] chooses who takes the next call.

mod address;
mod backoff;
mod balance;
mod breaker;
mod call;
mod channel;
mod cluster;
mod connect;
mod dice;
pub mod discovery;
mod endpoint;
mod gate;
mod health;
mod life;
mod load;
mod meters;
mod options;
mod picked;
mod pool;
mod report;
mod settings;
mod transport;
mod wire;

pub use address::{Address, EndpointError, EndpointId};
pub use call::{
    ATTEMPTS_LEFT, AttemptBudget, Backoff, CallContext, Codes, Inherit, Inheriting, MethodPolicies,
    MethodPolicy, PolicyError, RetryBudget, RetryBudgetOptions, Throttle, ThrottleOptions,
};
pub use channel::{CallOptions, CallSnapshot, Channel, RouteKey};
pub use cluster::{Cluster, ClusterSnapshot, EndpointList, Pick};
pub use connect::{BoxFuture, BoxedIo, Connect, Io, TcpConnect};
pub use discovery::{AddressStream, Discover, DiscoverError, Fixed};
pub use endpoint::{Endpoint, EndpointSnapshot, ServerLoad, State};
pub use options::{
    Balance, BreakerOptions, ClusterOptions, HealthOptions, LoadOptions, MeshOptions, ReconnectOptions,
    TransportOptions, ZoneOptions,
};
pub use picked::{Outcome, Picked};
pub use pool::{
    Admitted, Answered, Ask, Lane, Message, PoolOptions, PoolSnapshot, Refused, StallOptions, StreamPool,
    StreamsSnapshot,
};
pub use report::Without;
pub use settings::MeshConfig;
pub use transport::{Ended, Transport, TransportError};
