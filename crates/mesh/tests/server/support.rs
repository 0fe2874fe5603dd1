//! A greeter that waits, counts and stays as the name it is given says.

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use sightline_mesh::{
    auth::Guard,
    server::{
        ConnectionDrain, Lifecycle, Options, PeerIdentity, ServeError, Server, ServerConfig, WebOptions, bind,
    },
};
use tokio::task::JoinHandle;
use tokio_stream::{Stream, StreamExt};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status, Streaming,
    service::Routes,
    transport::{Channel, Endpoint},
};

#[allow(missing_docs, clippy::all)]
pub mod greeter {
    include!("../../examples/greeter/gen/greeter.v1.rs");
}

use greeter::{
    HelloRequest, HelloResponse,
    greeter_client::GreeterClient,
    greeter_server::{Greeter, GreeterServer},
    party_client::PartyClient,
    party_server::{Party, PartyServer},
};

pub const DESCRIPTORS: &[u8] = include_bytes!("../../examples/greeter/gen/descriptors.bin");

/// What it was asked and how it went.
#[derive(Debug, Clone, Default)]
pub struct Host {
    /// Those who are called "wait" do until this opens.
    pub gate: CancellationToken,
    /// Calls that have begun.
    pub begun: Arc<AtomicUsize>,
    /// Calls that are being worked on.
    pub busy: Arc<AtomicUsize>,
}

/// One that is being worked on, dropped with its future.
struct Busy(Arc<AtomicUsize>);

impl Busy {
    fn new(host: &Host) -> Self {
        host.begun.fetch_add(1, Ordering::SeqCst);
        host.busy.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(&host.busy))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tonic::async_trait]
impl Greeter for Host {
    async fn hello(&self, request: Request<HelloRequest>) -> Result<Response<HelloResponse>, Status> {
        let _busy = Busy::new(self);
        let who = request.extensions().get::<PeerIdentity>().map(|identity| identity.0.to_string());
        let HelloRequest { name, gift } = request.into_inner();
        match name.as_str() {
            "wait" => self.gate.cancelled().await,
            "work" => tokio::time::sleep(Duration::from_millis(50)).await,
            "echo" => return Ok(Response::new(HelloResponse { greeting: "x".repeat(gift.len()) })),
            _ => {}
        }
        let greeting = format!("hello {name}{} {}", who.unwrap_or_default(), gift.len());
        Ok(Response::new(HelloResponse { greeting }))
    }
}

type Greetings = Pin<Box<dyn Stream<Item = Result<HelloResponse, Status>> + Send>>;

#[tonic::async_trait]
impl Party for Host {
    type ChatStream = Greetings;

    /// Greets everybody; when the connection drains it says "bye" and ends, unless "stay" was there.
    async fn chat(&self, request: Request<Streaming<HelloRequest>>) -> Result<Response<Greetings>, Status> {
        let drain = ConnectionDrain::of(request.extensions());
        let busy = Busy::new(self);
        let guests = request.into_inner();
        let state = (guests, drain, busy, false, false);
        let answers =
            futures_util::stream::unfold(state, |(mut guests, drain, busy, stays, ended)| async move {
                if ended {
                    return None;
                }
                let guest = tokio::select! {
                    guest = guests.next() => guest?,
                    () = drain.draining(), if !stays => {
                        let bye = Ok(HelloResponse { greeting: "bye".into() });
                        return Some((bye, (guests, drain, busy, stays, true)));
                    }
                };
                let stays = stays || guest.as_ref().is_ok_and(|guest| guest.name == "stay");
                let answer = guest.map(|guest| HelloResponse { greeting: format!("hello {}", guest.name) });
                Some((answer, (guests, drain, busy, stays, false)))
            });
        Ok(Response::new(Box::pin(answers)))
    }
}

/// A server of the greeter.
pub struct Running {
    pub address: SocketAddr,
    pub life: Lifecycle,
    pub host: Host,
    pub task: JoinHandle<Result<(), ServeError>>,
}

