//! The spans of one batch: one in each kept trace that has an event in it, and one for the commit, which is a part of the
//! first and linked to all. Without kept traces nothing is made.

use sightline_proto::stats::{Event, stats_service_server::SERVICE_NAME};
use sightline_telemetry::{
    child_of, continued_span,
    trace::{self, Parent},
};
use tracing::Span;

/// Traces of one batch that are told of it: what one in a hundred of the largest batch is, with room for luck.
const MAX_TRACES: usize = 100;

/// See the module.
pub(crate) struct Traced {
    events: Vec<Span>,
    commit: Span,
}

impl Traced {
    pub(crate) fn begin(batch: &[Event]) -> Self {
        if !trace::is_on() {
            return Self { events: Vec::new(), commit: Span::none() };
        }
        let kept = batch.iter().map(|event| Parent::read(&event.traceparent)).filter(Parent::is_sampled);
        let events: Vec<Span> = kept.take(MAX_TRACES).map(|parent| of_event(&parent)).collect();
        let Some((first, others)) = events.split_first() else {
            return Self { events, commit: Span::none() };
        };
        let commit = child_of!(first, "stats.commit", sightline.events = batch.len() as i64);
        for other in others {
            Parent::of(other).link(&commit);
            Parent::of(&commit).link(other);
        }
        Self { events, commit }
    }

    /// What the store's own spans are parts of.
    pub(crate) fn commit(&self) -> Span {
        self.commit.clone()
    }

    /// The batch was answered.
    pub(crate) fn end(self, error: Option<&sightline_mesh::RpcError>) {
        let (code, reason) = error.map_or((0, ""), |error| (error.code as i32, error.reason.as_str()));
        self.events.iter().for_each(|span| trace::ended(span, code, reason));
    }
}

fn of_event(parent: &Parent) -> Span {
    continued_span!(
        *parent,
        "stats.record",
        otel.kind = "server",
        rpc.system = "grpc",
        rpc.service = SERVICE_NAME,
        rpc.method = "Record",
    )
}
