//! The service behind a real port, through the mesh's server and the generated client.

#![allow(clippy::unwrap_used)] // helpers of tests: a panic is a failed test

use std::{
    collections::HashMap,
    time::{Duration, SystemTime},
};

use futures_util::StreamExt;
use sightline_mesh::{
    RpcError,
    server::{Lifecycle, Server},
};
use sightline_proto::{
    stats::{
        Bucket, Event, GroupBy, QueryRequest, RecordRequest, RecordResponse,
        record_response::Result as Outcome, stats_service_client::StatsServiceClient,
        stats_service_server::StatsServiceServer,
    },
    verdict::Level,
};
use sightline_stats::{MAX_REQUEST_BYTES, StatsConfig, build};
use sightline_telemetry::dependencies::Dependencies;
use tempfile::TempDir;
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code, Streaming,
    service::Routes,
    transport::{Channel, Endpoint},
};
use uuid::Uuid;

struct Running {
    client: StatsServiceClient<Channel>,
    lifecycle: Lifecycle,
    served: JoinHandle<()>,
    folder: TempDir,
}

async fn start(config: StatsConfig) -> Running {
    let folder = tempfile::tempdir().unwrap();
    let lifecycle = Lifecycle::default();
    let stats = build(&config, folder.path(), lifecycle.clone(), &Dependencies::default()).await.unwrap();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let service = StatsServiceServer::new(stats.service()).max_decoding_message_size(MAX_REQUEST_BYTES);
    let server = Server {
        name: "stats",
        listener,
        routes: Routes::new(service),
        service_names: vec!["sightline.stats.v1.StatsService"],
        web: None,
        drain_timeout: config.drain_timeout.0,
    };
    let life = lifecycle.clone();
    let served = tokio::spawn(async move {
        server.run(life).await.unwrap();
        stats.close().await;
    });
    let channel = Endpoint::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    let client = StatsServiceClient::new(channel);
    Running { client, lifecycle, served, folder }
}

fn now() -> Option<prost_types::Timestamp> {
    Some(SystemTime::now().into())
}

fn event(n: usize) -> Event {
    Event {
        event_id: Uuid::from_u128(n as u128 + 1).to_string(),
        occurred_at: now(),
        user_id: format!("user-{}", n % 97),
        application: format!("app-{}", n % 3),
        level: (n % 5) as i32 + 1,
        source: (n % 2) as i32 + 1,
        model: "test@1".into(),
        ..Event::default()
    }
}

struct Stream {
    requests: mpsc::Sender<RecordRequest>,
    answers: Streaming<RecordResponse>,
}

async fn record(client: &mut StatsServiceClient<Channel>) -> Stream {
    let (requests, outbound) = mpsc::channel(256);
    let answers = client.record(ReceiverStream::new(outbound)).await.unwrap().into_inner();
    Stream { requests, answers }
}

impl Stream {
    /// Sends one batch and waits for its answer.
    async fn ask(&mut self, id: u64, events: Vec<Event>) -> Result<(u32, u32), RpcError> {
        self.requests.send(RecordRequest { id, events, hello: None }).await.unwrap();
        let answer = self.answers.next().await.unwrap().unwrap();
        assert_eq!(answer.id, id);
        outcome(answer)
    }
}