pub struct Setup {
    pub name: &'static str,
    pub config: ServerConfig,
    pub options: Options,
    pub web: Option<WebOptions>,
    /// Stands before the greeter.
    pub guard: Guard,
    pub drain_timeout: Duration,
}

impl Default for Setup {
    fn default() -> Self {
        let options = Options { descriptors: vec![DESCRIPTORS], ..Options::default() };
        let drain_timeout = Duration::from_secs(5);
        let (config, guard) = (ServerConfig::default(), Guard::new(None, "greet"));
        Self { name: "greeter", config, options, web: None, guard, drain_timeout }
    }
}

/// The largest message; a gift of 10 MB fits.
pub const MAX_MESSAGE: usize = 11 << 20;

pub async fn start(change: impl FnOnce(&mut Setup)) -> Running {
    let mut setup = Setup::default();
    change(&mut setup);
    let listener = bind("test.listen", "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (life, host) = (Lifecycle::default(), Host::default());
    let greeter = GreeterServer::new(host.clone()).max_decoding_message_size(MAX_MESSAGE);
    let server = Server {
        name: setup.name,
        listener,
        routes: Routes::new(setup.guard.protect(sightline_mesh::compressed!(greeter)))
            .add_service(PartyServer::new(host.clone())),
        service_names: vec!["greeter.v1.Greeter", "greeter.v1.Party"],
        web: setup.web,
        drain_timeout: setup.drain_timeout,
    };
    setup.config.validate().unwrap();
    let options = Options { config: setup.config, ..setup.options };
    let task = tokio::spawn(server.run_with(life.clone(), options));
    Running { address, life, host, task }
}

impl Running {
    pub async fn channel(&self) -> Channel {
        Endpoint::from_shared(format!("http://{}", self.address)).unwrap().connect().await.unwrap()
    }

    pub async fn greeter(&self) -> GreeterClient<Channel> {
        GreeterClient::new(self.channel().await)
    }

    pub async fn party(&self) -> PartyClient<Channel> {
        PartyClient::new(self.channel().await)
    }

    /// Waits until so many calls have begun.
    pub async fn begun(&self, calls: usize) {
        until(|| self.host.begun.load(Ordering::SeqCst) >= calls).await;
    }

    pub fn busy(&self) -> usize {
        self.host.busy.load(Ordering::SeqCst)
    }
}

pub async fn until(done: impl Fn() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    waited.await.expect("it happens within 20 seconds");
}

/// What comes within 20 seconds: a server that fails a test does so by silence, too.
pub async fn soon<F: Future>(work: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(20), work).await.expect("it comes within 20 seconds")
}

pub fn hello(name: &str) -> HelloRequest {
    HelloRequest { name: name.into(), gift: Default::default() }
}

/// A connection of the h2 library, whose calls send what and when they are told to.
pub async fn h2(address: SocketAddr) -> h2::client::SendRequest<bytes::Bytes> {
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(async move { drop(connection.await) });
    client.ready().await.unwrap()
}

/// The head of a call.
pub fn head(method: &str, timeout: Option<&str>) -> http::Request<()> {
    let mut head = http::Request::post(format!("http://host/greeter.v1.{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some(timeout) = timeout {
        head = head.header("grpc-timeout", timeout);
    }
    head.body(()).unwrap()
}

/// A message as gRPC frames it, saying that it has `length` bytes.
pub fn framed(message: &impl prost::Message, length: usize) -> Vec<u8> {
    let mut bytes = vec![0];
    bytes.extend(u32::try_from(length).unwrap().to_be_bytes());
    message.encode(&mut bytes).unwrap();
    bytes
}

pub fn hello_framed(name: &str) -> bytes::Bytes {
    let message = hello(name);
    framed(&message, prost::Message::encoded_len(&message)).into()
}

/// What a gRPC status in headers or trailers says.
pub fn said(headers: &http::HeaderMap) -> sightline_mesh::RpcError {
    sightline_mesh::RpcError::from_status(&Status::from_header_map(headers).expect("a status"))
}
