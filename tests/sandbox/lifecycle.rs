//! Starting, stopping, and what is seen from outside meanwhile.

use std::{
    io::{Read, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sightline_config::HumanDuration;
use sightline_node::{Node, NodeError, Role};
use sightline_proto::ingest::classify_stream_response::Message as Hear;
use sightline_testkit::{MeshSandbox, eventually, frames, models::Small};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::stream::{Talk, frame, open};

#[tokio::test(flavor = "multi_thread")]
async fn a_stopping_mesh_answers_what_it_took_and_tells_its_streams() {
    /// So small that all fit into the transport's window, and so many that reading them takes long.
    const FRAMES: u64 = 200;
    // One at a time: when the stop comes, frames have been sent that were not read.
    let mesh = MeshSandbox::start_with(|config| config.ingest.stream_in_flight = 1).await;
    let mut health = HealthClient::new(mesh.channel(Role::Ingest).await);
    let service = "sightline.ingest.v1.IngestService".to_owned();
    let mut watch = health.watch(HealthCheckRequest { service }).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);

    let (mut talk, _) = open(mesh.ingest().await, "ada").await;
    for id in 0..FRAMES {
        talk.say.send(frame(id, frames::jpeg(id, 24))).await.unwrap();
    }
    // The first answer shows that the stream is being read.
    let mut answered =
        usize::from(matches!(talk.hear.message().await.unwrap().unwrap().message, Some(Hear::Verdict(_))));
    let stopping = tokio::spawn(mesh.stop_keeping_files());
    let (mut told, mut turned_away) = (false, 0);
    while let Some(heard) = talk.hear.message().await.unwrap() {
        match heard.message.unwrap() {
            Hear::Verdict(_) => answered += 1,
            Hear::Drain(_) => told = true,
            Hear::Error(answer) => {
                let error = answer.error.unwrap();
                assert_eq!(
                    (error.code, error.reason.as_str()),
                    (tonic::Code::Unavailable as i32, "DRAINING")
                );
                turned_away += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(told, "the stream was not told");
    assert!(answered > 0);
    assert!(turned_away > 0, "all frames were read before the stop: this showed nothing");
    assert_eq!(answered + turned_away, FRAMES as usize, "a frame was left without a word");
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    drop((watch, health, talk));
    let folder = tokio::time::timeout(Duration::from_secs(20), stopping).await.unwrap().unwrap();

    // Every verdict that was given is counted, although the mesh stopped right behind it.
    let again = MeshSandbox::start_with(|config| config.node.data_dir = folder.path().join("data")).await;
    assert_eq!(again.counted().await as usize, answered);
    again.stop().await;
}

/// A client that says and hears nothing but frames and answers until it is told to leave: how many frames it sent, how many
/// were answered, how many turned away.
async fn talk_until_told(mut talk: Talk) -> (u64, u64, u64) {
    let told = Arc::new(AtomicBool::new(false));
    let (leave, say) = (Arc::clone(&told), talk.say);
    let saying = tokio::spawn(async move {
        let mut sent = 0;
        while !leave.load(Ordering::SeqCst) && say.send(frame(sent, frames::jpeg(sent, 24))).await.is_ok() {
            sent += 1;
        }
        sent
    });
    let (mut verdicts, mut turned_away) = (0, 0);
    while let Some(heard) = talk.hear.message().await.unwrap() {
        match heard.message.unwrap() {
            Hear::Verdict(_) => verdicts += 1,
            Hear::Drain(drain) => {
                assert!(drain.reason.contains("replaces this connection"), "{}", drain.reason);
                told.store(true, Ordering::SeqCst);
            }
            Hear::Error(answer) => {
                assert_eq!(answer.error.unwrap().reason, "DRAINING");
                turned_away += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(told.load(Ordering::SeqCst), "the stream was not told");
    (saying.await.unwrap(), verdicts, turned_away)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_on_an_old_connection_is_told_to_leave_and_loses_nothing() {
    let mesh = MeshSandbox::start_with(|config| {
        config.server.max_connection_age = HumanDuration::from_millis(500);
        config.server.max_connection_age_grace = HumanDuration::from_secs(5);
    })
    .await;
    for _ in 0..2 {
        let (talk, _) = open(mesh.ingest().await, "ada").await;
        let (sent, verdicts, turned_away) =
            tokio::time::timeout(Duration::from_secs(20), talk_until_told(talk)).await.unwrap();
        assert!(verdicts > 0);
        assert_eq!(verdicts + turned_away, sent, "a frame was left without a word");
    }
    // One that has not said hello yet.
    let mut client = mesh.ingest().await;
    let mut hear = client.classify_stream(tokio_stream::pending()).await.unwrap().into_inner();
    let heard = tokio::time::timeout(Duration::from_secs(5), hear.message()).await.unwrap();
    assert_eq!(crate::errors::seen(&heard.unwrap_err()).1, "DRAINING");
    drop((hear, client));
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_has_not_said_hello_hears_of_a_stop() {
    let mesh = MeshSandbox::start().await;
    let mut client = mesh.ingest().await;
    let (_say, receiver) = tokio::sync::mpsc::channel(1);
    let silent = tokio_stream::wrappers::ReceiverStream::new(receiver);
    let mut hear = client.classify_stream(silent).await.unwrap().into_inner();
    let stopping = tokio::spawn(mesh.stop());
    let heard = tokio::time::timeout(Duration::from_secs(5), hear.message()).await.unwrap();
    let (code, reason, _) = crate::errors::seen(&heard.unwrap_err());
    assert_eq!((code, reason.as_str()), (tonic::Code::Unavailable, "DRAINING"));
    drop((hear, client));
    tokio::time::timeout(Duration::from_secs(20), stopping).await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_service_shows_health_and_an_unknown_one_is_watched_until_it_appears() {
    let mesh = MeshSandbox::start().await;
    for (role, service) in [
        (Role::Ingest, "sightline.ingest.v1.IngestService"),
        (Role::Classifier, "sightline.classifier.v1.ClassifierService"),
        (Role::Stats, "sightline.stats.v1.StatsService"),
        (Role::Ratelimiter, "sightline.ratelimiter.v1.RateLimiterService"),
    ] {
        let mut health = HealthClient::new(mesh.channel(role).await);
        for name in ["", service] {
            let answer =
                health.check(HealthCheckRequest { service: name.into() }).await.unwrap().into_inner();
            assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
        }
        let mut watch =
            health.watch(HealthCheckRequest { service: "other".into() }).await.unwrap().into_inner();
        assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::ServiceUnknown);
    }
    mesh.stop().await;
}

fn get(address: std::net::SocketAddr, path: &str) -> String {
    let mut socket = std::net::TcpStream::connect(address).unwrap();
    write!(socket, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_name_what_happened_and_nobody_it_happened_to() {
    let mesh = MeshSandbox::start().await;
    mesh.classify(frames::jpeg(1, 64)).await.unwrap();
    mesh.classify(frames::jpeg(1, 64)).await.unwrap();
    mesh.classify(b"no image".to_vec()).await.unwrap_err();
    let address = mesh.admin_address();
    eventually!(get(address, "/metrics").contains("stats_events_total"));
    let metrics = get(address, "/metrics");
    for name in [
        "request_duration_seconds_bucket",
        "ingest_frames_total{result=\"ok\"",
        "reason=\"IMAGE_UNRECOGNISED\"",
        "cache_requests_total{cache=\"memory\",result=\"hit\"}",
        "ml_inference_duration_seconds",
        "ml_batch_size",
        "nsfw_detections_total",
        "ratelimiter_checks_total",
        "sightline_build_info",
    ] {
        assert!(metrics.contains(name), "{name} is missing in:\n{metrics}");
    }
    assert!(!metrics.contains("ada"), "a user's name is in the metrics");
    assert!(get(address, "/readyz").starts_with("HTTP/1.1 200"));
    assert!(get(address, "/livez").starts_with("HTTP/1.1 200"));
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_taken_port_and_an_open_door_are_refused_at_start() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut config = MeshSandbox::config(&folder);
    config.classifier.models = vec![Small::default().write(folder.path())];
    config.stats.listen = taken.local_addr().unwrap();
    let error = Node::start(config.clone(), &Role::ALL).await.err().unwrap();
    assert!(matches!(error, NodeError::Bind(_)));
    assert!(error.to_string().starts_with("`stats.listen`: 127.0.0.1:"), "{error}");

    config.stats.listen = ([0, 0, 0, 0], 0).into();
    let error = Node::start(config, &[Role::Stats]).await.err().unwrap();
    assert!(matches!(error, NodeError::Insecure { setting: "stats.listen", .. }), "{error}");
}
