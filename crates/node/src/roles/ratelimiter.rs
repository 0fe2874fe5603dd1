//! Wires the rate limiter.

use sightline_mesh::server::{Lifecycle, Server};
use sightline_ratelimiter::{Deps, RateLimiter, RateLimiterConfig, build};
use tokio::net::TcpListener;
use tonic::service::{Routes, interceptor::InterceptedService};

use super::{Running, Shared, nothing};
use crate::{NodeError, Role};

pub(crate) fn start(
    config: &RateLimiterConfig,
    listener: TcpListener,
    shared: &Shared,
) -> Result<Running, NodeError> {
    let lifecycle = Lifecycle::default();
    let service = build(config, Deps { lifecycle: lifecycle.clone() })?.into_service();
    let server = Server {
        name: Role::Ratelimiter.name(),
        listener,
        routes: Routes::new(InterceptedService::new(service, shared.service_guard())),
        service_names: vec![RateLimiter::SERVICE_NAME],
        web: None,
        drain_timeout: config.drain_timeout.0,
    };
    Ok(Running::start(Role::Ratelimiter, server, lifecycle, nothing()))
}
