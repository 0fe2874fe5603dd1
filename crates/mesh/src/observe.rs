//! What a server shows of its calls and connections: how many, how they ended, how long they took, and a span for each
//! that is not a long-lived stream.
//!
//! - `request_count_total{method, code}`: every call, when it has ended.
//! - `rpc_duration_seconds{method}`: unary calls, from their head to the end of the answer. Streams live as long as their
//!   connection: their messages are timed by the services.
//! - `requests_in_flight{server}`, `active_connections{server}`.
//! - The names of gRFC A66, as OpenTelemetry writes them for Prometheus: `grpc_server_call_started_total{grpc_method}`, and
//!   by `{grpc_method, grpc_status}` `grpc_server_call_duration_seconds` and
//!   `grpc_server_call_{sent,rcvd}_total_compressed_message_size_bytes`, streams included.
//!
//! `method` is one that the server's descriptors name, or `other`; `code` one of gRPC's seventeen: whatever callers ask
//! for, the number of series is bounded.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::Instant,
};

use bytes::Bytes;
use http::HeaderMap;
use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, histogram,
};
use prost::Message;
use prost_types::FileDescriptorSet;
use sightline_telemetry::trace::{Parent, ended};
use tonic::{Code, Status, body::Body};
use tower::{Layer, Service};
use tracing::{Instrument, Span};

use crate::{
    RpcError,
    follow::{Followed, Hear, Tally},
    names::{GRPC_STATUS, TRACEPARENT},
    sizes::MessageSizes,
};

const SENT: &str = "grpc_server_call_sent_total_compressed_message_size_bytes";
const RECEIVED: &str = "grpc_server_call_rcvd_total_compressed_message_size_bytes";

/// The names of gRPC's codes by their number.
pub(crate) const CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// A method as metrics and traces name it.
struct Method {
    /// `package.Service/Method`.
    full: String,
    service: String,
    name: String,
    /// `ingest.classify`; none for calls that get no span.
    span: Option<String>,
    /// None for streams.
    duration: Option<Histogram>,
    /// Whether the client sends, and the server answers, many messages.
    streams: (bool, bool),
    codes: [OnceLock<Ended>; CODES.len()],
    started: Counter,
}

/// What calls of one method that ended with one code are counted in.
struct Ended {
    count: Counter,
    duration: Histogram,
    sent: Histogram,
    received: Histogram,
}

impl Method {
    fn new(service: &str, name: &str, streams: (bool, bool)) -> Self {
        let full = if name.is_empty() { service.to_owned() } else { format!("{service}/{name}") };
        let (client, server) = streams;
        let duration =
            (!client && !server).then(|| histogram!("rpc_duration_seconds", "method" => full.clone()));
        // Health checks and reflection are not what anybody looks for in a trace.
        let of_somebody = !service.starts_with("grpc.") && !name.is_empty();
        let span = (of_somebody && !client).then(|| format!("{}.{}", package(service), snake(name)));
        let started = counter!("grpc_server_call_started_total", "grpc_method" => full.clone());
        let (service, name) = (service.into(), name.into());
        Self { full, service, name, span, duration, streams, codes: Default::default(), started }
    }

    fn ended(&self, code: Code) -> &Ended {
        let name = CODES[code as usize];
        self.codes[code as usize].get_or_init(|| {
            let labels = [("grpc_method", self.full.clone()), ("grpc_status", name.to_owned())];
            Ended {
                count: counter!("request_count_total", "method" => self.full.clone(), "code" => name),
                duration: histogram!("grpc_server_call_duration_seconds", &labels),
                sent: histogram!(SENT, &labels),
                received: histogram!(RECEIVED, &labels),
            }
        })
    }

