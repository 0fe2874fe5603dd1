//! Who is let in, before a body is read: the bounds on calls, streams and peers, and the caller's deadline.
//!
//! - A unary call is a unit of work: so many at once ([`gate`]), a few more wait, the rest is turned away.
//! - A stream is not: it lives for hours, and what is worked on in it is bounded by its own credits. Streams have a
//!   bound of their own, which is about memory, and never queue.
//! - Both count for their peer, over all its connections.
//! - A question about health is always answered: whoever is full must be able to say so. Those who watch it, and streams
//!   of reflection, have a third bound: neither may they fill the server, nor its own streams keep them out.

mod concurrency;
mod gate;
mod patience;

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::{Frame, SizeHint};
use metrics::{describe_gauge, gauge};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep_until, timeout_at},
};
use tonic::{Status, body::Body};
use tower::{Layer, Service};

use self::gate::{Crowded, Gate, Place};
use super::{
    ServerConfig,
    peers::{Peer, Taken},
    receive::{Budget, Discard, Sends},
    reflection::ON_EVERY_PORT,
    refuse::Refusals,
};
use crate::{Deadline, RpcError, error::reason, io::BoxFuture, observe::Calls};

/// The longest deadline that is waited for by a timer: it outlives every connection.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 3600);

/// A layer around the services of one server.
#[derive(Clone)]
pub(super) struct Admission {
    shared: Arc<Shared>,
}

struct Shared {
    calls: Calls,
    gate: Arc<Gate>,
    /// For the messages of refusals, and the bound of each peer.
    config: ServerConfig,
    streams: Arc<Semaphore>,
    watches: Arc<Semaphore>,
    budget: Arc<Budget>,
    discard: Discard,
    refusals: Refusals,
}

/// What a call counts as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Unary,
    Stream,
    /// A stream of what every port serves.
    Watch,
}

/// What a call holds while it is open.
enum Held {
    Unary { place: Place, _peer: Option<Taken> },
    Stream { permit: OwnedSemaphorePermit, peer: Option<Taken> },
}

impl Admission {
    /// `window` is what a client may send ahead in one call.
    pub(super) fn new(
        server: &'static str,
        config: &ServerConfig,
        window: usize,
        calls: Calls,
        refusals: Refusals,
    ) -> Self {
        describe_gauge!("calls_limit", "Unary calls that may be worked on at once, by server");
        let gate = Gate::new(config, gauge!("calls_limit", "server" => server));
        let places = |most: usize| Arc::new(Semaphore::new(most.min(Semaphore::MAX_PERMITS)));
        let (streams, watches) = (places(config.max_streams), places(config.max_watches));
        let discard = Discard::new(window);
        let budget = Budget::new(config, discard.clone(), refusals.clone());
        let config = config.clone();
        Self { shared: Arc::new(Shared { calls, gate, config, streams, watches, budget, discard, refusals }) }
    }
}

impl Shared {
    async fn admit(
        &self,
        peer: Option<&Arc<Peer>>,
        kind: Kind,
        deadline: Option<Instant>,
    ) -> Result<Held, Status> {
        let most = self.config.max_calls_per_peer;
        let peer = match peer {
            Some(peer) => Some(peer.take(most).ok_or_else(|| self.peer_is_full())?),
            None => None,
        };
        let streams = match kind {
            Kind::Unary => None,
            Kind::Stream => Some(&self.streams),
            Kind::Watch => Some(&self.watches),
        };
        if let Some(streams) = streams {
            let permit = Arc::clone(streams).try_acquire_owned().map_err(|_| self.too_many_streams(kind))?;
            return Ok(Held::Stream { permit, peer });
        }
        let longest = deadline.map_or(LONGEST, |deadline| deadline.duration_since(Instant::now()));
        match self.gate.enter(longest).await {
            Ok(place) => Ok(Held::Unary { place, _peer: peer }),
            Err(crowded) => Err(self.too_many_calls(crowded)),
        }
    }

    fn peer_is_full(&self) -> Status {
        let most = self.config.max_calls_per_peer;
        let message = format!("this caller has {most} calls open, the most that one may have");
        self.refusals.status("peer", reason::TOO_MANY_CALLS, message)
    }

