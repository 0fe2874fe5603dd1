//! One attempt of a message: on one stream of one endpoint.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use sightline_telemetry::trace;
use tokio::{sync::oneshot, time::Instant};
use tonic::Code;
use tracing::Span;

use super::{
    Lane, Settled, Shared,
    book::{Grant, LineId, Reply},
    line::Line,
};
use crate::{
    client::{
        EndpointId, Outcome, Picked,
        call::{lost, won},
    },
    reason,
};

/// A message's place on a stream.
pub(super) type Granted<L> = Grant<Settled<L>, Arc<Line<L>>>;

/// A message on one stream. Dropped before its answer, the server is told that nobody waits.
pub(super) struct Flight<'a, L: Lane> {
    shared: &'a Shared<L>,
    line: LineId,
    handle: Arc<Line<L>>,
    id: u64,
    reply: oneshot::Receiver<Reply<Settled<L>>>,
    picked: Option<Picked>,
    pub(super) since: Instant,
    /// When to look whether it stalls.
    pub(super) look: Instant,
    pub(super) stalled: bool,
    pub(super) landed: bool,
    span: Span,
}

impl<'a, L: Lane> Flight<'a, L> {
    /// The message was sent just now.
    pub(super) fn new(
        shared: &'a Shared<L>,
        picked: Picked,
        granted: Granted<L>,
        look: Instant,
        span: Span,
    ) -> Self {
        let Grant { line, handle, id, reply } = granted;
        let (picked, since) = (Some(picked), Instant::now());
        Self { shared, line, handle, id, reply, picked, since, look, stalled: false, landed: false, span }
    }

    /// Where it was sent.
    pub(super) fn endpoint(&self) -> EndpointId {
        self.handle.endpoint().id()
    }
}

impl<L: Lane> Flight<'_, L> {
    /// It has its answer, or will get none.
    pub(super) fn end(&mut self, outcome: Outcome, reason: &str) {
        let code = match outcome {
            Outcome::Success => Code::Ok,
            Outcome::Failure(code) => code,
            Outcome::Cancelled => Code::Cancelled,
        };
        self.over(outcome, code, reason);
    }

    /// Its answer came before that of others under way.
    pub(super) fn win(&self) {
        won(&self.span);
    }

    /// Another replica has answered. The endpoint failed if it had time enough.
    pub(super) fn lose(&mut self) {
        lost(&self.span);
        self.over(self.stalled_or_cancelled(), Code::Cancelled, reason::CANCELLED);
    }

    /// The caller's time is over.
    pub(super) fn expire(&mut self) {
        self.over(self.stalled_or_cancelled(), Code::DeadlineExceeded, reason::DEADLINE_EXCEEDED);
    }

    fn stalled_or_cancelled(&self) -> Outcome {
        if self.stalled { Outcome::Failure(Code::DeadlineExceeded) } else { Outcome::Cancelled }
    }

    /// What the endpoint is told, and what the span says.
    fn over(&mut self, outcome: Outcome, code: Code, reason: &str) {
        trace::attribute(&self.span, "mesh.attempt.stalled", self.stalled);
        trace::answered(&self.span, code as i32, reason);
        if let Some(picked) = self.picked.take() {
            picked.done(outcome);
        }
    }
}

impl<L: Lane> Drop for Flight<'_, L> {
    fn drop(&mut self) {
        if self.landed {
            return;
        }
        if self.picked.is_some() {
            // Its caller is gone.
            self.end(Outcome::Cancelled, reason::CANCELLED);
        }
        let (out, finished) = {
            let mut book = self.shared.book();
            (book.abandon(self.line, self.id), book.is_finished(self.line))
        };
        if out && let Some(message) = self.shared.lane.cancel(self.id) {
            self.handle.hint(message);
        }
        if finished {
            self.handle.look();
        }
    }
}

/// Waits for the first reply; `None` when the stream broke.
pub(super) async fn landing<L: Lane>(flying: &mut [Flight<'_, L>]) -> (usize, Option<Reply<Settled<L>>>) {
    poll_fn(|context: &mut Context<'_>| {
        for (index, flight) in flying.iter_mut().enumerate() {
            if let Poll::Ready(reply) = Pin::new(&mut flight.reply).poll(context) {
                return Poll::Ready((index, reply.ok()));
            }
        }
        Poll::Pending
    })
    .await
}