    /// What the caller says of its trace, and what is decided here where it says nothing. None for calls without a span.
    fn trace(&self, headers: &HeaderMap) -> Parent {
        if self.span.is_none() {
            return Parent::default();
        }
        let parent = headers.get(&TRACEPARENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        Parent::read(parent).begin()
    }

    fn span(&self, trace: &Parent) -> Span {
        let Some(span) = &self.span else { return Span::none() };
        sightline_telemetry::root_span!(
            *trace,
            "call",
            otel.name = span.as_str(),
            otel.kind = "server",
            rpc.system = "grpc",
            rpc.service = self.service.as_str(),
            rpc.method = self.name.as_str(),
        )
    }
}

/// What a service is called by those who run it: `sightline.ingest.v1.IngestService` is `ingest`.
fn package(service: &str) -> &str {
    let is_version = |part: &str| {
        part.strip_prefix('v').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
    };
    let parts = || service.rsplit('.').skip(1);
    parts().find(|part| !is_version(part)).unwrap_or(service)
}

/// `ClassifyBatch` is `classify_batch`.
fn snake(name: &str) -> String {
    let mut snake = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !snake.is_empty() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

/// A layer around all services of one server.
#[derive(Clone)]
pub(crate) struct Calls {
    methods: Arc<HashMap<String, Arc<Method>>>,
    other: Arc<Method>,
    in_flight: Gauge,
    connections: Gauge,
}

impl Calls {
    /// Knows the methods of `services`, as far as `descriptors` have them.
    pub(crate) fn new(server: &'static str, services: &[&str], descriptors: &[&[u8]]) -> Self {
        describe_counter!("request_count_total", "Calls that have ended, by method and gRPC code");
        describe_histogram!("rpc_duration_seconds", "Unary calls, from their head to the end of the answer");
        describe_gauge!("requests_in_flight", "Calls that have not ended, streams included");
        describe_gauge!("active_connections", "Connections that are open");
        describe_counter!(
            "mesh_retries_total",
            "Messages to another service that were sent again, by service"
        );
        describe_counter!("grpc_server_call_started_total", "Calls that have begun, by method (gRFC A66)");
        describe_histogram!(
            "grpc_server_call_duration_seconds",
            "Calls from their head to the end of the answer, streams included, by method and code (gRFC A66)"
        );
        describe_histogram!(
            SENT,
            Unit::Bytes,
            "Messages sent in one call, as on the wire, by method and code (gRFC A66)"
        );
        describe_histogram!(
            RECEIVED,
            Unit::Bytes,
            "Messages received in one call, as on the wire, by method and code (gRFC A66)"
        );
        let mut methods = HashMap::new();
        for set in descriptors.iter().filter_map(|bytes| FileDescriptorSet::decode(*bytes).ok()) {
            for file in &set.file {
                for service in &file.service {
                    let full = format!("{}.{}", file.package(), service.name());
                    for method in service.method.iter().filter(|_| services.contains(&full.as_str())) {
                        let streams = (method.client_streaming(), method.server_streaming());
                        let known = Arc::new(Method::new(&full, method.name(), streams));
                        methods.insert(format!("/{}", known.full), known);
                    }
                }
            }
        }
        Self {
            methods: Arc::new(methods),
            other: Arc::new(Method::new("other", "", (true, true))),
            in_flight: metrics::gauge!("requests_in_flight", "server" => server),
            connections: metrics::gauge!("active_connections", "server" => server),
        }
    }

    /// Counts a connection for as long as it is open.
    pub(crate) fn connection(&self) -> Counted {
        Counted::new(&self.connections)
    }

    /// Whether the client sends, and the server answers, many messages in a call of this path, if it is known.
    pub(crate) fn streams(&self, path: &str) -> Option<(bool, bool)> {
        self.methods.get(path).map(|method| method.streams)
    }
}

impl<S> Layer<S> for Calls {
    type Service = Observed<S>;

    fn layer(&self, inner: S) -> Observed<S> {
        Observed { inner, calls: self.clone() }
    }
}

/// One more in a gauge, until it is dropped.
pub(crate) struct Counted(Gauge);

impl Counted {
    fn new(gauge: &Gauge) -> Self {
        gauge.increment(1.0);
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

/// See [`Calls`].
#[derive(Clone)]
pub(crate) struct Observed<S> {
    inner: S,
    calls: Calls,
}

type Answering<E> = Pin<Box<dyn Future<Output = Result<http::Response<Body>, E>> + Send>>;

impl<S> Service<http::Request<Body>> for Observed<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Answering<S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let method = self.calls.methods.get(request.uri().path()).unwrap_or(&self.calls.other);
        method.started.increment(1);
        let trace = method.trace(request.headers());
        let span = method.span(&trace);
        let (request, received) = Tally::of(request);
        let call = Call {
            method: Arc::clone(method),
            since: Instant::now(),
            status: None,
            span: span.clone(),
            sent: MessageSizes::default(),
            received,
            _in_flight: Counted::new(&self.calls.in_flight),
        };
        let answer = self.inner.call(request).instrument(span);
        Box::pin(async move { trace.around(answer).await.map(|response| call.follow(response)) })
    }
}

/// One call, counted when it is dropped: without a status its caller went away.
struct Call {
    method: Arc<Method>,
    since: Instant,
    status: Option<(Code, String)>,
    span: Span,
    sent: MessageSizes,
    received: Arc<AtomicU64>,
    _in_flight: Counted,
}

impl Call {
    /// The status is in the head of an answer without messages, and behind the messages of any other.
    fn follow(mut self, response: http::Response<Body>) -> http::Response<Body> {
        if response.headers().contains_key(&GRPC_STATUS) {
            self.trailers(response.headers());
            return response;
        }
        response.map(|body| Followed::body(body, self))
    }
}

impl Hear for Call {
    fn data(&mut self, piece: &Bytes) {
        self.sent.add(piece);
    }

    fn trailers(&mut self, trailers: &HeaderMap) {
        let Some(status) = trailers.get(&GRPC_STATUS) else { return };
        let code = Code::from_bytes(status.as_bytes());
        // The details are read only for those who look.
        let status = Some(trailers).filter(|_| code != Code::Ok && !self.span.is_disabled());
        let reason =
            status.and_then(Status::from_header_map).map(|status| RpcError::from_status(&status).reason);
        self.status = Some((code, reason.unwrap_or_default()));
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let (code, reason) = self.status.take().unwrap_or((Code::Cancelled, "CANCELLED".into()));
        let (took, counted) = (self.since.elapsed(), self.method.ended(code));
        counted.count.increment(1);
        counted.duration.record(took);
        counted.sent.record(self.sent.total() as f64);
        counted.received.record(self.received.load(Ordering::Relaxed) as f64);
        if let Some(duration) = &self.method.duration {
            duration.record(took);
        }
        ended(&self.span, code as i32, &reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_named_by_the_package_and_the_method() {
        let span = |service, name, streams| Method::new(service, name, streams).span;
        let unary = (false, false);
        let batch = span("sightline.ingest.v1.IngestService", "ClassifyBatch", (false, true));
        assert_eq!(batch.as_deref(), Some("ingest.classify_batch"));
        assert_eq!(span("greeter.v1beta1.Greeter", "Hello", unary).as_deref(), Some("greeter.hello"));
        assert_eq!(span("Greeter", "Hello", unary).as_deref(), Some("Greeter.hello"));
        assert_eq!(span("grpc.health.v1.Health", "Check", unary), None);
        assert_eq!(
            span("greeter.v1.Party", "Chat", (true, true)),
            None,
            "a stream lives too long for one span"
        );
        assert_eq!(span("other", "", (true, true)), None);
    }
}
