//! Serving: one listener, its services, and an end within a bound.

use std::{convert::Infallible, future::Future, io, net::SocketAddr, time::Duration};

use http::{HeaderName, HeaderValue, Method};
use sightline_telemetry::dependencies::{Condition, Dependencies};
use tokio::net::TcpListener;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, body::Body, service::Routes, transport::server::TcpIncoming};
use tonic_health::pb::health_check_response::ServingStatus;
use tower_http::cors::{AllowOrigin, CorsLayer};
use tracing::{info, warn};

use crate::{error::RpcError, health::HealthRegistry, observe::Calls};

/// What one connection may hold of the server's memory before a call has been read (HTTP/2 flow control).
#[derive(Debug, Clone, Copy)]
struct Windows {
    /// Bytes on their way in one call.
    stream: u32,
    /// Bytes on their way on the connection.
    connection: u32,
    /// Bytes in one HTTP/2 frame.
    frame: u32,
    /// Calls open at once.
    calls: u32,
}

/// For clients, of whom there are very many: a usual image is one window, a connection holds 1 MiB.
const EDGE: Windows = Windows { stream: 256 << 10, connection: 1 << 20, frame: 64 << 10, calls: 128 };
/// For other services, of which there are few: several resized frames (150 to 300 KB each) fit on a stream and dozens
/// on a connection, so that a message is never cut into many round trips.
const INSIDE: Windows = Windows { stream: 4 << 20, connection: 32 << 20, frame: 256 << 10, calls: 1024 };
/// A silent client is asked for a sign of life this often, and dropped after as long again.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Why a listener could not be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process has the port.
    #[error(
        "`{setting}`: {address} is in use by another process; stop it, choose another port, or 0 for any free one"
    )]
    InUse {
        /// The configuration key.
        setting: String,
        /// The address asked for.
        address: SocketAddr,
    },
    /// Anything else the system said.
    #[error("`{setting}`: cannot listen on {address}: {source}")]
    Other {
        /// The configuration key.
        setting: String,
        /// The address asked for.
        address: SocketAddr,
        /// The system's word.
        source: io::Error,
    },
}

/// Listens on `address`; `setting` is the configuration key that an error names.
///
/// # Errors
/// [`BindError`].
pub async fn bind(setting: &str, address: SocketAddr) -> Result<TcpListener, BindError> {
    let setting = setting.to_owned();
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse { setting, address },
        _ => BindError::Other { setting, address, source },
    })
}

/// From serving over draining to stopped. Cheap to clone; all clones are one life.
#[derive(Debug, Clone, Default)]
pub struct Lifecycle {
    draining: CancellationToken,
}

impl Lifecycle {
    /// Asks the server to finish: health turns `NOT_SERVING`, streams are told, no new connection is taken.
    pub fn drain(&self) {
        self.draining.cancel();
    }

    /// Whether [`Lifecycle::drain`] was called.
    pub fn is_draining(&self) -> bool {
        self.draining.is_cancelled()
    }

    /// Waits until [`Lifecycle::drain`] is called.
    pub async fn draining(&self) {
        self.draining.cancelled().await;
    }
}

/// Web pages that may call by grpc-web.
#[derive(Debug, Clone, Default)]
pub struct WebOptions {
    /// Origins such as `https://app.example.com`; `*` for all. Empty: no web page may.
    pub allowed_origins: Vec<String>,
}

/// One listener and what it serves.
#[derive(Debug)]
pub struct Server {
    /// For the log.
    pub name: &'static str,
    /// Bound already, so that a taken port is an error before anything starts.
    pub listener: TcpListener,
    /// The services, each behind its guard.
    pub routes: Routes,
    /// The gRPC names of the services, for health.
    pub service_names: Vec<&'static str>,
    /// Set for the public edge, whose connections also get less memory each.
    pub web: Option<WebOptions>,
    /// How long a drain may take.
    pub drain_timeout: Duration,
}

impl Server {
    /// Serves until `lifecycle` drains and every call has ended, at most `drain_timeout` after the drain began.
    ///
    /// # Errors
    /// What the transport says; a drain that ran out of time is logged, not an error.
    pub async fn run(self, lifecycle: Lifecycle) -> Result<(), tonic::transport::Error> {
        self.run_with(lifecycle, &Dependencies::default()).await
    }

