//! Real tonic servers on a network that is in memory, so that a paused clock rules all of it; and clients of them.

#![allow(dead_code)] // not every test file uses all of it

use std::{
    collections::HashMap,
    fmt, io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use sightline_mesh::client::{
    Address, BoxFuture, BoxedIo, CallOptions, Channel, Cluster, ClusterOptions, Connect, Fixed, Inherit,
    MethodPolicies, MethodPolicy,
};
use tokio::{io::DuplexStream, sync::mpsc, time::Instant};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Server, server::Router};
use tonic::{Request, Response, Status, Streaming, body::Body, codegen::http::uri::PathAndQuery};
use tonic_prost::ProstCodec;
use tower::layer::util::{Identity, Stack};

/// Methods of the test service, as `policies` knows them; `/test.Echo/Unknown` it does not.
pub const SAFE: &str = "/test.Echo/Safe";
pub const UNSAFE: &str = "/test.Echo/Unsafe";
pub const UNKNOWN: &str = "/test.Echo/Unknown";

/// What a handler answers: messages, then the end.
pub type Messages = Pin<Box<dyn Stream<Item = Result<String, Status>> + Send>>;
type Answering = BoxFuture<'static, Result<Response<Messages>, Status>>;
type Handler = dyn Fn(Request<String>) -> Answering + Send + Sync;

/// One message and then OK.
pub fn one(text: impl Into<String>) -> Result<Response<Messages>, Status> {
    Ok(Response::new(Box::pin(tokio_stream::once(Ok(text.into())))))
}

/// A service that has a handler for every method.
#[derive(Clone)]
struct Echo {
    handler: Arc<Handler>,
    calls: Arc<AtomicUsize>,
}

impl tonic::server::NamedService for Echo {
    const NAME: &'static str = "test.Echo";
}

impl tonic::server::ServerStreamingService<String> for Echo {
    type Response = String;
    type ResponseStream = Messages;
    type Future = Answering;

    fn call(&mut self, request: Request<String>) -> Answering {
        self.calls.fetch_add(1, Ordering::Relaxed);
        (self.handler)(request)
    }
}

impl tower::Service<http::Request<Body>> for Echo {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = BoxFuture<'static, Result<http::Response<Body>, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let echo = self.clone();
        Box::pin(async move {
            let mut grpc = tonic::server::Grpc::new(ProstCodec::<String, String>::default());
            Ok(grpc.server_streaming(echo, request).await)
        })
    }
}

/// A network in memory: addresses and who listens there.
#[derive(Clone, Default)]
pub struct Net {
    listeners: Arc<Mutex<HashMap<String, mpsc::Sender<DuplexStream>>>>,
    /// Cancelled: every connection made through it is cut.
    cut: Arc<Mutex<CancellationToken>>,
}

impl fmt::Debug for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Net")
    }
}

impl Connect for Net {
    fn connect<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, io::Result<BoxedIo>> {
        let listener = self.listeners.lock().unwrap().get(&address.authority).cloned();
        let cut = self.cut.lock().unwrap().clone();
        Box::pin(async move {
            let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
            let listener = listener.ok_or_else(refused)?;
            let (client, near) = tokio::io::duplex(1 << 20);
            let (far, server) = tokio::io::duplex(1 << 20);
            listener.send(server).await.map_err(|_| refused())?;
            tokio::spawn(async move { cut.run_until_cancelled(relay(near, far)).await });
            Ok(Box::new(client) as BoxedIo)
        })
    }
}

async fn relay(mut near: DuplexStream, mut far: DuplexStream) {
    tokio::io::copy_bidirectional(&mut near, &mut far).await.ok();
}

/// A server of the test service, and how often it was called.
pub fn router<F>(
    handler: impl Fn(Request<String>) -> F + Send + Sync + 'static,
) -> (Router<Stack<Inherit, Identity>>, Arc<AtomicUsize>)
where
    F: Future<Output = Result<Response<Messages>, Status>> + Send + 'static,
{
    let calls = Arc::<AtomicUsize>::default();
    let echo = Echo { handler: Arc::new(move |request| Box::pin(handler(request))), calls: calls.clone() };
    (Server::builder().layer(Inherit::inside(8)).add_service(echo), calls)
}

