//! The spans of a tensor, and of the batch that it was run in. Where a tensor's trace is not kept nothing is made.
//!
//! `classifier.infer` from its arrival to its answer, with `classifier.queue` and `classifier.inference` in it. A batch is
//! one run for several traces: `classifier.batch` is a part of the first one's inference, is linked to every tensor's span, and
//! the other inferences to it.

use sightline_proto::classifier::classifier_service_server::SERVICE_NAME;
use sightline_telemetry::{
    child_of, continued_span,
    trace::{self, Parent},
};
use tracing::Span;

use crate::queue::Entry;

/// One tensor's spans.
#[derive(Debug)]
pub struct Traced {
    infer: Span,
    queue: Span,
}

impl Default for Traced {
    /// Of no trace.
    fn default() -> Self {
        Self { infer: Span::none(), queue: Span::none() }
    }
}

impl Traced {
    /// A tensor arrived with this trace context for this model.
    pub(crate) fn begin(traceparent: &str, model: &str) -> Self {
        let infer = continued_span!(
            Parent::read(traceparent),
            "classifier.infer",
            otel.kind = "server",
            rpc.system = "grpc",
            rpc.service = SERVICE_NAME,
            rpc.method = "Infer",
            sightline.model = model,
        );
        let queue = child_of!(infer, "classifier.queue");
        Self { infer, queue }
    }

    /// It waits no longer.
    pub(crate) fn dequeued(&mut self) {
        self.queue = Span::none();
    }

    /// The span to end with the answer.
    pub(crate) fn span(&self) -> Span {
        self.infer.clone()
    }
}

/// The tensor was answered: well, or with this error.
pub(crate) fn answered(span: &Span, error: Option<&sightline_mesh::RpcError>) {
    let (code, reason) = error.map_or((0, ""), |error| (error.code as i32, error.reason.as_str()));
    trace::ended(span, code, reason);
}

/// The spans of a run, until they are dropped at its end.
pub(crate) fn run(batch: &[Entry]) -> Vec<Span> {
    let kept: Vec<&Span> =
        batch.iter().map(|entry| &entry.traced.infer).filter(|span| !span.is_disabled()).collect();
    let mut spans: Vec<Span> = kept.iter().map(|infer| child_of!(infer, "classifier.inference")).collect();
    let Some((first, others)) = spans.split_first() else { return spans };
    let run = child_of!(first, "classifier.batch", sightline.batch_size = batch.len() as i64);
    kept.into_iter().for_each(|infer| Parent::of(infer).link(&run));
    others.iter().for_each(|other| Parent::of(&run).link(other));
    // Dropped first, as what lies within the others.
    spans.insert(0, run);
    spans
}