    /// The same; health also names `dependencies`, as the services `dependency.NAME`.
    ///
    /// # Errors
    /// As [`Server::run`].
    pub async fn run_with(
        self,
        lifecycle: Lifecycle,
        dependencies: &Dependencies,
    ) -> Result<(), tonic::transport::Error> {
        let health = HealthRegistry::default();
        health.set("", ServingStatus::Serving);
        for service in &self.service_names {
            health.set(service, ServingStatus::Serving);
        }
        let routes = self
            .routes
            .add_service(health.service())
            .add_service(reflection(&self.service_names))
            .add_service(reflection_v1alpha(&self.service_names));
        let signal = {
            let (lifecycle, health) = (lifecycle.clone(), health.clone());
            async move {
                lifecycle.draining().await;
                health.stop();
            }
        };
        let names: Vec<&str> = self.service_names.iter().copied().chain(ON_EVERY_PORT).collect();
        let calls = Calls::new(self.name, &names, &DESCRIPTORS);
        let incoming = TcpIncoming::from(self.listener).with_nodelay(Some(true));
        let serving = serve(incoming, routes, self.web, calls, signal);
        tokio::pin!(serving);
        tokio::select! {
            ended = &mut serving => return ended,
            () = lifecycle.draining() => {}
            never = show(dependencies, &health) => match never {},
        }
        info!(server = self.name, "draining");
        match tokio::time::timeout(self.drain_timeout, &mut serving).await {
            Ok(ended) => ended,
            Err(_) => {
                warn!(
                    server = self.name,
                    "calls still open after {:?} end with the process", self.drain_timeout
                );
                Ok(())
            }
        }
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

async fn serve(
    incoming: TcpIncoming,
    routes: Routes,
    web: Option<WebOptions>,
    calls: Calls,
    signal: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let windows = if web.is_some() { EDGE } else { INSIDE };
    let builder = tonic::transport::Server::builder()
        .tcp_nodelay(true)
        .initial_stream_window_size(windows.stream)
        .initial_connection_window_size(windows.connection)
        .max_frame_size(windows.frame)
        .max_concurrent_streams(windows.calls)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE));
    let counted = calls.clone();
    let incoming = incoming.map(move |stream| stream.map(|stream| counted.connection(stream)));
    let explained = tower::util::MapResponseLayer::new(explain);
    match web {
        None => {
            let mut builder = builder.layer(calls).layer(explained);
            builder.add_routes(routes).serve_with_incoming_shutdown(incoming, signal).await
        }
        Some(web) => {
            builder
                .accept_http1(true)
                .layer(cors(&web))
                .layer(tonic_web::GrpcWebLayer::new())
                .layer(calls)
                .layer(explained)
                .add_routes(routes)
                .serve_with_incoming_shutdown(incoming, signal)
                .await
        }
    }
}

/// Gives the one error that the transport itself answers a reason like every other (P8): a message over the size limit,
/// which is turned away before it is read.
fn explain(response: http::Response<Body>) -> http::Response<Body> {
    match Status::from_header_map(response.headers()) {
        Some(status) if status.code() == Code::OutOfRange && status.details().is_empty() => {
            Status::from(RpcError::from_inbound(&status)).into_http()
        }
        _ => response,
    }
}

fn cors(web: &WebOptions) -> CorsLayer {
    let origins: Vec<HeaderValue> =
        web.allowed_origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()).collect();
    let allowed = if origins.iter().any(|origin| origin == "*") {
        AllowOrigin::any()
    } else {
        AllowOrigin::list(origins)
    };
    CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::POST])
        .allow_headers(
            ["authorization", "content-type", "grpc-timeout", "traceparent", "x-grpc-web", "x-user-agent"]
                .map(HeaderName::from_static),
        )
        // Without these a browser hides from the page how a call ended.
        .expose_headers(
            ["grpc-message", "grpc-status", "grpc-status-details-bin"].map(HeaderName::from_static),
        )
        .max_age(Duration::from_secs(3600))
}

/// What is known of the methods that a port may serve.
const DESCRIPTORS: [&[u8]; 4] = [
    sightline_proto::FILE_DESCRIPTOR_SET,
    tonic_health::pb::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
    tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
];

/// What every port serves besides its own services.
const ON_EVERY_PORT: [&str; 3] = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

macro_rules! reflection {
    ($name:ident, $build:ident, $module:ident) => {
        /// Lists what this port serves, and describes any of our messages.
        fn $name(
            services: &[&'static str],
        ) -> tonic_reflection::server::$module::ServerReflectionServer<
            impl tonic_reflection::server::$module::ServerReflection + use<>,
        > {
            let names = services.iter().copied().chain(ON_EVERY_PORT);
            names
                .fold(tonic_reflection::server::Builder::configure(), |builder, name| {
                    builder.with_service_name(name)
                })
                .register_encoded_file_descriptor_set(DESCRIPTORS[0])
                .register_encoded_file_descriptor_set(DESCRIPTORS[1])
                .register_encoded_file_descriptor_set(DESCRIPTORS[2])
                .register_encoded_file_descriptor_set(DESCRIPTORS[3])
                .$build()
                .expect("the checked-in descriptors are valid: every server's start proves it")
        }
    };
}

reflection!(reflection, build_v1, v1);
reflection!(reflection_v1alpha, build_v1alpha, v1alpha);
