//! Delivery to a statistics server over a real socket.

use std::{pin::Pin, sync::Mutex};

use sightline_mesh::{
    client::{Cluster, ClusterOptions, Fixed, PoolOptions},
    server::{Lifecycle, Server, bind},
};
use sightline_proto::stats::{
    QueryRequest, QueryResponse,
    stats_service_server::{StatsService, StatsServiceServer},
};
use tokio_stream::{Stream, StreamExt};
use tonic::service::Routes;

use super::*;

/// A server that knows nothing of credits. It acknowledges events, but refuses every batch that has the user "bad" in it with `code`, at most `times` times.
#[derive(Clone)]
struct Strict {
    code: Code,
    times: Arc<AtomicUsize>,
    stored: Arc<Mutex<Vec<String>>>,
}

impl Strict {
    fn answer(&self, request: RecordRequest) -> RecordResponse {
        let bad = request.events.iter().any(|event| event.user_id == "bad");
        let left = |times: usize| times.checked_sub(1);
        let result = if bad && self.times.fetch_update(Ordering::SeqCst, Ordering::SeqCst, left).is_ok() {
            Outcome::Error(RpcError::new(self.code, "REFUSED", "refused in a test").into())
        } else {
            let ids = request.events.into_iter().map(|event| event.event_id);
            self.stored.lock().unwrap().extend(ids);
            Outcome::Acknowledged(Acknowledged::default())
        };
        RecordResponse { id: request.id, result: Some(result), load: None }
    }
}

#[tonic::async_trait]
impl StatsService for Strict {
    type RecordStream = Pin<Box<dyn Stream<Item = Result<RecordResponse, Status>> + Send>>;

    async fn record(
        &self,
        request: Request<Streaming<RecordRequest>>,
    ) -> Result<Response<Self::RecordStream>, Status> {
        let strict = self.clone();
        Ok(Response::new(Box::pin(request.into_inner().map(move |batch| Ok(strict.answer(batch?))))))
    }

    async fn query(&self, _: Request<QueryRequest>) -> Result<Response<QueryResponse>, Status> {
        Err(Status::unimplemented("only records here"))
    }
}

/// What is stored of eight events, the sixth of them bad.
async fn delivered(code: Code, times: usize) -> Vec<String> {
    let stored = Arc::default();
    let strict = Strict { code, times: Arc::new(AtomicUsize::new(times)), stored: Arc::clone(&stored) };
    let listener = bind("test", ([127, 0, 0, 1], 0).into()).await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    let server = Server {
        name: "strict",
        listener,
        routes: Routes::new(StatsServiceServer::new(strict)),
        service_names: vec![],
        web: None,
        drain_timeout: Duration::from_millis(100),
    };
    tokio::spawn(server.run(Lifecycle::default()));
    let cluster = Cluster::start(ClusterOptions::new("stats", Fixed::from_uris("stats", &[uri]).unwrap()));
    let pool = StreamPool::start(RecordLane, cluster, PoolOptions::default());
    let event = |n: usize| Event {
        event_id: n.to_string(),
        user_id: if n == 5 { "bad".into() } else { "good".into() },
        ..Event::default()
    };
    let delivery = deliver(&pool, (0..8).map(event).collect());
    tokio::time::timeout(Duration::from_secs(10), delivery).await.expect("the batch is let go of");
    let mut stored: Vec<String> = stored.lock().unwrap().clone();
    stored.sort();
    stored
}

#[tokio::test]
async fn an_event_refused_for_good_costs_only_itself_whatever_the_code() {
    for code in [Code::InvalidArgument, Code::PermissionDenied, Code::OutOfRange, Code::Unimplemented] {
        assert_eq!(delivered(code, usize::MAX).await, ["0", "1", "2", "3", "4", "6", "7"], "{code:?}");
    }
}

#[tokio::test]
async fn what_may_pass_later_is_sent_until_it_does() {
    for code in [Code::Unavailable, Code::ResourceExhausted, Code::Internal] {
        assert_eq!(delivered(code, 2).await, ["0", "1", "2", "3", "4", "5", "6", "7"], "{code:?}");
    }
}
