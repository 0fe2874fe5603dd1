//! Real servers that do as they are told, in this process or in one of their own, and callers of them.

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::Stdio,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use sightline_mesh::{
    Deadline, RpcError,
    client::{Address, AddressStream, Cluster, Discover, DiscoverError, Outcome, Pick, TransportError},
    server::{Lifecycle, Server, bind},
};
use sightline_proto::ratelimiter::{
    CheckRequest, CheckResponse,
    rate_limiter_service_client::RateLimiterServiceClient,
    rate_limiter_service_server::{RateLimiterService, RateLimiterServiceServer},
};
use tokio::{io::AsyncBufReadExt, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, service::Routes};

/// What a replica does with calls.
#[derive(Debug, Default)]
pub struct Mode {
    pub calls: AtomicUsize,
    pub failing: AtomicBool,
    pub latency_ms: AtomicU64,
}

#[derive(Debug, Clone)]
struct Service(Arc<Mode>);

#[tonic::async_trait]
impl RateLimiterService for Service {
    type CheckStreamStream =
        ReceiverStream<Result<sightline_proto::ratelimiter::CheckStreamResponse, Status>>;

    async fn check(&self, _: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        self.0.calls.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(self.0.latency_ms.load(Ordering::SeqCst))).await;
        if self.0.failing.load(Ordering::SeqCst) {
            return Err(Status::internal("told to fail"));
        }
        Ok(Response::new(CheckResponse { allowed: true, ..CheckResponse::default() }))
    }

    async fn check_stream(
        &self,
        _: Request<Streaming<sightline_proto::ratelimiter::CheckStreamRequest>>,
    ) -> Result<Response<Self::CheckStreamStream>, Status> {
        Err(Status::unimplemented("only calls here"))
    }
}

/// A server on a runtime of its own, so that it can go without a word.
pub struct Replica {
    pub address: SocketAddr,
    pub mode: Arc<Mode>,
    pub lifecycle: Lifecycle,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Replica {
    pub async fn start() -> Self {
        Self::at((Ipv4Addr::LOCALHOST, 0).into()).await
    }

    pub async fn at(address: SocketAddr) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (mode, lifecycle) = (Arc::<Mode>::default(), Lifecycle::default());
        let serving = serve(address, Arc::clone(&mode), lifecycle.clone());
        let address = runtime.spawn(serving).await.unwrap();
        Self { address, mode, lifecycle, runtime: Some(runtime) }
    }

    pub fn uri(&self) -> String {
        self.address.to_string()
    }

    pub fn calls(&self) -> usize {
        self.mode.calls.load(Ordering::SeqCst)
    }

    /// Its connections break, as those of a killed process.
    pub fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn serve(address: SocketAddr, mode: Arc<Mode>, lifecycle: Lifecycle) -> SocketAddr {
    let listener = loop {
        // A port that was just left may take a moment.
        match bind("replica", address).await {
            Ok(listener) => break listener,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    let address = listener.local_addr().unwrap();
    let server = Server {
        name: "replica",
        listener,
        routes: Routes::new(RateLimiterServiceServer::new(Service(mode))),
        service_names: vec!["sightline.ratelimiter.v1.RateLimiterService"],
        web: None,
        drain_timeout: Duration::from_secs(5),
    };
    tokio::spawn(server.run(lifecycle));
    address
}

/// A replica in a process of its own: this test program, started again for the one test `name`.
pub struct Process {
    child: tokio::process::Child,
    pub uri: String,
}

/// What tells that program that it is a replica.
const REPLICA: &str = "MESH_TEST_REPLICA";

impl Process {
    pub async fn start(name: &str) -> Self {
        let mut child = tokio::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name, "--nocapture", "--test-threads=1"])
            .env(REPLICA, "1")
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = tokio::io::BufReader::new(child.stdout.take().unwrap()).lines();
        loop {
            let line = lines.next_line().await.unwrap().expect("the replica says where it listens");
            if let Some((_, uri)) = line.split_once("listens on ") {
                return Self { child, uri: uri.to_owned() };
            }
        }
    }

    pub fn signal(&self, signal: &str) {
        let id = self.child.id().unwrap().to_string();
        assert!(std::process::Command::new("kill").args([signal, &id]).status().unwrap().success());
    }
}

/// The body of the test that [`Process::start`] names: serves if this is the other program.
#[allow(clippy::print_stdout)] // how the first process hears of it
pub async fn be_a_replica() {
    if std::env::var_os(REPLICA).is_some() {
        let address = serve((Ipv4Addr::LOCALHOST, 0).into(), Arc::default(), Lifecycle::default()).await;
        println!("\nlistens on {address}");
        std::future::pending::<()>().await;
    }
}

/// Discovery by hand.
#[derive(Debug)]
pub struct ByHand(Mutex<Option<mpsc::Receiver<Answer>>>);

type Answer = Result<Vec<Address>, DiscoverError>;

impl ByHand {
    pub fn new() -> (mpsc::Sender<Answer>, Self) {
        let (send, receive) = mpsc::channel(4);
        (send, Self(Mutex::new(Some(receive))))
    }
}

impl Discover for ByHand {
    fn describe(&self) -> String {
        "by hand".into()
    }

    fn watch(&self) -> AddressStream {
        Box::pin(ReceiverStream::new(self.0.lock().unwrap().take().unwrap()))
    }
}

/// How one call ended.
#[derive(Debug)]
pub enum Asked {
    Answered,
    /// Not picked.
    Refused(RpcError),
    /// The code, and whether the call is known not to have been sent.
    Failed(tonic::Code, bool),
}

impl Asked {
    pub fn is_answered(&self) -> bool {
        matches!(self, Self::Answered)
    }
}

/// One call, tried once.
pub async fn ask(cluster: &Cluster, timeout: Duration) -> Asked {
    let picked = match cluster.pick(Pick::until(Deadline::after(timeout))).await {
        Ok(picked) => picked,
        Err(error) => return Asked::Refused(error),
    };
    let mut client = RateLimiterServiceClient::new(picked.transport().unwrap());
    let request = cluster.request(CheckRequest::default());
    match tokio::time::timeout(timeout, client.check(request)).await {
        Ok(Ok(_)) => {
            picked.done(Outcome::Success);
            Asked::Answered
        }
        Ok(Err(status)) => {
            let unsent = TransportError::of(&status).is_some_and(TransportError::is_unsent);
            picked.done(if unsent { Outcome::Cancelled } else { Outcome::Failure(status.code()) });
            Asked::Failed(status.code(), unsent)
        }
        Err(_) => {
            picked.done(Outcome::Failure(tonic::Code::DeadlineExceeded));
            Asked::Failed(tonic::Code::DeadlineExceeded, false)
        }
    }
}

/// Waits until it is so, at most `bound`; returns how long it took.
pub async fn until(what: &str, bound: Duration, so: impl Fn() -> bool) -> Duration {
    let since = tokio::time::Instant::now();
    while !so() {
        assert!(since.elapsed() < bound, "{what}: not within {bound:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    since.elapsed()
}
