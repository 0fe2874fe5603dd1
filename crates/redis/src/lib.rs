//! The one place that talks to Redis, for the rate limiter and the shared cache.
//!
//! [`Link`] is a connection that is always there to be asked: it connects in the background, comes back by itself, and
//! while Redis is slow or away its callers hear [`LinkError::Away`] at once instead of waiting.
//!
//! - [`target`]: what a URL means. A plain server, a Cluster, or a master found through Sentinels; TLS; ACL user.
//! - [`link`]: the calls, and the task that connects, probes and reports.
//! - [`breaker`]: after so many failures in a row nobody is let through until a probe was answered in time.
//! - [`script`]: scripts by their digest, loaded where they are missing.
//!
//! **Why redis-rs with multiplexed connections, and no pool.** redis-rs speaks to a plain server, Cluster and Sentinel with
//! one command type, and its multiplexed connection pipelines the commands of many tasks over one socket: a write and a
//! read of the socket serve all that wait. A pool (bb8-redis) hands one connection to one task at a time, so a thousand
//! checks in flight would be a thousand sockets and as many system calls, and it sends a PING at check-out by default, a
//! second round trip. What a pool is good for, blocking reads, none of our commands here do. redis-rs' own limit of 500 ms for an
//! answer and its `ConnectionManager` are not used: our callers wait milliseconds, and a manager lets each of them wait
//! for its reconnection.

pub mod breaker;
pub mod link;
pub mod script;
pub mod target;

pub use link::{Link, LinkError, Options};
pub use redis::{Cmd, FromRedisValue, Pipeline, RedisError, Value, cmd, from_redis_value};
pub use script::Script;
pub use target::{TargetError, Topology};
