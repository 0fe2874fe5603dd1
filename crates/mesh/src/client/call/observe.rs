//! What is shown of the calls to a service.
//!
//! Metrics have the names and labels of gRFC A66. Their labels are bounded: methods that the table of policies lacks are
//! `other`, targets are services, statuses are gRPC's seventeen. Spans follow OpenTelemetry's conventions for RPC: one
//! for the call, and beneath it one for each attempt, whose context the attempt carries.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use metrics::{Counter, Histogram, Unit, counter, describe_counter, describe_histogram, histogram};
use sightline_telemetry::{child_of, child_span, trace::answered};
use tokio::time::Instant;
use tonic::Code;
use tracing::Span;

use super::{
    policy::{MethodPolicy, split},
    sizes::MessageSizes,
};
use crate::observe::CODES;

/// One histogram per code, made when it is first used.
#[derive(Debug, Default)]
struct ByCode([OnceLock<Histogram>; CODES.len()]);

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
        let histogram = of.0[code as usize].get_or_init(|| {
            let (method, status) = (self.label.clone(), CODES[code as usize]);
            histogram!(name, "grpc.method" => method, "grpc.target" => self.target, "grpc.status" => status)
        });
        histogram.record(value);
    }

    fn started(&self) {
        let make = || {
            let method = self.label.clone();
            counter!("grpc.client.attempt.started", "grpc.method" => method, "grpc.target" => self.target)
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

fn describe() {
    describe_counter!("grpc.client.attempt.started", Unit::Count, "Attempts of calls that were begun");
    describe_histogram!(
        "grpc.client.attempt.duration",
        Unit::Seconds,
        "Attempts, to the end of their answers"
    );
    describe_histogram!(
        "grpc.client.attempt.sent_total_compressed_message_size",
        Unit::Bytes,
        "Messages sent in one attempt, as on the wire"
    );
    describe_histogram!(
        "grpc.client.attempt.rcvd_total_compressed_message_size",
        Unit::Bytes,
        "Messages received in one attempt, as on the wire"
    );
    describe_histogram!(
        "grpc.client.call.duration",
        Unit::Seconds,
        "Calls with all their attempts, to the end of the answer"
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
        self.method.record(&self.method.call_duration, "grpc.client.call.duration", code, took);
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
    /// Attempt number `number`, from 0, of a call, to the endpoint at `address`.
    pub(crate) fn new(method: &Arc<Method>, call: &Span, number: u32, hedged: bool, address: &str) -> Self {
        method.started();
        let span = child_of!(
            call,
            "mesh.attempt",
            otel.kind = "client",
            rpc.system = "grpc",
            server.address = address,
            rpc.attempt = number,
            rpc.hedged = hedged,
        );
        Self {
            method: Arc::clone(method),
            since: Instant::now(),
            span,
            sent: Arc::default(),
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
        method.record(&method.attempt_duration, "grpc.client.attempt.duration", code, took.as_secs_f64());
        let (sent, received) = (self.sent.load(Ordering::Relaxed), self.received.total());
        let name = "grpc.client.attempt.sent_total_compressed_message_size";
        method.record(&method.sent, name, code, sent as f64);
        let name = "grpc.client.attempt.rcvd_total_compressed_message_size";
        method.record(&method.received, name, code, received as f64);
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
