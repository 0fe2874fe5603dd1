//! Replicas that do with the messages of their streams what they are told, each on a thread and a runtime of its own, so that
//! one can be stopped or killed like a process; and pools that call them.
#![allow(dead_code)] // each test uses a part of it

use std::{
    collections::HashMap,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt;
use sightline_mesh::{
    RpcError,
    client::{Answered, Cluster, ClusterOptions, Fixed, Lane, Message, PoolOptions, StreamPool, Transport},
    server::{Lifecycle, Server, bind},
    stream::{StreamDrain, draining},
};
use sightline_proto::{
    ratelimiter::{
        CheckRequest, CheckResponse, CheckStreamRequest, CheckStreamResponse,
        check_stream_response::Result as Answer,
        rate_limiter_service_client::RateLimiterServiceClient,
        rate_limiter_service_server::{RateLimiterService, RateLimiterServiceServer},
    },
    stream::{Credits, Drain, Hello, Load},
};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Code, Request, Response, Status, Streaming, service::Routes};

/// What a replica does, to be changed at any time, and what it has seen.
#[derive(Debug, Default)]
pub(super) struct Script {
    /// How long an answer takes.
    pub(super) delay_ms: AtomicU64,
    /// What each stream is granted.
    pub(super) credits: AtomicU32,
    /// The occupancy it reports, in percent.
    pub(super) percent: AtomicU32,
    /// Messages are refused for lack of room.
    pub(super) full: AtomicBool,
    /// Messages are answered by an error that is the replica's own.
    pub(super) fails: AtomicBool,
    /// Breaks every stream instead of answering.
    pub(super) breaks: AtomicBool,
    /// Says on every stream that it drains. So it does when the server stops, or the connection is to be replaced.
    pub(super) drain: Notify,
    /// Reads nothing after such a notice, and ends the stream when what it had read is answered.
    pub(super) leaves: AtomicBool,
    /// How often each message was acted on.
    pub(super) acted: Mutex<HashMap<String, usize>>,
    /// Messages that came after a notice, and were refused.
    pub(super) late: AtomicUsize,
    /// Messages read beyond the credits of their stream.
    pub(super) greedy: AtomicUsize,
    /// Streams opened, and of them those that are open.
    pub(super) opened: AtomicUsize,
    pub(super) open: AtomicUsize,
}

impl Script {
    pub(super) fn slow(&self, delay: Duration) {
        self.delay_ms.store(delay.as_millis() as u64, Ordering::SeqCst);
    }

    /// Messages acted on.
    pub(super) fn count(&self) -> usize {
        self.acted.lock().unwrap().len()
    }

    async fn serve(
        self: Arc<Self>,
        mut inbound: Streaming<CheckStreamRequest>,
        send: Sender,
        connection: StreamDrain,
    ) {
        self.opened.fetch_add(1, Ordering::SeqCst);
        self.open.fetch_add(1, Ordering::SeqCst);
        let _open = Closing(Arc::clone(&self));
        let unanswered = Arc::new(AtomicU32::new(0));
        let mut drains = false;
        let told = self.drain.notified();
        let drain = async {
            tokio::select! {
                () = told => {}
                () = connection.drained() => {}
            }
        };
        tokio::pin!(drain);
        loop {
            let message = tokio::select! {
                () = &mut drain, if !drains => {
                    drains = true;
                    say(&send, 0, Answer::Drain(Drain::default())).await;
                    if self.leaves.load(Ordering::SeqCst) {
                        return;
                    }
                    continue;
                }
                message = inbound.message() => message,
            };
            let Ok(Some(message)) = message else { return };
            if message.hello.is_some() {
                let granted = self.credits.load(Ordering::SeqCst);
                say(&send, 0, Answer::Credits(Credits { granted })).await;
                continue;
            }
            if unanswered.fetch_add(1, Ordering::SeqCst) >= self.credits.load(Ordering::SeqCst) {
                self.greedy.fetch_add(1, Ordering::SeqCst);
            }
            if drains {
                self.late.fetch_add(1, Ordering::SeqCst);
                unanswered.fetch_sub(1, Ordering::SeqCst);
                say(&send, message.id, Answer::Error(draining().into())).await;
                continue;
            }
            let (script, send, unanswered) = (Arc::clone(&self), send.clone(), Arc::clone(&unanswered));
            tokio::spawn(async move { script.answer(message, send, &unanswered).await });
        }
    }

    fn delay(&self) -> Duration {
        Duration::from_millis(self.delay_ms.load(Ordering::SeqCst))
    }

    /// Acts on a message unless there is no room, and then breaks if it is told to.
    fn act(&self, name: &str) -> Result<(), RpcError> {
        if self.full.load(Ordering::SeqCst) {
            return Err(RpcError::new(Code::ResourceExhausted, "FULL", "no room"));
        }
        *self.acted.lock().unwrap().entry(name.to_owned()).or_default() += 1;
        match self.breaks.load(Ordering::SeqCst) {
            true => Err(RpcError::unavailable("broken in a test")),
            false => Ok(()),
        }
    }

