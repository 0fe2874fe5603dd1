//! One HTTP/2 connection that we own.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use http::{
    HeaderValue, Request, Response, Uri,
    header::{Entry, USER_AGENT},
    uri::Parts,
};
use http_body_util::BodyExt;
use hyper::{
    body::Incoming,
    client::conn::http2::{Builder, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, body::Body};

use super::{
    Address, Connect, TransportOptions,
    call::Meter,
    wire::{Cut, Seen, Watched},
};

/// What servers are told that we are.
const AGENT: HeaderValue = HeaderValue::from_static(concat!("sightline-mesh/", env!("CARGO_PKG_VERSION")));
/// The HTTP/2 error code of a peer that was asked too much, for instance by pings (RFC 9113, section 7).
const ENHANCE_YOUR_CALM: u32 = 11;

/// A connection's handle: what a generated client takes for one endpoint. Cheap to clone; all clones are one connection.
///
/// It does not reconnect: once it has ended every call fails with a [`TransportError`] that is unsent.
#[derive(Clone)]
pub struct Transport {
    sender: SendRequest<Body>,
    shared: Arc<Shared>,
    /// What counts the calls, where no channel does.
    meter: Option<Arc<Meter>>,
}

struct Shared {
    scheme: http::uri::Scheme,
    authority: http::uri::Authority,
    cut: Arc<Cut>,
    /// Cancelled when the socket is dropped.
    gone: CancellationToken,
    /// What the peer said first: it is there.
    alive: watch::Sender<bool>,
    /// The same as `ended`, for the way that every call takes.
    open: AtomicBool,
    ended: watch::Sender<Option<Ended>>,
}

/// Why a connection takes no more calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// The peer asked for it, with this HTTP/2 error code (0: it stops or the connection is old). What is in flight goes on.
    GoAway(u32),
    /// It is gone, and with it what was in flight.
    Closed(String),
}

impl Ended {
    /// Whether the peer complains of too many pings.
    pub(super) fn asks_for_calm(&self) -> bool {
        *self == Self::GoAway(ENHANCE_YOUR_CALM)
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::GoAway(0) => f.write_str("the peer is closing the connection"),
            Self::GoAway(code) => {
                write!(f, "the peer is closing the connection: {}", h2::Reason::from(*code))
            }
            Self::Closed(why) => write!(f, "the connection ended: {why}"),
        }
    }
}

impl Shared {
    fn end(&self, why: Ended) {
        self.open.store(false, Ordering::Release);
        self.ended.send_if_modified(|ended| {
            let first = ended.is_none();
            if first {
                *ended = Some(why);
            }
            first
        });
    }

    fn seen(&self, seen: Seen) {
        match seen {
            Seen::First => drop(self.alive.send_replace(true)),
            Seen::GoAway(code) => self.end(Ended::GoAway(code)),
        }
    }
}

/// What the connection, not the server's code, did to a call. It is the source of the [`Status`] that the call ends with.
#[derive(Debug, thiserror::Error)]
#[error("{problem}")]
pub struct TransportError {
    problem: String,
    unsent: bool,
}

impl TransportError {
    /// Whether it is certain that the server has not acted on the call, so that it is safe to repeat whatever it says.
    pub fn is_unsent(&self) -> bool {
        self.unsent
    }

    /// Finds it behind a status.
    pub fn of(status: &Status) -> Option<&Self> {
        let mut source = std::error::Error::source(status);
        while let Some(error) = source {
            if let Some(found) = error.downcast_ref::<Self>() {
                return Some(found);
            }
            source = error.source();
        }
        None
    }

    /// A status with one of these as its source.
    pub(super) fn status(code: Code, problem: impl Into<String>, unsent: bool) -> Status {
        let problem = problem.into();
        let mut status = Status::new(code, problem.clone());
        status.set_source(Arc::new(Self { problem, unsent }));
        status
    }

