//! A server that does with the messages of its streams what it was told, and a pool that calls it.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use sightline_mesh::{
    RpcError,
    client::{Endpoints, Lane, Message, PoolOptions, StreamPool},
    server::{Lifecycle, Server, bind},
};
use sightline_proto::ratelimiter::{
    CheckRequest, CheckResponse, CheckStreamRequest, CheckStreamResponse, check_stream_response,
    rate_limiter_service_client::RateLimiterServiceClient,
    rate_limiter_service_server::{RateLimiterService, RateLimiterServiceServer},
};
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, service::Routes, transport::Channel};

/// What the server does with the messages of its streams.
#[derive(Debug, Clone, Copy)]
pub(super) enum Script {
    /// Answers them four by four, the last first.
    Backwards,
    /// Answers so many over all its streams, then breaks every stream it has read one from.
    BreakAfter(usize),
    /// Answers none.
    Silent,
    /// Reads nothing before the gate opens; then answers all but those of the tenant "held".
    Gated,
    /// The stream with the first message says after so long that it drains, and answers it after as long again. All
    /// else is answered at once.
    Drain(Duration),
}

#[derive(Debug, Clone)]
pub(super) struct Scripted {
    script: Script,
    pub(super) answered: Arc<AtomicUsize>,
    pub(super) read: Arc<AtomicUsize>,
    /// Messages of the tenant "held".
    pub(super) held: Arc<AtomicUsize>,
    /// Messages on a stream that drains, and such streams that the client ended.
    pub(super) late: Arc<AtomicUsize>,
    pub(super) ended: Arc<AtomicUsize>,
    pub(super) gate: CancellationToken,
    pub(super) lifecycle: Lifecycle,
}

impl Scripted {
    pub(super) fn new(script: Script) -> Self {
        Self {
            script,
            answered: Arc::default(),
            read: Arc::default(),
            held: Arc::default(),
            late: Arc::default(),
            ended: Arc::default(),
            gate: CancellationToken::new(),
            lifecycle: Lifecycle::default(),
        }
    }

    async fn read(self, mut inbound: Streaming<CheckStreamRequest>, send: Sender) {
        let mut held = Vec::new();
        loop {
            let message = tokio::select! {
                message = inbound.message() => message,
                () = self.lifecycle.draining() => return,
            };
            let Ok(Some(message)) = message else { return };
            self.read.fetch_add(1, Ordering::SeqCst);
            held.push(message);
            match self.script {
                Script::Backwards if held.len() < 4 => {}
                Script::BreakAfter(limit) if self.answered.load(Ordering::SeqCst) >= limit => return,
                Script::Backwards | Script::BreakAfter(_) => {
                    while let Some(message) = held.pop() {
                        self.answered.fetch_add(1, Ordering::SeqCst);
                        send.send(Ok(answer(&message))).await.ok();
                    }
                }
                _ => {}
            }
        }
    }

    async fn gated(self, mut inbound: Streaming<CheckStreamRequest>, send: Sender) {
        self.gate.cancelled().await;
        while let Ok(Some(message)) = inbound.message().await {
            self.read.fetch_add(1, Ordering::SeqCst);
            if message.check.as_ref().unwrap().tenant == "held" {
                self.held.fetch_add(1, Ordering::SeqCst);
            } else {
                send.send(Ok(answer(&message))).await.ok();
            }
        }
    }

    async fn drain(self, mut inbound: Streaming<CheckStreamRequest>, send: Sender, pause: Duration) {
        let mut draining = false;
        while let Ok(Some(message)) = inbound.message().await {
            if draining {
                self.late.fetch_add(1, Ordering::SeqCst);
            }
            if self.read.fetch_add(1, Ordering::SeqCst) == 0 {
                draining = true;
                tokio::time::sleep(pause).await;
                send.send(Ok(CheckStreamResponse { id: 0, result: None })).await.ok();
                tokio::time::sleep(pause).await;
            }
            send.send(Ok(answer(&message))).await.ok();
        }
        if draining {
            self.ended.fetch_add(1, Ordering::SeqCst);
        }
    }
}

type Sender = mpsc::Sender<Result<CheckStreamResponse, Status>>;

type Answers = Pin<Box<dyn Stream<Item = Result<CheckStreamResponse, Status>> + Send>>;

#[tonic::async_trait]
impl RateLimiterService for Scripted {
    type CheckStreamStream = Answers;

    async fn check(&self, _: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        Err(Status::unimplemented("only streams here"))
    }

    async fn check_stream(
        &self,
        request: Request<Streaming<CheckStreamRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let (send, receive) = mpsc::channel(64);
        let server = self.clone();
        match self.script {
            Script::Gated => drop(tokio::spawn(server.gated(request.into_inner(), send))),
            Script::Drain(pause) => drop(tokio::spawn(server.drain(request.into_inner(), send, pause))),
            _ => drop(tokio::spawn(server.read(request.into_inner(), send))),
        }
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }
}

/// An answer that carries the question's tenant, so that a mix-up shows.
fn answer(message: &CheckStreamRequest) -> CheckStreamResponse {
    let tenant = message.check.as_ref().unwrap().tenant.clone();
    let response = CheckResponse { allowed: true, refused_by: tenant, ..CheckResponse::default() };
    CheckStreamResponse { id: message.id, result: Some(check_stream_response::Result::Response(response)) }
}

pub(super) struct TestLane {
    pub(super) credits: usize,
}

impl Lane for TestLane {
    type Outbound = CheckStreamRequest;
    type Inbound = CheckStreamResponse;
    type Answer = String;

    async fn open(
        &self,
        channel: Channel,
        outbound: Request<ReceiverStream<CheckStreamRequest>>,
    ) -> Result<Response<Streaming<CheckStreamResponse>>, Status> {
        RateLimiterServiceClient::new(channel).check_stream(outbound).await
    }

    fn read(&self, inbound: CheckStreamResponse) -> Result<Message<String>, RpcError> {
        match inbound.result {
            Some(check_stream_response::Result::Response(response)) => {
                Ok(Message::Answer(inbound.id, response.refused_by))
            }
            None => Ok(Message::Drain),
            _ => Err(RpcError::internal("no response")),
        }
    }

    fn initial_credits(&self) -> usize {
        self.credits
    }
}

pub(super) async fn serve(script: Script) -> (String, Scripted) {
    let listener = bind("test", ([127, 0, 0, 1], 0).into()).await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    let service = Scripted::new(script);
    let server = Server {
        name: "scripted",
        listener,
        routes: Routes::new(RateLimiterServiceServer::new(service.clone())),
        service_names: vec!["sightline.ratelimiter.v1.RateLimiterService"],
        web: None,
        drain_timeout: Duration::from_millis(100),
    };
    tokio::spawn(server.run(service.lifecycle.clone()));
    (uri, service)
}

pub(super) fn pool(uris: &[String], credits: usize) -> StreamPool<TestLane> {
    pool_with(uris, credits, PoolOptions::default())
}

pub(super) fn pool_with(uris: &[String], credits: usize, options: PoolOptions) -> StreamPool<TestLane> {
    let endpoints = Endpoints::new("scripted", uris, &HashMap::new()).unwrap();
    StreamPool::start(TestLane { credits }, endpoints, options)
}

pub(super) fn ask(tenant: String) -> impl Fn(u64) -> CheckStreamRequest + Send {
    move |id| CheckStreamRequest {
        id,
        check: Some(CheckRequest { tenant: tenant.clone(), ..CheckRequest::default() }),
        ..CheckStreamRequest::default()
    }
}