    async fn answer(&self, message: CheckStreamRequest, send: Sender, unanswered: &AtomicU32) {
        let name = message.check.unwrap().tenant;
        match self.act(&name) {
            Ok(()) => {}
            Err(refused) if refused.code == Code::ResourceExhausted => {
                unanswered.fetch_sub(1, Ordering::SeqCst);
                return say(&send, message.id, Answer::Error(refused.into())).await;
            }
            Err(broken) => return drop(send.send(Err(broken.into())).await),
        }
        if self.fails.load(Ordering::SeqCst) {
            unanswered.fetch_sub(1, Ordering::SeqCst);
            let error = RpcError::internal("broken in a test");
            return say(&send, message.id, Answer::Error(error.into())).await;
        }
        tokio::time::sleep(self.delay()).await;
        unanswered.fetch_sub(1, Ordering::SeqCst);
        // The question's tenant, so that a mix-up shows.
        let response = CheckResponse { allowed: true, refused_by: name, ..CheckResponse::default() };
        let occupancy = self.percent.load(Ordering::SeqCst) as f32 / 100.0;
        let load = Some(Load { queue_delay: None, occupancy });
        let answer = CheckStreamResponse { id: message.id, result: Some(Answer::Response(response)), load };
        send.send(Ok(answer)).await.ok();
    }
}

struct Closing(Arc<Script>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

type Sender = mpsc::Sender<Result<CheckStreamResponse, Status>>;

async fn say(send: &Sender, id: u64, result: Answer) {
    send.send(Ok(CheckStreamResponse { id, result: Some(result), load: None })).await.ok();
}

pub(super) struct Scripted(pub(super) Arc<Script>);

#[tonic::async_trait]
impl RateLimiterService for Scripted {
    type CheckStreamStream = Pin<Box<dyn Stream<Item = Result<CheckStreamResponse, Status>> + Send>>;

    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let name = request.into_inner().tenant;
        self.0.act(&name)?;
        tokio::time::sleep(self.0.delay()).await;
        Ok(Response::new(CheckResponse { allowed: true, refused_by: name, ..CheckResponse::default() }))
    }

    async fn check_stream(
        &self,
        request: Request<Streaming<CheckStreamRequest>>,
    ) -> Result<Response<Self::CheckStreamStream>, Status> {
        let (send, receive) = mpsc::channel(1024);
        let drain = StreamDrain::new(Lifecycle::default(), request.extensions());
        tokio::spawn(Arc::clone(&self.0).serve(request.into_inner(), send, drain));
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }
}

/// A server in a thread.
pub(super) struct Replica {
    pub(super) address: SocketAddr,
    pub(super) script: Arc<Script>,
    /// Set, the thread stands still.
    stopped: Arc<(Mutex<bool>, Condvar)>,
    /// Dropped, the thread ends and with it every connection, without a word.
    alive: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Replica {
    /// Grants 64 credits a stream and answers at once.
    pub(super) fn start() -> Self {
        Self::start_on(([127, 0, 0, 1], 0).into(), Arc::default())
    }

    /// The same at an address that was used before.
    pub(super) fn start_on(address: SocketAddr, script: Arc<Script>) -> Self {
        script.credits.store(64, Ordering::SeqCst);
        let (alive, killed) = oneshot::channel();
        let stopped = Arc::<(Mutex<bool>, Condvar)>::default();
        let (bound, ready) = std::sync::mpsc::sync_channel(1);
        let (here, stop) = (Arc::clone(&script), Arc::clone(&stopped));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = bind("test", address).await.unwrap();
                bound.send(listener.local_addr().unwrap()).unwrap();
                let server = Server {
                    name: "scripted",
                    listener,
                    routes: Routes::new(RateLimiterServiceServer::new(Scripted(here))),
                    service_names: vec!["sightline.ratelimiter.v1.RateLimiterService"],
                    web: None,
                    drain_timeout: Duration::from_millis(100),
                };
                let stands_still = async {
                    loop {
                        tokio::time::sleep(Duration::from_millis(1)).await;
                        let (stopped, changed) = &*stop;
                        drop(changed.wait_while(stopped.lock().unwrap(), |stopped| *stopped).unwrap());
                    }
                };
                tokio::select! {
                    _ = server.run(Lifecycle::default()) => {}
                    _ = killed => {}
                    () = stands_still => {}
                }
            });
            runtime.shutdown_background();
        });
        let address = ready.recv().unwrap();
        Self { address, script, stopped, alive: Some(alive), thread: Some(thread) }
    }

    /// As SIGSTOP does: connections stay, nothing is read or said.
    pub(super) fn stop(&self) {
        *self.stopped.0.lock().unwrap() = true;
    }

    /// As SIGKILL does.
    pub(super) fn kill(&mut self) {
        drop(self.alive.take());
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        *self.stopped.0.lock().unwrap() = false;
        self.stopped.1.notify_all();
        self.kill();
    }
}