    /// What hyper said of a call. `unsent`: it gave the request back.
    fn explain(error: &hyper::Error, unsent: bool, shared: &Shared) -> Status {
        let (code, refused) = match h2_error(error) {
            _ if unsent || error.is_timeout() => (Code::Unavailable, false),
            Some(h2) => classify(h2),
            None if error.is_user() && !error.is_canceled() => (Code::Internal, false),
            None => (Code::Unavailable, false),
        };
        let why = shared.ended.borrow().as_ref().map_or_else(|| describe(error), Ended::to_string);
        Self::status(code, format!("{}: {why}", shared.authority), unsent || refused)
    }
}

/// The code of an HTTP/2 error (gRPC over HTTP/2, "Errors"), and whether it proves that the call was not processed: the
/// peer refused the stream, or its GOAWAY named an earlier one as the last (RFC 9113, sections 6.8 and 8.7).
fn classify(error: &h2::Error) -> (Code, bool) {
    if error.is_io() || (error.is_go_away() && error.is_remote()) {
        return (Code::Unavailable, !error.is_io());
    }
    match error.reason() {
        Some(h2::Reason::REFUSED_STREAM) => (Code::Unavailable, error.is_remote()),
        Some(h2::Reason::CANCEL) => (Code::Cancelled, false),
        Some(h2::Reason::ENHANCE_YOUR_CALM) => (Code::ResourceExhausted, false),
        Some(h2::Reason::INADEQUATE_SECURITY) => (Code::PermissionDenied, false),
        Some(_) => (Code::Internal, false),
        None => (Code::Unavailable, false),
    }
}

fn h2_error(error: &hyper::Error) -> Option<&h2::Error> {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        source = error.source();
    }
    None
}

/// An error with what lies behind it.
fn describe(error: &hyper::Error) -> String {
    match std::error::Error::source(error) {
        Some(source) => format!("{error}: {source}"),
        None => error.to_string(),
    }
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Transport({})", self.shared.authority)
    }
}

impl Transport {
    /// Connects to `address` and waits until the peer has sent its first frame.
    ///
    /// # Errors
    /// `UNAVAILABLE`, saying why.
    pub async fn connect(
        connect: &dyn Connect,
        address: &Address,
        options: &TransportOptions,
    ) -> Result<Self, Status> {
        let fail = |problem: String| TransportError::status(Code::Unavailable, problem, true);
        let authority = address
            .authority
            .parse()
            .map_err(|error| fail(format!("{:?} is no address: {error}", address.authority)))?;
        let shared = Arc::new(Shared {
            scheme: connect.scheme(),
            authority,
            cut: Arc::default(),
            gone: CancellationToken::new(),
            alive: watch::Sender::new(false),
            open: AtomicBool::new(true),
            ended: watch::Sender::new(None),
        });
        let made = async {
            let io = connect.connect(address).await.map_err(|error| fail(error.to_string()))?;
            let (watcher, gone) = (Arc::clone(&shared), shared.gone.clone().drop_guard());
            let io = Watched::new(io, Arc::clone(&shared.cut), move |seen| {
                let _held = &gone;
                watcher.seen(seen);
            });
            let handshake = builder(options).handshake(TokioIo::new(io)).await;
            let (sender, connection) = handshake.map_err(|error| fail(describe(&error)))?;
            let driven = Arc::clone(&shared);
            tokio::spawn(async move {
                let why = match connection.await {
                    Ok(()) => "closed by the peer".to_owned(),
                    Err(error) if error.is_timeout() => "no sign of life".to_owned(),
                    Err(error) => describe(&error),
                };
                driven.end(Ended::Closed(why));
            });
            let transport = Self { sender, shared: Arc::clone(&shared), meter: None };
            transport.answered().await.map_err(|ended| fail(ended.to_string()))?;
            Ok(transport)
        };
        tokio::time::timeout(options.connect_timeout, made)
            .await
            .unwrap_or_else(|_| Err(fail(format!("no connection within {:?}", options.connect_timeout))))
    }

    /// Waits for the peer's first frame.
    async fn answered(&self) -> Result<(), Ended> {
        let mut alive = self.shared.alive.subscribe();
        tokio::select! {
            _ = alive.wait_for(|alive| *alive) => Ok(()),
            ended = self.ended() => Err(ended),
        }
    }

