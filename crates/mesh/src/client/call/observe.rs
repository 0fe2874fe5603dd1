//! What is shown of the calls to a service.
//!
//! Metrics have the names and labels of gRFC A66, as OpenTelemetry writes them for Prometheus: with their units, counters
//! with `_total`. Their labels are bounded: methods that the table of policies lacks are `other`, targets are services,
//! statuses are gRPC's seventeen. Spans follow OpenTelemetry's conventions for RPC: one for the call, and beneath it one
//! for each attempt, whose context the attempt carries. These conventions have no names for repeats; gRPC's own (gRFC A72)
//! do: see [`Nth`].

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use metrics::{Counter, Histogram, Unit, counter, describe_counter, describe_histogram, histogram};
use sightline_telemetry::{
    child_of, child_span,
    trace::{answered, attribute},
};
use tokio::time::Instant;
use tonic::Code;
use tracing::Span;

use super::policy::{MethodPolicy, split};
use crate::{client::Address, observe::CODES, sizes::MessageSizes};

const STARTED: &str = "grpc_client_attempt_started_total";
const ATTEMPT: &str = "grpc_client_attempt_duration_seconds";
const SENT: &str = "grpc_client_attempt_sent_total_compressed_message_size_bytes";
const RECEIVED: &str = "grpc_client_attempt_rcvd_total_compressed_message_size_bytes";
const CALL: &str = "grpc_client_call_duration_seconds";

/// One histogram per code, made when it is first used.
#[derive(Debug, Default)]
pub(crate) struct ByCode([OnceLock<Histogram>; CODES.len()]);

impl ByCode {
    /// Takes in a value; `make` gives the histogram of this code's name.
    pub(crate) fn record(&self, code: Code, value: f64, make: impl FnOnce(&'static str) -> Histogram) {
        self.0[code as usize].get_or_init(|| make(CODES[code as usize])).record(value);
    }
}

/// Which attempt of its call, or of its message, one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Nth {
    /// Attempts before it that a server may have acted on.
    pub(crate) previous: u32,
    /// The last one certainly reached nobody: this one is free.
    pub(crate) transparent: bool,
    /// Another one is under way, and had no answer for too long.
    pub(crate) hedged: bool,
}

impl Nth {
    /// Says it in the attempt's span.
    pub(crate) fn describe(self, span: &Span, method: Option<&Method>, address: &Address) {
        if span.is_disabled() {
            return;
        }
        if let Some((service, name)) = method.and_then(|method| method.label.split_once('/')) {
            attribute(span, "rpc.service", service.to_owned());
            attribute(span, "rpc.method", name.to_owned());
        }
        let (host, port) = address.host_and_port();
        attribute(span, "server.address", host.to_owned());
        attribute(span, "server.port", i64::from(port));
        attribute(span, "previous-rpc-attempts", i64::from(self.previous));
        attribute(span, "transparent-retry", self.transparent);
        attribute(span, "mesh.attempt.hedged", self.hedged);
    }
}

/// Of several attempts that were under way together, the one whose answer counts.
pub(crate) fn won(span: &Span) {
    attribute(span, "mesh.attempt.outcome", "won");
}

/// Another attempt's answer came first.
pub(crate) fn lost(span: &Span) {
    attribute(span, "mesh.attempt.outcome", "lost");
}

/// A method: its policy, and how it is called in metrics and traces.
#[derive(Debug)]
pub(crate) struct Method {
    pub(crate) policy: MethodPolicy,
    target: &'static str,
    /// `package.Service/Method`, or `other`.
    label: String,
    started: OnceLock<Counter>,
    attempt_duration: ByCode,
    call_duration: ByCode,
    sent: ByCode,
    received: ByCode,
}

impl Method {
    pub(crate) fn new(target: &'static str, path: &str, policy: MethodPolicy) -> Self {
        Self {
            policy,
            target,
            label: path.strip_prefix('/').unwrap_or(path).to_owned(),
            started: OnceLock::new(),
            attempt_duration: ByCode::default(),
            call_duration: ByCode::default(),
            sent: ByCode::default(),
            received: ByCode::default(),
        }
    }

    fn record(&self, of: &ByCode, name: &'static str, code: Code, value: f64) {
        of.record(code, value, |status| {
            let method = self.label.clone();
            histogram!(name, "grpc_method" => method, "grpc_target" => self.target, "grpc_status" => status)
        });
    }

    fn started(&self) {
        let make = || {
            let method = self.label.clone();
            counter!(STARTED, "grpc_method" => method, "grpc_target" => self.target)
        };
        self.started.get_or_init(make).increment(1);
    }
}

/// Counters of a service that gRPC has no names for.
#[derive(Debug)]
pub(crate) struct Counters {
    pub(crate) retries: Counter,
    pub(crate) hedges: Counter,
    pub(crate) exhausted: Counter,
    pub(crate) throttled: Counter,
}

