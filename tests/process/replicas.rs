//! Commands that ask a service of which some replicas are dead, or die.

use std::{
    fs,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use sightline_proto::{
    ratelimiter::{
        CheckRequest, CheckResponse, CheckStreamRequest, CheckStreamResponse,
        rate_limiter_service_server::{RateLimiterService, RateLimiterServiceServer},
    },
    stats::{
        QueryRequest, QueryResponse, RecordRequest, RecordResponse,
        stats_service_server::{StatsService, StatsServiceServer},
    },
};
use sightline_servers::free_port;
use sightline_testkit::{Process, frames};
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Server, server::TcpIncoming},
};

use crate::support::{Said, sightline};

async fn run(arguments: Vec<String>) -> Said {
    let run = move || sightline(&arguments.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    tokio::task::spawn_blocking(run).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_replica_among_others_costs_a_command_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let Some(process) = Process::dev(&folder, &[]) else { return };
    let photo = folder.path().join("photo.png").display().to_string();
    fs::write(&photo, frames::png(1, 64)).unwrap();
    let dead = free_port();
    for (service, command) in [
        ("stats", &["stats", "query", "--json"][..]),
        ("classifier", &["models", "list", "--json"]),
        ("ratelimiter", &["limits", "check", "--json", "user=bob"]),
        ("ingest", &["classify", "--json", &photo]),
    ] {
        for endpoint in [
            format!("http://127.0.0.1:{dead},{}", process.uri(service)),
            format!("{},127.0.0.1:{dead}", process.uri(service)),
        ] {
            let mut arguments: Vec<String> = command.iter().map(ToString::to_string).collect();
            arguments.extend(["--endpoint".into(), endpoint.clone()]);
            let said = run(arguments).await;
            assert_eq!((said.code, said.err.as_str()), (0, ""), "{endpoint}: {said:?}");
            assert_eq!(said.lines().len(), 1, "{said:?}");
        }
    }
    let said = run(["stats", "query", "--endpoint", "dns://stats"].map(String::from).to_vec()).await;
    said.refused(&["--endpoint \"dns://stats\" is not an address", "has no port: write \"dns://name:port\""]);
}

/// Is restarting when it is asked for the first time.
#[derive(Clone, Default)]
struct Restarting(Arc<AtomicUsize>);

impl Restarting {
    fn answer<T: Default>(&self) -> Result<Response<T>, Status> {
        match self.0.fetch_add(1, Ordering::SeqCst) {
            0 => Err(Status::unavailable("restarting")),
            _ => Ok(Response::new(T::default())),
        }
    }

    /// Serves both services on a port of its own.
    async fn serve(&self) -> String {
        let incoming = TcpIncoming::bind(([127, 0, 0, 1], 0).into()).unwrap();
        let uri = format!("http://{}", incoming.local_addr().unwrap());
        let server = Server::builder()
            .add_service(StatsServiceServer::new(self.clone()))
            .add_service(RateLimiterServiceServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(incoming));
        uri
    }
}

#[tonic::async_trait]
impl StatsService for Restarting {
    type RecordStream = tokio_stream::Empty<Result<RecordResponse, Status>>;

    async fn record(
        &self,
        _: Request<Streaming<RecordRequest>>,
    ) -> Result<Response<Self::RecordStream>, Status> {
        Err(Status::unimplemented("no commands record"))
    }

    async fn query(&self, _: Request<QueryRequest>) -> Result<Response<QueryResponse>, Status> {
        self.answer()
    }
}

#[tonic::async_trait]
impl RateLimiterService for Restarting {
    type CheckStreamStream = tokio_stream::Empty<Result<CheckStreamResponse, Status>>;

    async fn check(&self, _: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        self.answer()
    }

    async fn check_stream(
        &self,
        _: Request<Streaming<CheckStreamRequest>>,
    ) -> Result<Response<Self::CheckStreamStream>, Status> {
        Err(Status::unimplemented("no commands stream"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_question_is_asked_again_and_what_costs_something_is_not() {
    if Process::binary().is_none() {
        return;
    }
    let asked = Restarting::default();
    let uri = asked.serve().await;
    let said = run(["stats", "query", "--json", "--endpoint", &uri].map(String::from).to_vec()).await;
    assert_eq!((said.code, said.err.as_str(), asked.0.load(Ordering::SeqCst)), (0, "", 2), "{said:?}");

    let checked = Restarting::default();
    let uri = checked.serve().await;
    let said = run(["limits", "check", "--endpoint", &uri, "user=bob"].map(String::from).to_vec()).await;
    said.refused(&["restarting (UNAVAILABLE)"]);
    assert_eq!(checked.0.load(Ordering::SeqCst), 1, "a check is charged each time");
}
