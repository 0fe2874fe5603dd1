//! The stream pool against a scripted server over real sockets.

#![allow(clippy::unwrap_used)] // helpers of tests: a panic is a failed test

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
    Deadline, RpcError,
    client::{Endpoints, Lane, Message, PoolOptions, StreamPool},
    reason,
    server::{Lifecycle, Server, bind},
};
use sightline_proto::ratelimiter::{
    CheckRequest, CheckResponse, CheckStreamRequest, CheckStreamResponse, check_stream_response,
    rate_limiter_service_client::RateLimiterServiceClient,
    rate_limiter_service_server::{RateLimiterService, RateLimiterServiceServer},
};
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming, service::Routes, transport::Channel};

/// What the server does with the messages of its streams.
#[derive(Debug, Clone, Copy)]
enum Script {
    /// Answers them four by four, the last first.
    Backwards,
    /// Answers so many over all its streams, then breaks every stream it has read one from.
    BreakAfter(usize),
    /// Answers none.
    Silent,
}

#[derive(Debug, Clone)]
struct Scripted {
    script: Script,
    answered: Arc<AtomicUsize>,
    read: Arc<AtomicUsize>,
    lifecycle: Lifecycle,
}

impl Scripted {
    fn new(script: Script) -> Self {
        Self { script, answered: Arc::default(), read: Arc::default(), lifecycle: Lifecycle::default() }
    }
}

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
        tokio::spawn(async move {
            let mut inbound = request.into_inner();
            let mut held = Vec::new();
            loop {
                let message = tokio::select! {
                    message = inbound.message() => message,
                    () = server.lifecycle.draining() => return,
                };
                let Ok(Some(message)) = message else { return };
                server.read.fetch_add(1, Ordering::SeqCst);
                held.push(message);
                match server.script {
                    Script::Silent => {}
                    Script::Backwards if held.len() < 4 => {}
                    Script::BreakAfter(limit) if server.answered.load(Ordering::SeqCst) >= limit => return,
                    _ => {
                        while let Some(message) = held.pop() {
                            server.answered.fetch_add(1, Ordering::SeqCst);
                            send.send(Ok(answer(&message))).await.ok();
                        }
                    }
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receive))))
    }
}

/// An answer that carries the question's tenant, so that a mix-up shows.
fn answer(message: &CheckStreamRequest) -> CheckStreamResponse {
    let tenant = message.check.as_ref().unwrap().tenant.clone();
    let response = CheckResponse { allowed: true, refused_by: tenant, ..CheckResponse::default() };
    CheckStreamResponse { id: message.id, result: Some(check_stream_response::Result::Response(response)) }
}

struct TestLane {
    credits: usize,
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
            _ => Err(RpcError::internal("no response")),
        }
    }

    fn initial_credits(&self) -> usize {
        self.credits
    }
}

async fn serve(script: Script) -> (String, Scripted) {
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

fn pool(uris: &[String], credits: usize) -> StreamPool<TestLane> {
    let endpoints = Endpoints::new("scripted", uris, &HashMap::new()).unwrap();
    StreamPool::start(TestLane { credits }, endpoints, PoolOptions::default())
}

fn ask(tenant: String) -> impl Fn(u64) -> CheckStreamRequest + Send {
    move |id| CheckStreamRequest {
        id,
        check: Some(CheckRequest { tenant: tenant.clone(), ..CheckRequest::default() }),
    }
}

const LONG: Duration = Duration::from_secs(20);

async fn ask_many(pool: &StreamPool<TestLane>, count: usize) -> Vec<Result<bool, RpcError>> {
    let calls: Vec<_> = (0..count)
        .map(|n| {
            let pool = pool.clone();
            tokio::spawn(async move {
                let name = format!("question-{n}");
                let answer = pool.call(Deadline::after(LONG), ask(name.clone())).await?;
                Ok(answer == name)
            })
        })
        .collect();
    let mut outcomes = Vec::new();
    for call in calls {
        outcomes.push(call.await.unwrap());
    }
    outcomes
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_find_their_callers_in_any_order() {
    let (uri, _) = serve(Script::Backwards).await;
    let outcomes = ask_many(&pool(&[uri], 64), 400).await;
    assert!(outcomes.into_iter().all(|outcome| outcome == Ok(true)));
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_a_broken_stream_move_to_another_replica() {
    let (bad, broken) = serve(Script::BreakAfter(10)).await;
    let (good, healthy) = serve(Script::BreakAfter(usize::MAX)).await;
    let pool = pool(&[bad, good], 4);
    while pool.open_streams() < 2 {
        tokio::task::yield_now().await;
    }
    let outcomes = ask_many(&pool, 200).await;
    // A message may meet the broken replica on each of its attempts; it then fails as UNAVAILABLE, never silently.
    let failed: Vec<_> = outcomes.iter().filter(|outcome| **outcome != Ok(true)).collect();
    assert!(
        failed
            .iter()
            .all(|outcome| matches!(outcome, Err(error) if error.reason == reason::SERVICE_UNAVAILABLE))
    );
    assert!(failed.len() <= 20, "{failed:?}");
    assert!(broken.answered.load(Ordering::SeqCst) >= 10);
    assert!(healthy.answered.load(Ordering::SeqCst) >= 160);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_messages_are_unanswered_than_there_are_credits() {
    let (uri, server) = serve(Script::Silent).await;
    let pool = pool(&[uri], 3);
    let calls: Vec<_> = (0..10)
        .map(|n| {
            let pool = pool.clone();
            let soon = Deadline::after(Duration::from_millis(300));
            tokio::spawn(async move { pool.call(soon, ask(n.to_string())).await })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap_err().reason, reason::DEADLINE_EXCEEDED);
    }
    assert_eq!(server.read.load(Ordering::SeqCst), 3, "credits come back with answers, not with impatience");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_no_replica_the_caller_hears_so_within_its_patience() {
    let endpoints = Endpoints::new("scripted", &["127.0.0.1:9".into()], &HashMap::new()).unwrap();
    let options = PoolOptions { patience: Duration::from_millis(50), ..PoolOptions::default() };
    let pool = StreamPool::start(TestLane { credits: 1 }, endpoints, options);
    let error = pool.call(Deadline::after(LONG), ask("x".into())).await.unwrap_err();
    assert_eq!(
        (error.reason.as_str(), error.message.as_str()),
        (reason::SERVICE_UNAVAILABLE, "no replica of scripted can be reached")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_comes_back_is_found_again() {
    let (uri, first) = serve(Script::BreakAfter(usize::MAX)).await;
    let pool = pool(std::slice::from_ref(&uri), 8);
    assert!(ask_many(&pool, 8).await.into_iter().all(|outcome| outcome == Ok(true)));
    first.lifecycle.drain();
    // Its listener closes and its streams end; then the same address serves again.
    let address = uri.trim_start_matches("http://").parse().unwrap();
    let listener = loop {
        match bind("test", address).await {
            Ok(listener) => break listener,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let service = Scripted::new(Script::BreakAfter(usize::MAX));
    let server = Server {
        name: "scripted",
        listener,
        routes: Routes::new(RateLimiterServiceServer::new(service.clone())),
        service_names: vec![],
        web: None,
        drain_timeout: LONG,
    };
    tokio::spawn(server.run(Lifecycle::default()));
    while service.answered.load(Ordering::SeqCst) == 0 {
        pool.call(Deadline::after(Duration::from_secs(5)), ask("again".into())).await.ok();
    }
}
