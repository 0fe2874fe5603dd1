//! One connection, from its handshake to its end.

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use http::{Request, Response};
use hyper::{body::Incoming, rt::Executor};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    server::conn::auto::Builder,
};
use metrics::counter;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{sleep, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{body::Body, transport::server::TcpConnectInfo};
use tower::{Service, ServiceExt, util::Oneshot};
use tracing::debug;

use super::{
    Accept, ConnectionDrain, Lifecycle, PeerIdentity, ServerConfig,
    peers::{Peer, PeerKey, Peers},
    refuse::Jitter,
};
use crate::{gather::Gathered, io::BoxedIo};

/// What one connection may hold of the server's memory before a call has been read (HTTP/2 flow control).
#[derive(Debug, Clone, Copy)]
pub(super) struct Windows {
    /// Bytes on their way in one call.
    stream: u32,
    /// Bytes on their way on the connection.
    connection: u32,
    /// Bytes in one HTTP/2 frame.
    frame: u32,
    /// Calls open at once.
    calls: u32,
    /// Frames for streams that have ended that a connection may bring in its life. They come of answers that are ahead of
    /// their bodies; each costs us a frame, so strangers have h2's own bound.
    late_frames: usize,
}

/// For clients, of whom there are very many: a usual image is one window, a connection holds 1 MiB.
pub(super) const EDGE: Windows =
    Windows { stream: 256 << 10, connection: 1 << 20, frame: 64 << 10, calls: 128, late_frames: 1024 };
/// For other services, of which there are few: several resized frames (150 to 300 KB each) fit on a stream and dozens
/// on a connection, so that a message is never cut into many round trips.
pub(super) const INSIDE: Windows =
    Windows { stream: 4 << 20, connection: 32 << 20, frame: 256 << 10, calls: 1024, late_frames: 1 << 16 };
impl Windows {
    pub(super) fn stream(self) -> usize {
        self.stream as usize
    }
}

/// A silent client is asked for a sign of life this often, and dropped after as long again.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// The HTTP/2 preface; no HTTP/1 request that can be answered is shorter.
const FIRST_BYTES: usize = 24;
/// How far the ages of connections are apart, either way: without it all that came together go together.
const AGE_SPREAD: f64 = 0.1;

/// How HTTP is spoken on every connection of a server.
pub(super) fn http(windows: Windows, http1: bool, tasks: &TaskTracker) -> Builder<Tasks> {
    let mut builder = Builder::new(Tasks(tasks.clone()));
    if !http1 {
        builder = builder.http2_only();
    }
    // With a timer HTTP/1 has 30 seconds for the head of a request, the first and the next.
    builder.http1().timer(TokioTimer::new());
    builder
        .http2()
        .timer(TokioTimer::new())
        .initial_stream_window_size(windows.stream)
        .initial_connection_window_size(windows.connection)
        .max_frame_size(windows.frame)
        .max_concurrent_streams(windows.calls)
        .max_local_error_reset_streams(windows.late_frames)
        .keep_alive_interval(KEEPALIVE)
        .keep_alive_timeout(KEEPALIVE);
    builder
}

/// Runs calls as tasks that the end of the server waits for.
#[derive(Debug, Clone)]
pub(super) struct Tasks(TaskTracker);

impl<F> Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, call: F) {
        self.0.spawn(call);
    }
}

/// What all connections of a server share.
pub(super) struct Connections {
    pub(super) server: &'static str,
    pub(super) config: ServerConfig,
    pub(super) accept: Arc<dyn Accept>,
    pub(super) http: Builder<Tasks>,
    pub(super) lifecycle: Lifecycle,
    /// Everything ends at once.
    pub(super) cut: CancellationToken,
    pub(super) callers: Peers,
    pub(super) jitter: Jitter,
    pub(super) local: Option<SocketAddr>,
}

/// Why a connection was ended by us.
#[derive(Debug, Clone, Copy)]
enum Ended {
    /// It said nothing in time.
    Handshake,
    /// It outlived its age and the grace.
    Age,
    /// It outlived the drain.
    Drain,
}

