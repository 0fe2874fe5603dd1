//! A body with somebody who hears what goes by.

use std::{
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use tonic::{Code, Status, body::Body};

use crate::sizes::MessageSizes;

/// Hears what goes by in a body. It is dropped when the body has ended, broke, or nobody reads it any more.
pub(crate) trait Hear: Send + Unpin + 'static {
    /// The next piece of the messages.
    fn data(&mut self, piece: &Bytes);
    /// The end, with how the call ended.
    fn trailers(&mut self, _trailers: &HeaderMap) {}
    /// The end without trailers: the connection broke, or the peer said nothing.
    fn broken(&mut self, _code: Code) {}
}

/// A body that is heard.
pub(crate) struct Followed<H> {
    body: Body,
    hear: Option<H>,
}

impl<H: Hear> Followed<H> {
    /// The same body, heard by `hear`.
    pub(crate) fn body(body: Body, hear: H) -> Body {
        Body::new(Self { body, hear: Some(hear) })
    }
}

impl<H: Hear> http_body::Body for Followed<H> {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        let Some(hear) = &mut self.hear else { return polled };
        match &polled {
            Poll::Pending => return polled,
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    hear.data(data);
                    return polled;
                }
                if let Some(trailers) = frame.trailers_ref() {
                    hear.trailers(trailers);
                }
            }
            Poll::Ready(Some(Err(status))) => hear.broken(status.code()),
            Poll::Ready(None) => hear.broken(Code::Unknown),
        }
        self.hear = None;
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Adds up the messages of a request while they are read, where the answer's side can see it.
pub(crate) struct Tally {
    sizes: MessageSizes,
    total: Arc<AtomicU64>,
}

impl Tally {
    /// The same request, and where the bytes of its messages are added up.
    pub(crate) fn of(request: http::Request<Body>) -> (http::Request<Body>, Arc<AtomicU64>) {
        let total = Arc::new(AtomicU64::new(0));
        let tally = Self { sizes: MessageSizes::default(), total: Arc::clone(&total) };
        let counted = |body: Body| match http_body::Body::is_end_stream(&body) {
            true => body,
            false => Followed::body(body, tally),
        };
        (request.map(counted), total)
    }
}

impl Hear for Tally {
    fn data(&mut self, piece: &Bytes) {
        self.sizes.add(piece);
        self.total.store(self.sizes.total(), Ordering::Relaxed);
    }
}
