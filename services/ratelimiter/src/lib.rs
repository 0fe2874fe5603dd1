//! The rate limiter: says whether a caller may go on, by all the rules that apply to it at once.
//!
//! The way of a check: [`service`] validates the message → [`rules`] finds the rules that apply → a [`store`] looks
//! at their counters and charges all or none, by [`gcra`] → the answer says how each rule stands and, when refused,
//! when to come back.
//!
//! Gateways ask the same counters through [`envoy`].
//!
//! Invariants
//! - Over any window of length `W` a counter admits at most `burst + W · limit / per` hits.
//! - A refused check charges nothing; an admitted one charges every rule that applies.
//! - After exactly `retry_after`, and not before, the same check passes if nobody else asks.
//! - Memory is bounded by `max_keys`, whatever callers send; values sent are hashed, not kept.
//! - A bad check is answered with an error of its own and costs no other check of its stream anything.
//!
//! - Replicas that share a Redis are one rate limiter. While it is away each rule does what it declares, within
//!   milliseconds, and every answer says so.
//!
//! Deliberately absent: leases, refunds that callers ask for, reload of rules.

pub mod config;
pub mod envoy;
pub mod error;
pub mod events;
pub mod gcra;
pub mod rules;
pub mod service;
pub mod store;
mod stream;

use std::{sync::Arc, time::Duration};

use sightline_mesh::server::Lifecycle;
use sightline_proto::ratelimiter::rate_limiter_service_server::{
    RateLimiterService, RateLimiterServiceServer, SERVICE_NAME,
};

pub use crate::config::RateLimiterConfig;
use sightline_proto::envoy::service::ratelimit::v3::rate_limit_service_server::{
    self as envoy_name, RateLimitService, RateLimitServiceServer,
};
use sightline_redis::{Link, Options, TargetError};
use sightline_telemetry::dependencies::Dependencies;

use crate::{
    config::ValueError,
    envoy::EnvoyService,
    rules::{RuleSet, RulesError},
    service::{MAX_MESSAGE_BYTES, Service},
    store::{
        AnyStore,
        memory::MemoryStore,
        redis::{Clock, RedisStore, Settings},
    },
    stream::Limits,
};

/// The largest message of a gateway: 64 descriptors of 16 entries would be 2 MB of 4-byte characters, but a proxy's header
/// fields, from which their values come, have at most 60 KiB in all.
const MAX_ENVOY_MESSAGE_BYTES: usize = 128 << 10;
/// Checks undecided over all streams with which a rate limiter over its own memory is full: as many as may wait for Redis
/// by default, and 40 ms of work at 100,000 a second.
const UNDECIDED_IN_MEMORY: usize = 4096;

/// What the rate limiter needs of the process it runs in.
#[derive(Debug, Clone, Default)]
pub struct Deps {
    /// Streams end when it drains.
    pub lifecycle: Lifecycle,
    /// Where Redis is reported on.
    pub dependencies: Dependencies,
}

/// Why the rate limiter cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A value of the section.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// The rules.
    #[error("`ratelimiter.rules`: {0}")]
    Rules(#[from] RulesError),
    /// The address of Redis.
    #[error("`ratelimiter.redis_url`: {0}")]
    Redis(#[from] TargetError),
}

/// A rate limiter ready to be served.
pub struct RateLimiter {
    rules: Arc<RuleSet>,
    store: Arc<AnyStore>,
    service: Service<AnyStore>,
}

impl std::fmt::Debug for RateLimiter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RateLimiter").field("rules", &self.rules).finish_non_exhaustive()
    }
}

/// Reads the rules and prepares the store: an empty one in memory with its sweeper, a task that ends with the rate
/// limiter, and before it, where `redis_url` is set, Redis, to which it begins to connect. Called inside a tokio
/// runtime, after the metrics recorder is installed.
///
/// # Errors
/// [`BuildError`] naming the setting, or the rule and its field.
pub fn build(config: &RateLimiterConfig, deps: Deps) -> Result<RateLimiter, BuildError> {
    config.validate()?;
    let rules = Arc::new(RuleSet::load(&config.rules)?);
    let memory = Arc::new(MemoryStore::new(config.max_keys));
    tokio::spawn(Arc::clone(&memory).keep_swept(config.idle_sweep.0));
    let store = Arc::new(match &config.redis_url {
        None => AnyStore::Memory(memory),
        Some(url) => {
            let options = Options {
                ca_file: config.redis_ca_file.clone(),
                timeout: config.redis_timeout.0,
                ..Options::default()
            };
            let link = Link::new(url, &options, Some(deps.dependencies.register("ratelimiter-redis")))?;
            rules.warn_of_rounding();
            AnyStore::Redis(RedisStore::new(link, settings(config), memory, Clock::real()))
        }
    });
    let limits = Limits {
        in_flight: config.max_in_flight,
        undecided: config.redis_url.as_ref().map_or(UNDECIDED_IN_MEMORY, |_| config.redis_queue),
        grace: config.drain_timeout.0,
    };
    let service = Service::new(Arc::clone(&rules), Arc::clone(&store), deps.lifecycle, limits);
    Ok(RateLimiter { rules, store, service })
}

fn settings(config: &RateLimiterConfig) -> Settings {
    Settings {
        prefix: config.redis_prefix.clone(),
        timeout: config.redis_timeout.0,
        batch: config.redis_batch,
        queue: config.redis_queue,
        keep: config.redis_keep.0,
        deny_cache: config.deny_cache,
        replicas: config.replicas,
    }
}

impl RateLimiter {
    /// The gRPC name of the service, for health.
    pub const SERVICE_NAME: &'static str = SERVICE_NAME;
    /// The gRPC name of the service for gateways.
    pub const ENVOY_SERVICE_NAME: &'static str = envoy_name::SERVICE_NAME;

    /// The rules in force, in the order of their file.
    pub fn rules(&self) -> &RuleSet {
        &self.rules
    }

    /// Waits for the first connection to Redis, so that the first checks are not decided without it; false when there
    /// is none by then. In memory there is nothing to wait for.
    pub async fn ready_within(&self, time: Duration) -> bool {
        match &*self.store {
            AnyStore::Memory(_) => true,
            AnyStore::Redis(redis) => redis.available_within(time).await,
        }
    }

    /// The same limiter as Envoy and the gateways built on it call it.
    pub fn envoy_service(&self) -> RateLimitServiceServer<impl RateLimitService + use<>> {
        let service = EnvoyService::new(Arc::clone(self.rules.domains()), Arc::clone(&self.store));
        RateLimitServiceServer::new(service).max_decoding_message_size(MAX_ENVOY_MESSAGE_BYTES)
    }

    /// The tonic service with its message sizes set, to be put behind a guard and into routes.
    pub fn into_service(self) -> RateLimiterServiceServer<impl RateLimiterService> {
        RateLimiterServiceServer::new(self.service).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }
}
