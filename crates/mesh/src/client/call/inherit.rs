//! The server's half of [`super::tree`]: calls made while a call is served inherit its deadline and its attempts.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::{Frame, SizeHint};
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use super::tree::{CallContext, read};
use crate::{
    Deadline,
    names::{ATTEMPTS_LEFT, GRPC_STATUS},
};

/// A layer around the services of a server: each call is served in a [`CallContext`], which is also in its request's
/// extensions, and answers say how many of the lent attempts were not used: nothing when none was, as one says that knows nothing
/// of attempts.
#[derive(Debug, Clone, Copy)]
pub struct Inherit {
    /// What a call begins with that brings nothing, and the most that is believed of one that does.
    attempts: u32,
    /// Whether callers may say how many attempts their tree has left.
    trusted: bool,
}

impl Inherit {
    /// For servers that other services of the mesh call.
    pub fn inside(attempts: u32) -> Self {
        Self { attempts, trusted: true }
    }

    /// For the public edge: each call begins a tree of its own.
    pub fn edge(attempts: u32) -> Self {
        Self { attempts, trusted: false }
    }

    fn context(self, headers: &HeaderMap) -> CallContext {
        let lent = if self.trusted { read(headers) } else { None };
        let attempts = lent.map_or(self.attempts, |lent| lent.min(self.attempts));
        CallContext::new(Deadline::from_headers(headers), attempts)
    }
}

impl<S> Layer<S> for Inherit {
    type Service = Inheriting<S>;

    fn layer(&self, inner: S) -> Inheriting<S> {
        Inheriting { inner, inherit: *self }
    }
}

/// See [`Inherit`].
#[derive(Debug, Clone)]
pub struct Inheriting<S> {
    inner: S,
    inherit: Inherit,
}

type Answering<E> = Pin<Box<dyn Future<Output = Result<http::Response<Body>, E>> + Send>>;

impl<S, B> Service<http::Request<B>> for Inheriting<S>
where
    S: Service<http::Request<B>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Answering<S::Error>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: http::Request<B>) -> Self::Future {
        let context = self.inherit.context(request.headers());
        request.extensions_mut().insert(context.clone());
        let answer = context.sync_scope(|| self.inner.call(request));
        let lent = self.inherit.trusted.then(|| context.attempts().left());
        Box::pin(
            context.clone().scope(async move { answer.await.map(|answer| follow(answer, context, lent)) }),
        )
    }
}

/// The rest of an answer is made in the context too. `lent`: what the call began with, where its caller is to be told.
fn follow(mut answer: http::Response<Body>, context: CallContext, lent: Option<u32>) -> http::Response<Body> {
    if answer.headers().contains_key(&GRPC_STATUS) {
        put(&context, lent, answer.headers_mut());
        return answer;
    }
    answer.map(|body| Body::new(Scoped { body, context, lent }))
}

fn put(context: &CallContext, lent: Option<u32>, headers: &mut HeaderMap) {
    let left = context.attempts().left();
    if lent.is_some_and(|lent| left < lent) {
        headers.insert(&ATTEMPTS_LEFT, HeaderValue::from(left));
    }
}

struct Scoped {
    body: Body,
    context: CallContext,
    lent: Option<u32>,
}

impl http_body::Body for Scoped {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        poll: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Self { body, context, lent } = self.get_mut();
        let mut polled = context.sync_scope(|| Pin::new(body).poll_frame(poll));
        if let Poll::Ready(Some(Ok(frame))) = &mut polled
            && let Some(trailers) = frame.trailers_mut()
        {
            put(context, *lent, trailers);
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, time::Duration};

    use http_body::Body as _;

    use super::*;

    fn asking(attempts: Option<&str>) -> http::Request<()> {
        let mut request = http::Request::new(());
        request.headers_mut().insert("grpc-timeout", HeaderValue::from_static("1S"));
        if let Some(attempts) = attempts {
            request.headers_mut().insert(&ATTEMPTS_LEFT, attempts.parse().unwrap());
        }
        request
    }

    /// A service that uses an attempt up in its handler and another while its answer is read.
    async fn serve(inherit: Inherit, request: http::Request<()>) -> Option<u32> {
        let mut service = inherit.layer(tower::service_fn(|request: http::Request<()>| async move {
            let inherited = request.extensions().get::<CallContext>().unwrap();
            assert_eq!(inherited.deadline().unwrap().remaining(), Duration::from_millis(990));
            CallContext::current().unwrap().attempts().take();
            Ok::<_, Infallible>(http::Response::new(Body::new(Late)))
        }));
        let Ok(answer) = service.call(request).await;
        let mut body = answer.into_body();
        let frame = std::future::poll_fn(|poll| Pin::new(&mut body).poll_frame(poll)).await.unwrap().unwrap();
        read(frame.trailers_ref().unwrap())
    }

    struct Late;

    impl http_body::Body for Late {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            CallContext::current().unwrap().attempts().take();
            Poll::Ready(Some(Ok(Frame::trailers(HeaderMap::new()))))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_handler_and_its_answer_share_what_the_caller_lent() {
        assert_eq!(serve(Inherit::inside(8), asking(Some("5"))).await, Some(3));
        assert_eq!(serve(Inherit::inside(8), asking(Some("1000"))).await, Some(6), "capped");
        assert_eq!(serve(Inherit::inside(8), asking(None)).await, Some(6));
        assert_eq!(serve(Inherit::inside(8), asking(Some("many"))).await, Some(6));
    }

    #[tokio::test(start_paused = true)]
    async fn the_edge_believes_and_tells_nobody() {
        assert_eq!(serve(Inherit::edge(8), asking(Some("0"))).await, None);
    }

    #[test]
    fn a_call_that_used_nothing_up_says_nothing() {
        let mut headers = HeaderMap::new();
        let context = CallContext::new(None, 3);
        put(&context, Some(3), &mut headers);
        assert_eq!(read(&headers), None);
        assert!(context.attempts().take());
        put(&context, Some(3), &mut headers);
        assert_eq!(read(&headers), Some(2));
    }
}
