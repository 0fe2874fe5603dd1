//! Serving: one listener, its services, and an end within a bound.
//!
//! - [`Server`]: what is served and where; [`Options`]: what a test can do without.
//! - [`Lifecycle`]: `NOT_SERVING` → lame duck → GOAWAY → bounded drain → cut. [`ConnectionDrain`] tells long streams.
//! - [`ServerConfig`]: bounds on connections, calls, streams, peers and bytes, each a setting.
//! - [`Accept`]: what is done with a connection before HTTP, such as TLS; [`PeerIdentity`]: who it turned out to be.
//! - [`compressed!`](crate::compressed): gzip and zstd for a generated service.
//!
//! A call passes, from the outside: CORS and grpc-web (at the edge), counting and tracing, the bounds on calls, the
//! caller's deadline, the bound on received bytes, what calls made for it inherit, the service.

mod accept;
mod bind;
mod config;
mod connection;
mod lifecycle;
mod limit;
mod listen;
mod peers;
mod receive;
mod reflection;
mod refuse;
mod web;

use std::{convert::Infallible, sync::Arc, time::Duration};

pub use accept::{Accept, Accepted, PeerIdentity, Plain};
pub use bind::{BindError, bind};
pub use config::ServerConfig;
use connection::Connections;
pub use lifecycle::{ConnectionDrain, Lifecycle};
pub use listen::Listen;
use listen::Listening;
use refuse::{Jitter, Refusals};
use sightline_telemetry::dependencies::{Condition, Dependencies};
use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Status, body::Body, service::Routes};
use tonic_health::pb::health_check_response::ServingStatus;
use tower::{ServiceBuilder, util::MapResponseLayer};
use tracing::{info, warn};
pub use web::WebOptions;

use crate::{
    client::{CallOptions, Inherit},
    error::RpcError,
    health::HealthRegistry,
    observe::Calls,
};

/// How long the end of connections that were cut may take: their tasks only have to be polled once.
const CUT_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a server could not begin.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// `Options::descriptors` holds something else.
    #[error(
        "one of the file descriptor sets in `Options::descriptors` cannot be read: {0}; pass what protoc or prost wrote"
    )]
    Descriptors(#[from] tonic_reflection::server::Error),
}

/// One listener and what it serves.
#[derive(Debug)]
pub struct Server<L = TcpListener> {
    /// For the log and the metrics.
    pub name: &'static str,
    /// Bound already, so that a taken port is an error before anything starts.
    pub listener: L,
    /// The services, each behind its guard.
    pub routes: Routes,
    /// The gRPC names of the services, for health.
    pub service_names: Vec<&'static str>,
    /// Set for the public edge, whose connections also get less memory each.
    pub web: Option<WebOptions>,
    /// How long calls may take to end once connections have got GOAWAY.
    pub drain_timeout: Duration,
}

/// How a server serves, where the defaults do not do.
#[derive(Debug, Clone)]
pub struct Options {
    /// Bounds and times.
    pub config: ServerConfig,
    /// File descriptor sets of the services: reflection shows them, metrics name their methods, and streams are told from
    /// unary calls by them. Without them a call is taken for a unary one, whose client may send for as long as it likes.
    pub descriptors: Vec<&'static [u8]>,
    /// Health also names these, as the services `dependency.NAME`.
    pub dependencies: Dependencies,
    /// What is done with a connection before HTTP.
    pub accept: Arc<dyn Accept>,
    /// How many extra attempts (retries, hedges) the calls that other services make for one call may cost together: what
    /// a call begins with at the edge, and the most that is believed of another service.
    pub attempts: u32,
    /// For a simulation that can be repeated; unset: from the system.
    pub seed: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            config: ServerConfig::default(),
            descriptors: Vec::new(),
            dependencies: Dependencies::default(),
            accept: Arc::new(Plain),
            attempts: CallOptions::default().tree_attempts,
            seed: None,
        }
    }
}

impl<L: Listen> Server<L> {
    /// Serves until `lifecycle` drains and every call has ended; see [`Lifecycle`] for the bounds. Everything is cut when
    /// the future is dropped.
    ///
    /// # Errors
    /// [`ServeError`], before anything is served; a drain that ran out of time is logged, not an error.
    pub async fn run(self, lifecycle: Lifecycle) -> Result<(), ServeError> {
        self.run_with(lifecycle, Options::default()).await
    }