    fn too_many_streams(&self, kind: Kind) -> Status {
        let (full, most, what) = match kind {
            Kind::Watch => ("watches", self.config.max_watches, "streams of health and reflection"),
            Kind::Unary | Kind::Stream => ("streams", self.config.max_streams, "streams"),
        };
        let message = format!("the server has {most} {what} open, the most that it holds");
        self.refusals.status(full, reason::OVERLOADED, message)
    }

    fn too_many_calls(&self, crowded: Crowded) -> Status {
        let limit = self.gate.limit();
        let message = match crowded {
            Crowded::Full => format!("the server works on {limit} calls, and as many wait as may"),
            Crowded::Waited => {
                format!("the server works on {limit} calls, and none ended in time for this one")
            }
        };
        self.refusals.status("calls", reason::OVERLOADED, message)
    }
}

impl<S> Layer<S> for Admission {
    type Service = Admitting<S>;

    fn layer(&self, inner: S) -> Admitting<S> {
        Admitting { inner, shared: Arc::clone(&self.shared) }
    }
}

/// See [`Admission`].
#[derive(Clone)]
pub(super) struct Admitting<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> Service<Request<Body>> for Admitting<S>
where
    S: Service<Request<Body>, Response = Response<Body>> + Clone + Send + 'static,
    S::Future: Send + 'static,
    S::Error: Send,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = BoxFuture<'static, Result<Response<Body>, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let streams = self.shared.calls.streams(path);
        let takes = if streams.is_some_and(|(client, _)| !client) { Sends::One } else { Sends::Many };
        let kind = match (is_of_every_port(path), streams.is_some_and(|(client, server)| client || server)) {
            (true, false) => {
                let request = request.map(|body| self.shared.budget.meter(body, takes));
                return Box::pin(self.inner.call(request));
            }
            (true, true) => Kind::Watch,
            (false, true) => Kind::Stream,
            (false, false) => Kind::Unary,
        };
        // The one that was asked whether it is ready is used; its clone stays.
        let clone = self.inner.clone();
        let mut inner = std::mem::replace(&mut self.inner, clone);
        let shared = Arc::clone(&self.shared);
        let deadline =
            Deadline::timeout_in(request.headers()).map(|asked| Instant::now() + asked.min(LONGEST));
        Box::pin(async move {
            let peer = request.extensions().get::<Arc<Peer>>().cloned();
            let held = match shared.admit(peer.as_ref(), kind, deadline).await {
                Ok(held) => held,
                Err(status) => {
                    shared.discard.body(request.into_body());
                    return Ok(status.into_http());
                }
            };
            let answering = inner.call(request.map(|body| shared.budget.meter(body, takes)));
            let answered = match deadline {
                None => Ok(answering.await),
                Some(deadline) => timeout_at(deadline, answering).await,
            };
            let response = match answered {
                Ok(response) => response?,
                Err(_) => Status::from(RpcError::deadline("the call")).into_http(),
            };
            Ok(held.until_its_end(response, deadline))
        })
    }
}

impl Held {
    /// The work of a unary call is done when its answer begins; a stream is held to the end of its body, which comes by
    /// its deadline.
    fn until_its_end(self, response: Response<Body>, deadline: Option<Instant>) -> Response<Body> {
        match self {
            Self::Unary { place, .. } => {
                place.ended();
                response
            }
            Self::Stream { permit, peer } => response.map(|body| {
                let deadline = deadline.map(|deadline| Box::pin(sleep_until(deadline)));
                Body::new(Bounded { body, deadline, _held: (permit, peer) })
            }),
        }
    }
}

/// `/package.Service/Method` of what every port serves.
fn is_of_every_port(path: &str) -> bool {
    let service = path.strip_prefix('/').and_then(|path| path.split('/').next());
    service.is_some_and(|service| ON_EVERY_PORT.contains(&service))
}

/// The answers of a stream, ended by its deadline.
struct Bounded {
    body: Body,
    deadline: Option<Pin<Box<Sleep>>>,
    _held: (OwnedSemaphorePermit, Option<Taken>),
}

impl http_body::Body for Bounded {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(context).is_ready()
        {
            self.deadline = None;
            self.body = Body::empty();
            let mut trailers = HeaderMap::new();
            let status = Status::from(RpcError::deadline("the stream"));
            return Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))));
        }
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
