//! gRPC's metrics (gRFC A66) for calls that are made on a connection without a channel: the long streams of a pool, each
//! one attempt of one call.

use std::sync::{Arc, OnceLock, atomic::AtomicU64};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use tonic::{Code, body::Body};
use tracing::Span;

use super::{
    observe::{AttemptRecord, CallRecord, Method},
    policy::MethodPolicy,
};
use crate::{
    follow::{Followed, Hear, Tally},
    names::GRPC_STATUS,
};

/// Counts the calls of one method of one service.
#[derive(Debug)]
pub(crate) struct Meter {
    target: &'static str,
    /// Of the first call: whoever has a meter calls one method.
    method: OnceLock<Arc<Method>>,
}

impl Meter {
    pub(crate) fn new(target: &'static str) -> Arc<Self> {
        super::observe::describe();
        Arc::new(Self { target, method: OnceLock::new() })
    }

    /// The method, once it was called.
    pub(crate) fn method(&self) -> Option<&Method> {
        self.method.get().map(|method| &**method)
    }

    /// A call begins: the request to send, and what is to be told of its end.
    pub(crate) fn begin(&self, request: Request<Body>) -> (Request<Body>, Metered) {
        let path = request.uri().path();
        let make = || Arc::new(Method::new(self.target, path, MethodPolicy::once()));
        let method = Arc::clone(self.method.get_or_init(make));
        let (request, sent) = Tally::of(request);
        (request, Metered::new(method, sent))
    }
}

/// One call. Dropped before its end, it was cancelled.
pub(crate) struct Metered(Option<(AttemptRecord, CallRecord)>);

impl Metered {
    fn new(method: Arc<Method>, sent: Arc<AtomicU64>) -> Self {
        let attempt = AttemptRecord::of_span(&method, Span::none(), sent);
        Self(Some((attempt, CallRecord::of_span(method, Span::none()))))
    }

    /// It ended with this code.
    pub(crate) fn end(&mut self, code: Code) {
        if let Some((attempt, call)) = self.0.take() {
            attempt.end(code);
            call.end(code);
        }
    }

    /// Its answer has begun.
    pub(crate) fn follow(mut self, response: Response<Body>) -> Response<Body> {
        if response.headers().contains_key(&GRPC_STATUS) {
            self.trailers(response.headers());
            return response;
        }
        response.map(|body| Followed::body(body, self))
    }
}

impl Hear for Metered {
    fn data(&mut self, piece: &Bytes) {
        if let Some((attempt, _)) = &mut self.0 {
            attempt.received.add(piece);
        }
    }

    fn trailers(&mut self, trailers: &HeaderMap) {
        let status = trailers.get(&GRPC_STATUS);
        self.end(status.map_or(Code::Unknown, |status| Code::from_bytes(status.as_bytes())));
    }

    fn broken(&mut self, code: Code) {
        self.end(code);
    }
}