    /// Whether a call may still be sent.
    pub fn is_open(&self) -> bool {
        self.shared.open.load(Ordering::Acquire) && !self.sender.is_closed()
    }

    /// Waits until the connection takes no more calls: the peer said so (GOAWAY), or it broke.
    pub async fn ended(&self) -> Ended {
        let mut ended = self.shared.ended.subscribe();
        match ended.wait_for(Option::is_some).await {
            Ok(ended) => ended.clone().expect("waited until there was one"),
            Err(_) => unreachable!("`self` holds the sender"),
        }
    }

    /// The same connection, whose calls are counted by `meter`.
    pub(super) fn metered(mut self, meter: &Arc<Meter>) -> Self {
        self.meter = Some(Arc::clone(meter));
        self
    }

    /// The connection without the right to send: holding it keeps nothing open.
    pub(super) fn connection(&self) -> Connection {
        Connection(Arc::clone(&self.shared))
    }
}

/// A connection to be ended.
#[derive(Clone)]
pub(super) struct Connection(Arc<Shared>);

impl Connection {
    /// Waits until the socket is closed, and with it all that was in flight.
    pub(super) async fn gone(&self) {
        self.0.gone.cancelled().await;
    }

    pub(super) fn is_gone(&self) -> bool {
        self.0.gone.is_cancelled()
    }

    /// Cuts it: what is in flight fails.
    pub(super) fn cut(&self) {
        self.0.end(Ended::Closed("cut by this side".into()));
        self.0.cut.now();
    }
}

fn builder(options: &TransportOptions) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .initial_stream_window_size(options.stream_window)
        .initial_connection_window_size(options.connection_window)
        .keep_alive_interval(options.keepalive_interval)
        .keep_alive_timeout(options.keepalive_timeout)
        .keep_alive_while_idle(true);
    builder
}

impl tower::Service<Request<Body>> for Transport {
    type Response = Response<Body>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Status>> + Send>>;

    /// Always ready: generated clients turn an error from here into `UNKNOWN`, one from `call` stays what it is.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let Some(meter) = &self.meter else { return Box::pin(self.send(request)) };
        let (request, mut metered) = meter.begin(request);
        let sent = self.send(request);
        Box::pin(async move {
            match sent.await {
                Ok(response) => Ok(metered.follow(response)),
                Err(status) => {
                    metered.end(status.code());
                    Err(status)
                }
            }
        })
    }
}

impl Transport {
    /// Sends a call, on a connection that may have ended.
    fn send(
        &mut self,
        mut request: Request<Body>,
    ) -> impl Future<Output = Result<Response<Body>, Status>> + use<> {
        let shared = Arc::clone(&self.shared);
        let mut parts = Parts::default();
        parts.scheme = Some(shared.scheme.clone());
        parts.authority = Some(shared.authority.clone());
        parts.path_and_query = request.uri().path_and_query().cloned();
        if let Ok(uri) = Uri::from_parts(parts) {
            *request.uri_mut() = uri;
        }
        if let Entry::Vacant(agent) = request.headers_mut().entry(USER_AGENT) {
            agent.insert(AGENT);
        }
        let sent = self.is_open().then(|| self.sender.try_send_request(request));
        async move {
            let Some(sent) = sent else {
                let ended = shared.ended.borrow().clone();
                let why = ended.map_or_else(|| "the connection ended".to_owned(), |ended| ended.to_string());
                let problem = format!("{}: {why}", shared.authority);
                return Err(TransportError::status(Code::Unavailable, problem, true));
            };
            match sent.await {
                Ok(response) => Ok(response.map(|body| explained(body, shared))),
                Err(error) => {
                    let unsent = error.message().is_some();
                    Err(TransportError::explain(&error.into_error(), unsent, &shared))
                }
            }
        }
    }
}

/// An answer's body whose errors say what became of the connection.
fn explained(body: Incoming, shared: Arc<Shared>) -> Body {
    Body::new(body.map_err(move |error| {
        // The answer has begun: what HTTP/2 would call unprocessed was processed.
        let status = TransportError::explain(&error, false, &shared);
        TransportError::status(status.code(), status.message(), false)
    }))
}
