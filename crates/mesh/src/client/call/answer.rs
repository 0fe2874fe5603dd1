//! An answer that has begun, followed to its end: the call is in flight until then.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, Response};
use http_body::{Frame, SizeHint};
use tonic::{Code, Status, body::Body};

use super::{
    super::Outcome,
    attempt::{Call, Flight, Unused},
    drive::Timer,
    observe::CallRecord,
    verdict::{Verdict, outcome},
};
use crate::{Deadline, RpcError};

/// The body of an answer.
pub(crate) struct Answer {
    /// `None` once the deadline has passed: dropping it tells the server.
    body: Option<Body>,
    deadline: Option<Deadline>,
    timer: Timer,
    service: &'static str,
    open: Option<(Flight, CallRecord)>,
}

impl Answer {
    pub(crate) fn follow(
        response: Response<Body>,
        flight: Flight,
        call: Call,
        timer: Timer,
    ) -> Response<Body> {
        let (deadline, service) = (call.deadline, call.shared.cluster.service());
        let open = Some((flight, call.record));
        response.map(|body| Body::new(Self { body: Some(body), deadline, timer, service, open }))
    }

    fn end(&mut self, code: Code, outcome: Outcome, unused: Unused<'_>) {
        if let Some((flight, record)) = self.open.take() {
            flight.end(code, outcome, unused);
            record.end(code);
        }
    }

    fn ended(&mut self, trailers: &HeaderMap) {
        match Verdict::of_headers(trailers) {
            Some(verdict) => self.end(verdict.code, verdict.outcome(), Unused::Said(trailers)),
            None => self.broken(Code::Unknown),
        }
    }

    fn broken(&mut self, code: Code) {
        self.end(code, outcome(code, false), Unused::Unknown);
    }

    fn expire(&mut self) -> Option<Result<Frame<Bytes>, Status>> {
        self.broken(Code::DeadlineExceeded);
        self.body = None;
        let stage = format!("reading the answer of {}", self.service);
        Some(Err(RpcError::deadline(&stage).into()))
    }

    fn is_due(&mut self, context: &mut Context<'_>) -> bool {
        let at = self.deadline.map(Deadline::instant);
        self.open.is_some() && self.timer.poll_at(at, context).is_ready()
    }
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(context);
        match &polled {
            // A server that always has more to say is no reason to listen longer.
            Poll::Pending if self.is_due(context) => return Poll::Ready(self.expire()),
            Poll::Pending => {}
            Poll::Ready(None) => self.broken(Code::Unknown),
            Poll::Ready(Some(Err(status))) => self.broken(status.code()),
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(trailers) = frame.trailers_ref() {
                    self.ended(trailers);
                } else if self.is_due(context) {
                    return Poll::Ready(self.expire());
                } else if let (Some((flight, _)), Some(data)) = (&mut self.open, frame.data_ref()) {
                    flight.record.received.add(data);
                }
            }
        }
        polled
    }

    /// Not before the trailers were read, whatever the transport knows already: else nobody would ask for them.
    fn is_end_stream(&self) -> bool {
        self.open.is_none() && self.body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(http_body::Body::size_hint).unwrap_or_default()
    }
}
