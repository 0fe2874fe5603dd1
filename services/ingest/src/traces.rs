//! The spans of a frame in ingest, and of what ingest asks other services for it. Where a frame's trace is not kept
//! nothing is made.
//!
//! `ingest.frame` from its arrival to its verdict; in it `ingest.admit` and `ingest.infer`, each a call over a pooled stream
//! whose attempts are beneath it. Events go to the statistics in batches, each one call for several traces:
//! `ingest.record` is a part of the first frame and linked to the others.

use sightline_mesh::RpcError;
use sightline_proto::{
    classifier::classifier_service_server::SERVICE_NAME as CLASSIFIER,
    ingest::ingest_service_server::SERVICE_NAME as INGEST,
    ratelimiter::rate_limiter_service_server::SERVICE_NAME as RATELIMITER, stats::Event,
    stats::stats_service_server::SERVICE_NAME as STATS, status::ItemError,
};
use sightline_telemetry::{
    child_span, continued_span, root_span,
    trace::{self, Parent},
};
use tracing::Span;

use crate::frame::Frame;

/// Traces of one batch of events that are told of its call: what one in a hundred of the largest batch is, with room
/// for luck, as the statistics have it.
const MAX_TRACES: usize = 100;

/// A frame's whole way. On a stream it is what stands for the call; in a call of its own it is a part of it.
/// `trace`: its caller's, and decided.
pub(crate) fn frame(frame: &Frame, trace: &Parent) -> Span {
    let alone = !trace.is_local();
    root_span!(
        *trace,
        "ingest.frame",
        otel.kind = if alone { "server" } else { "internal" },
        rpc.system = alone.then_some("grpc"),
        rpc.service = alone.then_some(INGEST),
        rpc.method = alone.then_some("ClassifyStream"),
        sightline.frame_id = %frame.id,
    )
}

/// The question to the rate limiter.
pub(crate) fn admit() -> Span {
    child_span!(
        "ingest.admit",
        otel.kind = "client",
        rpc.system = "grpc",
        rpc.service = RATELIMITER,
        rpc.method = "CheckStream",
    )
}

/// One image at a classifier.
pub(crate) fn infer() -> Span {
    child_span!(
        "ingest.infer",
        otel.kind = "client",
        rpc.system = "grpc",
        rpc.service = CLASSIFIER,
        rpc.method = "Infer",
    )
}

/// A batch of events on its way to the statistics.
pub(crate) fn record(batch: &[Event]) -> Span {
    if !trace::is_on() {
        return Span::none();
    }
    let mut kept = batch.iter().map(|event| Parent::read(&event.traceparent)).filter(Parent::is_sampled);
    let Some(first) = kept.next() else { return Span::none() };
    let span = continued_span!(
        first,
        "ingest.record",
        otel.kind = "client",
        rpc.system = "grpc",
        rpc.service = STATS,
        rpc.method = "Record",
        sightline.events = batch.len() as i64,
    );
    kept.take(MAX_TRACES - 1).for_each(|other| other.link(&span));
    span
}

/// How a message to another service was answered.
pub(crate) fn answered<A>(span: &Span, answer: &Result<Result<A, ItemError>, RpcError>) {
    let (code, reason) = match answer {
        Ok(Ok(_)) => (0, ""),
        Ok(Err(item)) => (item.code, item.reason.as_str()),
        Err(error) => (error.code as i32, error.reason.as_str()),
    };
    trace::answered(span, code, reason);
}