fn outcome(answer: RecordResponse) -> Result<(u32, u32), RpcError> {
    match answer.result.unwrap() {
        Outcome::Acknowledged(acknowledged) => Ok((acknowledged.stored, acknowledged.duplicates)),
        Outcome::Error(error) => Err(error.into()),
        other => panic!("nobody said hello: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_batches_with_redelivery_counts_every_event_once() {
    let mut running = start(StatsConfig::default()).await;
    let mut stream = record(&mut running.client).await;
    let events: Vec<Event> = (0..5_000).map(event).collect();
    // 100 batches of 50 and every third of them again, all in flight at once.
    let mut batches: HashMap<u64, &[Event]> = HashMap::new();
    for (n, batch) in events.chunks(50).enumerate() {
        batches.insert(n as u64, batch);
        if n % 3 == 0 {
            batches.insert(1_000 + n as u64, batch);
        }
    }
    for (&id, batch) in &batches {
        stream.requests.send(RecordRequest { id, events: batch.to_vec(), hello: None }).await.unwrap();
    }
    drop(stream.requests);
    let (mut stored, mut duplicates) = (0, 0);
    while let Some(answer) = stream.answers.next().await {
        let answer = answer.unwrap();
        assert!(batches.remove(&answer.id).is_some(), "answered twice: {}", answer.id);
        let (new, old) = outcome(answer).unwrap();
        stored += new;
        duplicates += old;
    }
    assert!(batches.is_empty(), "unanswered: {:?}", batches.keys());
    assert_eq!((stored, duplicates), (5_000, 34 * 50));

    let mut request = QueryRequest {
        bucket: Bucket::Day.into(),
        group_by: vec![GroupBy::User.into(), GroupBy::Level.into()],
        page_size: 100,
        ..QueryRequest::default()
    };
    let (mut frames, mut rows, mut pages) = (0, 0, 0);
    loop {
        let page = running.client.query(request.clone()).await.unwrap().into_inner();
        frames += page.rows.iter().map(|row| row.frames).sum::<u64>();
        rows += page.rows.len();
        pages += 1;
        assert!(page.rows.iter().all(|row| row.bucket_start.unwrap().seconds % 86_400 == 0));
        assert!(page.rows.iter().all(|row| row.application.is_empty() && row.source == 0));
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    assert_eq!(frames, 5_000);
    // 97 users by 5 levels; twice that if midnight passed meanwhile.
    assert!(rows == 485 || pages > 5, "{rows} rows on {pages} pages");

    let severe = QueryRequest {
        levels: vec![Level::Severe.into()],
        applications: vec!["app-1".into()],
        ..QueryRequest::default()
    };
    let total = running.client.query(severe).await.unwrap().into_inner();
    let expected = (0..5_000).filter(|n| n % 5 == 4 && n % 3 == 1).count() as u64;
    assert_eq!(total.rows.iter().map(|row| row.frames).collect::<Vec<_>>(), [expected]);
}

#[tokio::test]
async fn a_bad_batch_is_refused_by_field_and_the_stream_goes_on() {
    let config = StatsConfig { max_batch_events: 10, ..StatsConfig::default() };
    let mut running = start(config).await;
    let mut stream = record(&mut running.client).await;
    let with = |change: &dyn Fn(&mut Event)| {
        let mut events: Vec<Event> = (0..5).map(event).collect();
        change(&mut events[3]);
        events
    };
    let seconds = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
    let cases: Vec<(Vec<Event>, &str, &str)> = vec![
        ((0..11).map(event).collect(), "BATCH_TOO_LARGE", "events: 11 events; a batch holds at most 10"),
        (with(&|e| e.event_id = "no".into()), "EVENT_ID_INVALID", "events[3].event_id is not a UUID"),
        (with(&|e| e.event_id = Uuid::nil().into()), "EVENT_ID_INVALID", "events[3].event_id is not a UUID"),
        (with(&|e| e.user_id.clear()), "EVENT_USER_MISSING", "events[3].user_id is empty"),
        (with(&|e| e.level = 0), "EVENT_LEVEL_INVALID", "events[3].level is unset or unknown (0)"),
        (with(&|e| e.level = 6), "EVENT_LEVEL_INVALID", "events[3].level is unset or unknown (6)"),
        (with(&|e| e.source = 0), "EVENT_SOURCE_INVALID", "events[3].source is unset or out of range (0)"),
        (
            with(&|e| e.application = "x".repeat(129)),
            "FIELD_TOO_LONG",
            "events[3].application has 129 characters; at most 128 are allowed",
        ),
        (
            with(&|e| e.device_id = "x".repeat(500)),
            "FIELD_TOO_LONG",
            "events[3].device_id has 500 characters; at most 128 are allowed",
        ),
        (with(&|e| e.occurred_at = None), "EVENT_TIME_INVALID", "events[3].occurred_at is unset"),
        (
            with(&|e| e.occurred_at = seconds(i64::MIN)),
            "EVENT_TIME_INVALID",
            "events[3].occurred_at is not a valid timestamp after 1970",
        ),
        (
            with(&|e| e.occurred_at = seconds(i64::MAX)),
            "EVENT_TIME_INVALID",
            "events[3].occurred_at lies more than an hour in the future",
        ),
        (
            with(&|e| e.occurred_at = seconds(1_500_000_000)),
            "EVENT_TOO_OLD",
            "events[3].occurred_at is older than the event ids that are remembered (`stats.dedupe_window`): \
             it could count twice",
        ),
    ];
    for (id, (events, reason, message)) in cases.into_iter().enumerate() {
        let error = stream.ask(id as u64, events).await.unwrap_err();
        assert_eq!((error.code, error.reason.as_str()), (Code::InvalidArgument, reason), "{message}");
        assert_eq!(error.message, message);
    }
    assert_eq!(stream.ask(100, (0..5).map(event).collect()).await, Ok((5, 0)), "nothing was stored before");
    assert_eq!(stream.ask(101, vec![]).await, Ok((0, 0)));
}

#[tokio::test]
async fn a_bad_query_is_refused_by_field() {
    let mut running = start(StatsConfig::default()).await;
    let mut stream = record(&mut running.client).await;
    stream.ask(1, (0..100).map(event).collect()).await.unwrap();
    let by_user = QueryRequest { group_by: vec![1], page_size: 10, ..QueryRequest::default() };
    let page_token = running.client.query(by_user.clone()).await.unwrap().into_inner().next_page_token;
    let seconds = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
    let plain = QueryRequest::default;
    let other_request = "page_token is not from an answer to this request: the rest of the request must be the same as before";
    let cases = [
        (
            QueryRequest { page_size: 10_001, ..plain() },
            "PAGE_SIZE_TOO_LARGE",
            "page_size: 10001 is more than 10000",
        ),
        (
            QueryRequest { page_token: "zz".into(), ..plain() },
            "PAGE_TOKEN_INVALID",
            "page_token is not from an answer to this request: it cannot be read",
        ),
        (
            QueryRequest { page_token, user_ids: vec!["user-1".into()], ..by_user },
            "PAGE_TOKEN_INVALID",
            other_request,
        ),
        (QueryRequest { bucket: 9, ..plain() }, "BUCKET_INVALID", "bucket: 9 is unknown"),
        (
            QueryRequest { group_by: vec![1, 0], ..plain() },
            "GROUP_BY_INVALID",
            "group_by[1]: 0 is unset or unknown",
        ),
        (QueryRequest { levels: vec![7], ..plain() }, "LEVEL_INVALID", "levels[0]: 7 is unset or unknown"),
        (
            QueryRequest { from: seconds(-1), ..plain() },
            "TIME_INVALID",
            "from is not a valid timestamp after 1970",
        ),
        (
            QueryRequest { from: seconds(7200), to: seconds(3600), ..plain() },
            "TIME_RANGE_EMPTY",
            "from must be before to",
        ),
        (
            QueryRequest { user_ids: vec!["u".into(); 1_001], ..plain() },
            "FILTER_TOO_LARGE",
            "user_ids: 1001 values; at most 1000 are allowed",
        ),
        (
            QueryRequest { applications: vec!["x".repeat(129)], ..plain() },
            "FIELD_TOO_LONG",
            "applications[0] has 129 characters; at most 128 are allowed",
        ),
    ];
    for (request, reason, message) in cases {
        let error = RpcError::from_status(&running.client.query(request).await.unwrap_err());
        assert_eq!((error.code, error.reason.as_str()), (Code::InvalidArgument, reason));
        assert_eq!(error.message, message);
    }
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let mut config = StatsConfig { queue_events: 10, max_batch_events: 10, ..StatsConfig::default() };
    config.commit_max_wait.0 = Duration::from_millis(300);
    let mut running = start(config).await;
    let mut stream = record(&mut running.client).await;
    for id in [1, 2] {
        let events = (0..10).map(event).collect();
        stream.requests.send(RecordRequest { id, events, hello: None }).await.unwrap();
    }
    let refused = stream.answers.next().await.unwrap().unwrap();
    assert_eq!(refused.id, 2);
    let error = outcome(refused).unwrap_err();
    assert_eq!((error.code, error.reason.as_str()), (Code::ResourceExhausted, "STATS_QUEUE_FULL"));
    assert!(error.retry_after.is_some());
    assert_eq!(outcome(stream.answers.next().await.unwrap().unwrap()), Ok((10, 0)));
    assert_eq!(stream.ask(2, (0..10).map(event).collect()).await, Ok((0, 10)));
}

#[tokio::test]
async fn a_stream_that_is_full_says_what_part_of_the_service_that_is() {
    let mut running =
        start(StatsConfig { max_in_flight_batches: 1, queue_batches: 64, ..StatsConfig::default() }).await;
    let mut stream = record(&mut running.client).await;
    stream.requests.send(RecordRequest { id: 1, events: vec![event(1)], hello: None }).await.unwrap();
    let load = stream.answers.next().await.unwrap().unwrap().load.unwrap();
    assert_eq!(load.occupancy, 1.0 / 64.0);
}

#[tokio::test]
async fn a_drain_answers_what_was_read_and_ends_cleanly() {
    let mut config = StatsConfig::default();
    config.commit_max_wait.0 = Duration::from_millis(300);
    let mut running = start(config).await;
    let mut stream = record(&mut running.client).await;
    stream.requests.send(RecordRequest { id: 1, events: vec![Event::default()], hello: None }).await.unwrap();
    stream
        .requests
        .send(RecordRequest { id: 2, events: (0..10).map(event).collect(), hello: None })
        .await
        .unwrap();
    stream.requests.send(RecordRequest { id: 3, events: vec![Event::default()], hello: None }).await.unwrap();
    // The bad ones are answered at once, so now the good one was read and waits for its commit.
    for id in [1, 3] {
        assert_eq!(stream.answers.next().await.unwrap().unwrap().id, id);
    }
    running.lifecycle.drain();
    let last = stream.answers.next().await.unwrap().unwrap();
    assert_eq!((last.id, outcome(last)), (2, Ok((10, 0))));
    assert!(stream.answers.next().await.is_none(), "a clean end");
    tokio::time::timeout(Duration::from_secs(5), running.served).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_stream_ends_at_its_deadline() {
    let mut running = start(StatsConfig::default()).await;
    let (requests, outbound) = mpsc::channel(1);
    let mut request = tonic::Request::new(ReceiverStream::new(outbound));
    request.set_timeout(Duration::from_millis(200));
    let mut answers = running.client.record(request).await.unwrap().into_inner();
    let status = answers.next().await.unwrap().unwrap_err();
    let error = RpcError::from_status(&status);
    assert_eq!((error.code, error.reason.as_str()), (Code::DeadlineExceeded, "DEADLINE_EXCEEDED"));
    assert_eq!(error.message, "the deadline passed during: recording");
    drop(requests);
}

#[tokio::test]
async fn a_message_over_the_limit_ends_the_stream_with_an_error_after_the_answers_before_it() {
    let mut running = start(StatsConfig::default()).await;
    let mut stream = record(&mut running.client).await;
    let large = Event { user_id: "x".repeat(MAX_REQUEST_BYTES + 1), ..event(0) };
    for (id, events) in [(1, vec![event(1)]), (2, vec![large])] {
        stream.requests.send(RecordRequest { id, events, hello: None }).await.unwrap();
    }
    let first = stream.answers.next().await.unwrap().unwrap();
    assert_eq!((first.id, outcome(first)), (1, Ok((1, 0))));
    let error = RpcError::from_status(&stream.answers.next().await.unwrap().unwrap_err());
    assert_eq!((error.code, error.reason.as_str()), (Code::OutOfRange, "MESSAGE_TOO_LARGE"));
    assert!(error.message.contains(&MAX_REQUEST_BYTES.to_string()), "{}", error.message);
}

#[tokio::test]
async fn a_store_that_forgot_too_much_asks_for_patience_instead_of_refusing_for_good() {
    let mut running = start(StatsConfig::default()).await;
    let mut stream = record(&mut running.client).await;
    assert_eq!(stream.ask(1, vec![event(1)]).await, Ok((1, 0)));
    let database = rusqlite::Connection::open(running.folder.path().join("stats.db")).unwrap();
    // As after a start with a clock that was a year ahead.
    let hours = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs() / 3600;
    let forget = |before: u64| {
        let changed = database.execute("UPDATE state SET forgotten_before = ?1", [before as i64]);
        assert_eq!(changed, Ok(1));
    };
    forget(hours + 358 * 24);
    let error = stream.ask(2, vec![event(2)]).await.unwrap_err();
    assert_eq!((error.code, error.reason.as_str()), (Code::Unavailable, "EVENT_TIME_FORGOTTEN"));
    assert!(error.retry_after.is_some());
    assert!(error.message.contains("events[0].occurred_at"), "{}", error.message);
    // As the log tells the operator to do.
    forget(hours - 7 * 24);
    assert_eq!(stream.ask(3, vec![event(2)]).await, Ok((1, 0)));
}