impl Counters {
    pub(crate) fn new(service: &'static str) -> Self {
        describe();
        Self {
            retries: counter!("mesh_retries_total", "service" => service),
            hedges: counter!("mesh_hedges_total", "service" => service),
            exhausted: counter!("mesh_retry_budget_exhausted_total", "service" => service),
            throttled: counter!("mesh_throttled_total", "service" => service),
        }
    }
}

pub(crate) fn describe() {
    describe_counter!(STARTED, Unit::Count, "Attempts of calls that were begun (gRFC A66)");
    describe_histogram!(ATTEMPT, Unit::Seconds, "Attempts, to the end of their answers (gRFC A66)");
    describe_histogram!(SENT, Unit::Bytes, "Messages sent in one attempt, as on the wire (gRFC A66)");
    describe_histogram!(RECEIVED, Unit::Bytes, "Messages received in one attempt, as on the wire (gRFC A66)");
    describe_histogram!(
        CALL,
        Unit::Seconds,
        "Calls with all their attempts, to the end of the answer (gRFC A66)"
    );
    describe_counter!("mesh_retries_total", "Messages to another service that were sent again, by service");
    describe_counter!("mesh_hedges_total", "Calls sent once more because no answer had come yet, by service");
    describe_counter!(
        "mesh_retry_budget_exhausted_total",
        "Attempts not made because the service's or the call tree's budget had none left, by service"
    );
    describe_counter!(
        "mesh_throttled_total",
        "Attempts turned away here because the service sheds, by service"
    );
}

/// A call, recorded when it ends: without an end its caller went away.
#[derive(Debug)]
pub(crate) struct CallRecord {
    method: Arc<Method>,
    since: Instant,
    span: Span,
    ended: bool,
}

impl CallRecord {
    /// `path` names the span, also of a method that has no policy.
    pub(crate) fn new(method: Arc<Method>, path: &str) -> Self {
        let (service, name) = split(path).unwrap_or(("other", "other"));
        let span = child_span!(
            "call",
            otel.name = path.strip_prefix('/').unwrap_or(path),
            otel.kind = "client",
            rpc.system = "grpc",
            rpc.service = service,
            rpc.method = name,
            server.address = method.target,
        );
        Self::of_span(method, span)
    }

    pub(crate) fn of_span(method: Arc<Method>, span: Span) -> Self {
        Self { method, since: Instant::now(), span, ended: false }
    }

    pub(crate) fn span(&self) -> &Span {
        &self.span
    }

    pub(crate) fn end(mut self, code: Code) {
        self.record(code);
    }

    fn record(&mut self, code: Code) {
        self.ended = true;
        let took = self.since.elapsed().as_secs_f64();
        self.method.record(&self.method.call_duration, CALL, code, took);
        answered(&self.span, code as i32, CODES[code as usize]);
    }
}

impl Drop for CallRecord {
    fn drop(&mut self) {
        if !self.ended {
            self.record(Code::Cancelled);
        }
    }
}

/// One attempt, recorded when it ends: without an end it was cancelled.
#[derive(Debug)]
pub(crate) struct AttemptRecord {
    method: Arc<Method>,
    since: Instant,
    span: Span,
    pub(crate) sent: Arc<AtomicU64>,
    pub(crate) received: MessageSizes,
    ended: bool,
}

impl AttemptRecord {
    /// An attempt of a call, to the endpoint at `address`.
    pub(crate) fn new(method: &Arc<Method>, call: &Span, nth: Nth, address: &Address) -> Self {
        let span = child_of!(call, "mesh.attempt", otel.kind = "client", rpc.system = "grpc");
        nth.describe(&span, Some(method), address);
        Self::of_span(method, span, Arc::default())
    }

    pub(crate) fn of_span(method: &Arc<Method>, span: Span, sent: Arc<AtomicU64>) -> Self {
        method.started();
        Self {
            method: Arc::clone(method),
            since: Instant::now(),
            span,
            sent,
            received: MessageSizes::default(),
            ended: false,
        }
    }

    pub(crate) fn span(&self) -> &Span {
        &self.span
    }

    pub(crate) fn end(mut self, code: Code) {
        self.record(code);
    }

    fn record(&mut self, code: Code) {
        self.ended = true;
        let method = &self.method;
        let took: Duration = self.since.elapsed();
        method.record(&method.attempt_duration, ATTEMPT, code, took.as_secs_f64());
        let (sent, received) = (self.sent.load(Ordering::Relaxed), self.received.total());
        method.record(&method.sent, SENT, code, sent as f64);
        method.record(&method.received, RECEIVED, code, received as f64);
        answered(&self.span, code as i32, CODES[code as usize]);
    }
}

impl Drop for AttemptRecord {
    fn drop(&mut self) {
        if !self.ended {
            self.record(Code::Cancelled);
        }
    }
}