impl Net {
    /// Whoever connects to `authority` is sent on.
    pub fn listen(&self, authority: &str) -> mpsc::Receiver<DuplexStream> {
        let (sender, receiver) = mpsc::channel(8);
        self.listeners.lock().unwrap().insert(authority.to_owned(), sender);
        receiver
    }

    /// Cuts every connection there is; new ones can be made.
    pub fn cut(&self) {
        std::mem::take(&mut *self.cut.lock().unwrap()).cancel();
    }

    /// Starts a replica; how often it was called.
    pub fn serve<F>(
        &self,
        authority: &str,
        handler: impl Fn(Request<String>) -> F + Send + Sync + 'static,
    ) -> Arc<AtomicUsize>
    where
        F: Future<Output = Result<Response<Messages>, Status>> + Send + 'static,
    {
        let incoming = ReceiverStream::new(self.listen(authority)).map(Ok::<_, io::Error>);
        let (router, calls) = router(handler);
        tokio::spawn(router.serve_with_incoming(incoming));
        calls
    }

    /// A channel to replicas at `authorities`.
    pub fn channel(&self, authorities: &[&str], policies: &MethodPolicies, options: CallOptions) -> Channel {
        let addresses = authorities.iter().map(|authority| Address::new(authority).unwrap()).collect();
        let mut cluster = ClusterOptions::new("echo", Fixed::new(addresses));
        cluster.connect = Arc::new(self.clone());
        cluster.seed = Some(1);
        Channel::new(Cluster::start(cluster), policies, CallOptions { seed: Some(1), ..options })
    }

    /// The same with the default options and `policies(MethodPolicy::idempotent())`.
    pub fn ordinary(&self, authorities: &[&str]) -> Channel {
        self.channel(authorities, &policies(MethodPolicy::idempotent()), CallOptions::default())
    }
}

/// A table in which `SAFE` has this policy.
pub fn policies(safe: MethodPolicy) -> MethodPolicies {
    let table = MethodPolicies::default().method(SAFE, safe).unwrap();
    table.method(UNSAFE, MethodPolicy::once()).unwrap()
}

/// A unary call.
pub async fn unary(
    channel: &Channel,
    path: &'static str,
    request: Request<String>,
) -> Result<String, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    let codec = ProstCodec::<String, String>::default();
    grpc.unary(request, PathAndQuery::from_static(path), codec).await.map(Response::into_inner)
}

/// A call whose answer is a stream.
pub async fn stream(
    channel: &Channel,
    path: &'static str,
    request: Request<String>,
) -> Result<Streaming<String>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    let codec = ProstCodec::<String, String>::default();
    grpc.server_streaming(request, PathAndQuery::from_static(path), codec).await.map(Response::into_inner)
}

/// A request with nothing in particular.
pub fn hello() -> Request<String> {
    Request::new("hello".to_owned())
}

/// A request whose caller waits so long.
pub fn within(timeout: Duration) -> Request<String> {
    let mut request = hello();
    request.set_timeout(timeout);
    request
}

/// A header as text.
pub fn header<'a>(request: &'a Request<String>, name: &str) -> Option<&'a str> {
    request.metadata().get(name).and_then(|value| value.to_str().ok())
}

/// How many attempts were sent before this one.
pub fn previous(request: &Request<String>) -> u32 {
    header(request, "grpc-previous-rpc-attempts").map_or(0, |text| text.parse().unwrap())
}

/// What `grpc-timeout` says.
pub fn timeout_of(request: &Request<String>) -> Duration {
    let text = header(request, "grpc-timeout").expect("a deadline is carried");
    let (value, unit) = text.split_at(text.len() - 1);
    let value: u64 = value.parse().unwrap();
    match unit {
        "u" => Duration::from_micros(value),
        "m" => Duration::from_millis(value),
        "S" => Duration::from_secs(value),
        other => panic!("unit {other}"),
    }
}

/// Sets a flag when it is dropped: the server's half of a call has ended.
pub struct Dropped(pub Arc<AtomicUsize>);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// How long `work` took on the paused clock.
pub async fn timed<T>(work: impl Future<Output = T>) -> (T, Duration) {
    let since = Instant::now();
    (work.await, since.elapsed())
}

/// Waits, at most ten seconds of the paused clock, until `counter` is `expected`.
pub async fn reaches(counter: &AtomicUsize, expected: usize) {
    for _ in 0..1000 {
        if counter.load(Ordering::Relaxed) == expected {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(counter.load(Ordering::Relaxed), expected);
}
