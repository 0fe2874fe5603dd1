//! The calls between services: what happens when one of them is away.

use std::time::Duration;

use sightline_node::{Node, Role};
use sightline_proto::ingest::{ClassifyRequest, Frame, ingest_service_client::IngestServiceClient};
use sightline_testkit::{MeshSandbox, eventually, frames, models::Small};

async fn classify(address: std::net::SocketAddr, seed: u64) -> Result<(), tonic::Status> {
    let mut client = IngestServiceClient::connect(format!("http://{address}")).await.unwrap();
    let frame = Frame { user_id: "ada".into(), image: frames::png(seed, 48).into(), ..Frame::default() };
    client.classify(ClassifyRequest { frame: Some(frame) }).await.map(drop)
}

/// Each role in a node of its own, as separate processes would be.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_goes_away_is_not_seen_by_clients() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = MeshSandbox::config(&folder);
    config.telemetry.admin_listen = sightline_config::Listen::OFF;
    config.classifier.models = vec![Small::default().write(folder.path())];
    let others = Node::start(config.clone(), &[Role::Ratelimiter, Role::Stats]).await.unwrap();
    let first = Node::start(config.clone(), &[Role::Classifier]).await.unwrap();
    let second = Node::start(config.clone(), &[Role::Classifier]).await.unwrap();
    let uri = |node: &Node, role| vec![format!("http://{}", node.address(role).unwrap())];
    config.ingest.ratelimiter = uri(&others, Role::Ratelimiter);
    config.ingest.stats = uri(&others, Role::Stats);
    config.ingest.classifier = [uri(&first, Role::Classifier), uri(&second, Role::Classifier)].concat();
    let edge = Node::start(config.clone(), &[Role::Ingest]).await.unwrap();
    edge.ready(Duration::from_secs(20)).await.unwrap();
    let address = edge.address(Role::Ingest).unwrap();

    let load = tokio::spawn(async move {
        for seed in 0..400 {
            classify(address, seed).await.unwrap_or_else(|status| panic!("frame {seed}: {status:?}"));
        }
    });
    first.stop().await;
    load.await.unwrap();

    // Statistics away: frames are served, and counted when they are back.
    let before = 400;
    let stats_at = others.address(Role::Stats).unwrap();
    others.stop().await;
    for seed in 400..410 {
        classify(address, seed).await.unwrap();
    }
    config.stats.listen = stats_at;
    let back = Node::start(config.clone(), &[Role::Stats]).await.unwrap();
    let count = || async {
        let uri = format!("http://{stats_at}");
        let mut stats =
            sightline_proto::stats::stats_service_client::StatsServiceClient::connect(uri).await.unwrap();
        let page = stats.query(sightline_proto::stats::QueryRequest::default()).await.unwrap().into_inner();
        page.rows.iter().map(|row| row.frames).sum::<u64>()
    };
    eventually!(count().await == before + 10);
    edge.stop().await;
    second.stop().await;
    back.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_rate_limiter_frames_pass_or_are_refused_as_configured() {
    for (away, passes) in [
        (sightline_ingest::config::WhenAway::Open, true),
        (sightline_ingest::config::WhenAway::Closed, false),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut config = MeshSandbox::config(&folder);
        config.telemetry.admin_listen = sightline_config::Listen::OFF;
        config.classifier.models = vec![Small::default().write(folder.path())];
        config.ingest.ratelimiter_away = away;
        config.ingest.ratelimiter = vec!["http://127.0.0.1:9".into()];
        let node = Node::start(config, &[Role::Classifier, Role::Stats, Role::Ingest]).await.unwrap();
        node.ready(Duration::from_secs(20)).await.unwrap();
        let outcome = classify(node.address(Role::Ingest).unwrap(), 1).await;
        assert_eq!(outcome.is_ok(), passes, "{outcome:?}");
        if let Err(status) = outcome {
            assert_eq!(crate::errors::seen(&status).1, "LIMITER_AWAY");
        }
        node.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_out_of_time_is_told_during_what() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = MeshSandbox::config(&folder);
    config.telemetry.admin_listen = sightline_config::Listen::OFF;
    config.classifier.models = vec![Small::default().write(folder.path())];
    // Nobody answers there, and ingest is patient.
    config.ingest.ratelimiter = vec!["http://127.0.0.1:9".into()];
    config.ingest.ratelimiter_timeout = sightline_config::HumanDuration::from_secs(60);
    let node = Node::start(config, &[Role::Classifier, Role::Stats, Role::Ingest]).await.unwrap();
    node.ready(Duration::from_secs(20)).await.unwrap();
    let address = node.address(Role::Ingest).unwrap();
    let mut client = IngestServiceClient::connect(format!("http://{address}")).await.unwrap();
    let frame = Frame { user_id: "ada".into(), image: frames::png(1, 48).into(), ..Frame::default() };
    let mut told = None;
    // The answer comes 10 ms before the client's own clock ends the call: on a busy machine that may be too late once.
    for _ in 0..5 {
        let mut request = tonic::Request::new(ClassifyRequest { frame: Some(frame.clone()) });
        request.set_timeout(Duration::from_secs(1));
        let status = client.classify(request).await.unwrap_err();
        if status.code() != tonic::Code::Cancelled {
            told = Some(status);
            break;
        }
    }
    let status = told.expect("the client's own clock was always first");
    let (code, reason, message) = crate::errors::seen(&status);
    assert_eq!((code, reason.as_str()), (tonic::Code::DeadlineExceeded, "DEADLINE_EXCEEDED"));
    assert_eq!(message, "the deadline passed during: asking the rate limiter");
    node.stop().await;
}