    /// The same with other options than the defaults.
    ///
    /// # Errors
    /// As [`Server::run`].
    pub async fn run_with(self, lifecycle: Lifecycle, options: Options) -> Result<(), ServeError> {
        let health = HealthRegistry::default();
        health.set("", ServingStatus::Serving);
        for service in &self.service_names {
            health.set(service, ServingStatus::Serving);
        }
        let routes = self.routes.add_service(health.service());
        let names: Vec<&str> = self.service_names.iter().copied().chain(reflection::ON_EVERY_PORT).collect();
        let routes = reflection::add(routes, &names, &options.descriptors)?.prepare();

        lifecycle.begin(options.config.lame_duck.0);
        let calls = Calls::new(self.name, &names, &reflection::all(&options.descriptors));
        let jitter = Jitter::new(options.seed);
        let refusals = Refusals::new(self.name, options.config.retry_after.0, jitter.clone());
        let is_edge = self.web.is_some();
        let windows = if is_edge { connection::EDGE } else { connection::INSIDE };
        let window = windows.stream();
        let admission = limit::Admission::new(self.name, &options.config, window, calls.clone(), refusals);
        let inherit =
            if is_edge { Inherit::edge(options.attempts) } else { Inherit::inside(options.attempts) };
        let services = ServiceBuilder::new().layer(MapResponseLayer::new(explain)).layer(admission);
        let services = services.layer(inherit).service(routes);

        let (tasks, cut) = (TaskTracker::new(), CancellationToken::new());
        let _cut_when_dropped = cut.clone().drop_guard();
        let connections = Connections {
            server: self.name,
            accept: options.accept,
            http: connection::http(windows, is_edge, &tasks),
            lifecycle: lifecycle.clone(),
            cut: cut.clone(),
            callers: peers::Peers::default(),
            jitter,
            local: self.listener.local_address(),
            config: options.config,
        };
        let listening = Listening::new(connections, calls.clone(), tasks.clone());
        let leaving = leave(&lifecycle, &health, &options.dependencies);
        match self.web {
            None => {
                let stack = ServiceBuilder::new().layer(calls).service(services);
                tokio::join!(leaving, listening.until_draining(self.listener, stack));
            }
            Some(web) => {
                let grpc_web = tonic_web::GrpcWebLayer::new();
                let stack = ServiceBuilder::new().layer(web::cors(&web)).layer(grpc_web).layer(calls);
                let stack = stack.service(services);
                tokio::join!(leaving, listening.until_draining(self.listener, stack));
            }
        }
        finish(self.name, &tasks, &cut, self.drain_timeout).await;
        Ok(())
    }
}

/// Shows the dependencies until the server is asked to stop; then turns health, and gives those who watch it the time to
/// turn away.
async fn leave(lifecycle: &Lifecycle, health: &HealthRegistry, dependencies: &Dependencies) {
    tokio::select! {
        () = lifecycle.leaving() => {}
        never = show(dependencies, health) => match never {},
    }
    health.stop();
    tokio::select! {
        () = tokio::time::sleep(lifecycle.lame_duck()) => lifecycle.end_lame_duck(),
        () = lifecycle.draining() => {}
    }
}

/// Waits for the calls in flight, and cuts what is left.
async fn finish(server: &'static str, tasks: &TaskTracker, cut: &CancellationToken, drain_timeout: Duration) {
    info!(server, "draining");
    tasks.close();
    if tokio::time::timeout(drain_timeout, tasks.wait()).await.is_ok() {
        return;
    }
    let left = tasks.len();
    warn!(server, "{left} connections and calls were still open after {drain_timeout:?}: they are cut");
    cut.cancel();
    if tokio::time::timeout(CUT_TIMEOUT, tasks.wait()).await.is_err() {
        warn!(server, "{} calls do not return; they end with the process", tasks.len());
    }
}

/// Keeps health in step with the dependencies. One that is degraded serves: whoever asks by gRPC decides whether to send
/// calls here; why it is degraded is at `/healthz`.
async fn show(dependencies: &Dependencies, health: &HealthRegistry) -> Infallible {
    let mut conditions = dependencies.subscribe();
    loop {
        for (name, condition) in conditions.borrow_and_update().iter() {
            let status = match condition {
                Condition::Healthy | Condition::Degraded(_) => ServingStatus::Serving,
                Condition::Down(_) => ServingStatus::NotServing,
            };
            health.set(&format!("dependency.{name}"), status);
        }
        if conditions.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Gives the errors that the transport itself answers a reason like every other (P8): a message over the size limit, and
/// one that cannot be unpacked.
fn explain(response: http::Response<Body>) -> http::Response<Body> {
    match Status::from_header_map(response.headers()).as_ref().and_then(RpcError::of_transport) {
        Some(error) => Status::from(error).into_http(),
        None => response,
    }
}

/// Lets a generated server take and send gzip and zstd. An answer is compressed when its caller asks for it
/// (`grpc-accept-encoding`), a message is read however it comes; its size limit holds for what it unpacks to.
///
/// For the edge, where bytes cost more than time. Not inside: 16-bit pixels of photographs shrink by 0.2 to 9 % and cost
/// zstd (level 3) 0.6 to 5 ms for each 224 × 224 frame, as measured on five pictures of scikit-image.
///
/// `sightline_mesh::compressed!(IngestServiceServer::new(service))`
#[macro_export]
macro_rules! compressed {
    ($service:expr) => {{
        use $crate::tonic::codec::CompressionEncoding::{Gzip, Zstd};
        let service = $service.accept_compressed(Gzip).accept_compressed(Zstd);
        service.send_compressed(Zstd).send_compressed(Gzip)
    }};
}
