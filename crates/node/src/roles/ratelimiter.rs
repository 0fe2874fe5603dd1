//! Wires the rate limiter.

use std::time::Duration;

use sightline_mesh::server::{Lifecycle, Server};
use sightline_ratelimiter::{Deps, RateLimiter, RateLimiterConfig, build};
use tokio::net::TcpListener;
use tonic::service::Routes;

use super::{Running, Shared, nothing};
use crate::{NodeError, Role};

/// How long a start waits for Redis. Without it the role serves all the same, as each rule declares.
const FIRST_CONNECTION: Duration = Duration::from_secs(3);

pub(crate) async fn start(
    config: &RateLimiterConfig,
    listener: TcpListener,
    shared: &Shared,
) -> Result<Running, NodeError> {
    let lifecycle = Lifecycle::default();
    let deps = Deps { lifecycle: lifecycle.clone(), dependencies: shared.dependencies.clone() };
    let limiter = build(config, deps)?;
    limiter.ready_within(FIRST_CONNECTION).await;
    let envoy = shared.service_guard().protect(limiter.envoy_service());
    let service = shared.service_guard().protect(limiter.into_service());
    let server = Server {
        name: Role::Ratelimiter.name(),
        listener,
        routes: Routes::new(service).add_service(envoy),
        service_names: vec![RateLimiter::SERVICE_NAME, RateLimiter::ENVOY_SERVICE_NAME],
        web: None,
        drain_timeout: config.drain_timeout.0,
    };
    shared.serve(Role::Ratelimiter, server, lifecycle, nothing())
}