impl Connections {
    /// Serves one connection to its end, which is near once the server drains.
    pub(super) async fn serve<S: Stack>(&self, io: BoxedIo, peer: SocketAddr, stack: S)
    where
        S::Future: Send + 'static,
    {
        let drain = self.lifecycle.connection();
        let accepting = timeout(self.config.handshake_timeout.0, self.accept.accept(io, peer));
        let accepted = match drain.0.run_until_cancelled(accepting).await {
            Some(Ok(Ok(accepted))) => accepted,
            Some(Ok(Err(error))) => return debug!(server = self.server, %peer, "no handshake: {error}"),
            Some(Err(_)) => return self.ended(Ended::Handshake),
            None => return,
        };
        let (io, heard) = Heard::new(accepted.io);
        let entrance = Entrance {
            stack,
            info: TcpConnectInfo { local_addr: self.local, remote_addr: Some(peer) },
            drain: drain.clone(),
            peer: self.callers.join(PeerKey::new(peer.ip(), accepted.identity.as_ref())),
            identity: accepted.identity,
        };
        tokio::select! {
            () = self.drive(io, entrance, &drain) => {}
            () = self.silence(&heard) => self.ended(Ended::Handshake),
        }
    }

    /// Speaks HTTP until the connection ends, is too old, or the server drains; then asks it to end, and at last cuts it.
    async fn drive<S: Stack>(&self, io: Heard, entrance: Entrance<S>, drain: &ConnectionDrain)
    where
        S::Future: Send + 'static,
    {
        let mut connection = pin!(self.http.serve_connection(TokioIo::new(io), entrance));
        let aged = tokio::select! {
            ended = connection.as_mut() => return self.log(ended),
            () = drain.draining() => false,
            () = self.age() => true,
            () = self.cut.cancelled() => return,
        };
        drain.0.cancel();
        // HTTP/2: GOAWAY for all that may come, then, when the peer has surely read it, for all that has not come. HTTP/1:
        // no further request.
        connection.as_mut().graceful_shutdown();
        let grace = async {
            match aged {
                true => sleep(self.config.max_connection_age_grace.0).await,
                false => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = connection.as_mut() => self.log(ended),
            () = grace => self.ended(Ended::Age),
            () = self.cut.cancelled() => self.ended(Ended::Drain),
        }
    }

    fn log(&self, ended: Result<(), Box<dyn std::error::Error + Send + Sync>>) {
        if let Err(error) = ended {
            debug!(server = self.server, "a connection ended: {error}");
        }
    }

    /// Waits as long as this connection may live.
    async fn age(&self) {
        let age = self.config.max_connection_age.0;
        if age.is_zero() {
            std::future::pending::<()>().await;
        }
        sleep(self.jitter.around(age, AGE_SPREAD)).await;
    }

    /// Ends when the peer has said nothing that HTTP begins with for too long.
    async fn silence(&self, heard: &AtomicUsize) {
        sleep(self.config.handshake_timeout.0).await;
        if heard.load(Ordering::Relaxed) >= FIRST_BYTES {
            std::future::pending::<()>().await;
        }
    }

    fn ended(&self, ended: Ended) {
        let why = match ended {
            Ended::Handshake => "handshake",
            Ended::Age => "age",
            Ended::Drain => "drain",
        };
        counter!("connections_cut_total", "server" => self.server, "reason" => why).increment(1);
    }
}

/// The services with all layers around them.
pub(super) trait Stack:
    Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static
{
}

impl<S> Stack for S where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static
{
}

/// What the requests of one connection are given on their way in.
struct Entrance<S> {
    stack: S,
    info: TcpConnectInfo,
    drain: ConnectionDrain,
    peer: Arc<Peer>,
    identity: Option<PeerIdentity>,
}

impl<S: Stack> hyper::service::Service<Request<Incoming>> for Entrance<S>
where
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Oneshot<S, Request<Body>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let mut request = request.map(Body::new);
        let extensions = request.extensions_mut();
        extensions.insert(self.info.clone());
        extensions.insert(self.drain.clone());
        extensions.insert(Arc::clone(&self.peer));
        if let Some(identity) = &self.identity {
            extensions.insert(identity.clone());
        }
        self.stack.clone().oneshot(request)
    }
}

/// A connection whose first bytes are counted.
struct Heard {
    io: Gathered<BoxedIo>,
    bytes: Arc<AtomicUsize>,
}

impl Heard {
    fn new(io: BoxedIo) -> (Self, Arc<AtomicUsize>) {
        let bytes = Arc::<AtomicUsize>::default();
        (Self { io: Gathered::new(io), bytes: Arc::clone(&bytes) }, bytes)
    }
}

impl AsyncRead for Heard {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.io).poll_read(context, buffer);
        if self.bytes.load(Ordering::Relaxed) < FIRST_BYTES {
            self.bytes.fetch_add(buffer.filled().len() - before, Ordering::Relaxed);
        }
        polled
    }
}

impl AsyncWrite for Heard {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}