/// Asks as ingest asks the rate limiter.
pub(super) struct TestLane {
    pub(super) repeatable: bool,
}

impl Lane for TestLane {
    type Outbound = CheckStreamRequest;
    type Inbound = CheckStreamResponse;
    type Answer = String;

    async fn open(
        &self,
        transport: Transport,
        outbound: Request<ReceiverStream<CheckStreamRequest>>,
    ) -> Result<Response<Streaming<CheckStreamResponse>>, Status> {
        RateLimiterServiceClient::new(transport).check_stream(outbound).await
    }

    fn read(&self, inbound: CheckStreamResponse) -> Result<Message<String>, RpcError> {
        let message = match inbound.result {
            Some(Answer::Credits(credits)) => Message::Credits(credits.granted as usize),
            Some(Answer::Drain(_)) => Message::Drain,
            Some(Answer::Response(response)) => {
                return Ok(match Message::of_item(inbound.id, Ok(response.refused_by), inbound.load) {
                    Message::Answer(Answered { id, answer, code, load }) => {
                        Message::Answer(Answered { id, answer: answer.unwrap(), code, load })
                    }
                    other => panic!("{other:?}"),
                });
            }
            Some(Answer::Error(error)) => {
                match Message::<Result<String, _>>::of_item(inbound.id, Err(error), None) {
                    Message::Refused(refused) => Message::Refused(refused),
                    Message::Answer(Answered { id, answer, code, load }) => {
                        let answer = answer.unwrap_err().reason;
                        Message::Answer(Answered { id, answer, code, load })
                    }
                    other => panic!("{other:?}"),
                }
            }
            None => return Err(RpcError::internal("an empty message")),
        };
        Ok(message)
    }

    fn repeatable(&self) -> bool {
        self.repeatable
    }

    fn hello(&self) -> Option<CheckStreamRequest> {
        Some(CheckStreamRequest { hello: Some(Hello {}), ..CheckStreamRequest::default() })
    }
}

/// The same, whose first stream takes nothing after the hello, though the server grants credits on it and it goes on.
pub(super) struct DeafAtFirst {
    pub(super) lane: TestLane,
    pub(super) opened: AtomicBool,
}

impl Lane for DeafAtFirst {
    type Outbound = CheckStreamRequest;
    type Inbound = CheckStreamResponse;
    type Answer = String;

    async fn open(
        &self,
        transport: Transport,
        outbound: Request<ReceiverStream<CheckStreamRequest>>,
    ) -> Result<Response<Streaming<CheckStreamResponse>>, Status> {
        if self.opened.swap(true, Ordering::SeqCst) {
            return self.lane.open(transport, outbound).await;
        }
        let outbound = outbound.map(|mut messages| {
            // The receiver is dropped with the first message.
            let hello = async move { messages.next().await.unwrap() };
            futures_util::stream::once(hello).chain(futures_util::stream::pending())
        });
        RateLimiterServiceClient::new(transport).check_stream(outbound).await
    }

    fn read(&self, inbound: CheckStreamResponse) -> Result<Message<String>, RpcError> {
        self.lane.read(inbound)
    }

    fn repeatable(&self) -> bool {
        self.lane.repeatable()
    }

    fn hello(&self) -> Option<CheckStreamRequest> {
        self.lane.hello()
    }
}

/// A cluster of these replicas.
pub(super) fn cluster(replicas: &[&Replica]) -> Cluster {
    let uris: Vec<String> = replicas.iter().map(|replica| replica.address.to_string()).collect();
    Cluster::start(ClusterOptions::new("scripted", Fixed::from_uris("scripted", &uris).unwrap()))
}

/// A pool that has a stream with credits to each of these replicas.
pub(super) async fn pool_with(
    replicas: &[&Replica],
    repeatable: bool,
    options: PoolOptions,
) -> StreamPool<TestLane> {
    let pool = StreamPool::start(TestLane { repeatable }, cluster(replicas), options);
    let ready = async {
        while pool.snapshot().streams.iter().filter(|streams| streams.credits > 0).count() < replicas.len() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), ready).await.expect("streams open");
    pool
}

pub(super) async fn pool(replicas: &[&Replica]) -> StreamPool<TestLane> {
    pool_with(replicas, true, PoolOptions::default()).await
}

pub(super) fn ask(tenant: String) -> impl Fn(u64) -> CheckStreamRequest + Send {
    move |id| CheckStreamRequest {
        id,
        check: Some(CheckRequest { tenant: tenant.clone(), ..CheckRequest::default() }),
        ..CheckStreamRequest::default()
    }
}
