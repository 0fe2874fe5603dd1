//! The production shape as processes, by the same code as `cargo xtask cluster`: what replicas share, and what it costs
//! when one of them dies.

#![allow(clippy::unwrap_used)] // helpers of tests: a panic is a failed test

use std::time::{Duration, Instant};

use sightline_proto::{
    ingest::{ClassifyRequest, Frame, ingest_service_client::IngestServiceClient},
    stats::{QueryRequest, stats_service_client::StatsServiceClient},
    verdict::{Verdict, VerdictSource},
};
use sightline_servers::{
    cluster::{Cluster, Plan, Ports, Replicas, Role},
    there,
};
use sightline_testkit::{frames, models::Small, setup};
use tempfile::TempDir;
use tokio::task::{JoinSet, block_in_place};
use tonic::{Status, transport::Channel};

const LONG: Duration = Duration::from_secs(30);

/// A running cluster in a folder of its own, or a visible skip.
fn start(folder: &TempDir, replicas: Replicas, settings: &[&str]) -> Option<Cluster> {
    let plan = Plan {
        binary: setup::path("SIGHTLINE_TEST_BINARY")?,
        model: Small::default().write(folder.path()),
        base: folder.path().join("cluster"),
        replicas,
        ports: Ports::Free,
        watched: false,
        settings: ["ratelimiter.rules=dev"].iter().chain(settings).map(ToString::to_string).collect(),
        reach: vec![],
    };
    block_in_place(|| there(Cluster::start(&plan, &mut |_| {})))
}

async fn client(address: std::net::SocketAddr) -> IngestServiceClient<Channel> {
    IngestServiceClient::connect(format!("http://{address}")).await.unwrap()
}

async fn classify(mut client: IngestServiceClient<Channel>, image: Vec<u8>) -> Result<Verdict, Status> {
    let frame = Frame { user_id: "ada".into(), image: image.into(), ..Frame::default() };
    Ok(client.classify(ClassifyRequest { frame: Some(frame) }).await?.into_inner().verdict.unwrap())
}

/// Asks until it holds, at most half a minute.
async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let since = Instant::now();
    while !block_in_place(&mut holds) {
        assert!(since.elapsed() < LONG, "never: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_image_at_five_replicas_at_once_is_one_inference_and_two_when_its_holder_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let replicas = Replicas { ingest: 5, ..Replicas::each(1) };
    // A machine of tests may be too busy for the usual 5 ms.
    let settings = ["ingest.cache_redis_timeout=5s", "ingest.cache_redis_lease=3s"];
    let Some(mut cluster) = start(&folder, replicas, &settings) else { return };
    let mut clients = Vec::new();
    for member in cluster.of(Role::Ingest) {
        clients.push(client(member.address).await);
    }
    let inferred = |cluster: &Cluster| cluster.metric(Role::Classifier, "ml_frames_total").unwrap();

    // All five have it before the classifier can answer one.
    cluster.member("classifier-1").unwrap().server.pause();
    let mut asks = JoinSet::new();
    for client in &clients {
        asks.spawn(classify(client.clone(), frames::jpeg(1, 64)));
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    cluster.member("classifier-1").unwrap().server.resume();
    let mut sources = Vec::new();
    while let Some(answer) = asks.join_next().await {
        sources.push(answer.unwrap().unwrap().source());
    }
    assert_eq!(block_in_place(|| inferred(&cluster)), 1.0);
    assert_eq!(sources.iter().filter(|source| **source == VerdictSource::Model).count(), 1, "{sources:?}");

    // The one that has the lease of a second image is killed while the others wait for it.
    cluster.member("classifier-1").unwrap().server.pause();
    let holder = tokio::spawn(classify(clients[0].clone(), frames::jpeg(2, 64)));
    let keys = |cluster: &Cluster| cluster.cache.command(&["DBSIZE"]).unwrap().trim().parse::<u32>().unwrap();
    until("the holder leaves its lease", || keys(&cluster) == 2).await;
    let since = Instant::now();
    for client in &clients[1..] {
        asks.spawn(classify(client.clone(), frames::jpeg(2, 64)));
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    cluster.member("ingest-1").unwrap().server.kill();
    cluster.member("classifier-1").unwrap().server.resume();
    while let Some(answer) = asks.join_next().await {
        answer.unwrap().unwrap();
    }
    assert!(holder.await.unwrap().is_err(), "its own client lost the connection");
    assert!(since.elapsed() < Duration::from_secs(9), "within the deadline of 10 s: {:?}", since.elapsed());
    // The dead holder's tensor may have been run before the classifier noticed that nobody waits for it.
    let more = block_in_place(|| inferred(&cluster)) - 1.0;
    assert!((1.0..=2.0).contains(&more), "{more} inferences");
    block_in_place(|| cluster.stop().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_killed_under_load_costs_the_client_nothing_and_every_frame_is_counted_once() {
    const FRAMES: u64 = 600;
    let folder = tempfile::tempdir().unwrap();
    let settings = ["ingest.cache_redis_timeout=1s"];
    let Some(mut cluster) = start(&folder, Replicas { ingest: 1, ..Replicas::each(2) }, &settings) else {
        return;
    };
    let client = client(cluster.of(Role::Ingest).next().unwrap().address).await;
    let mut asks = JoinSet::new();
    for seed in 0..FRAMES {
        asks.spawn(classify(client.clone(), frames::jpeg(seed, 48)));
        if asks.len() >= 16 {
            asks.join_next().await.unwrap().unwrap().unwrap();
        }
        let victim = match seed {
            100 => "classifier-1",
            200 => "ratelimiter-1",
            300 => "stats-1",
            _ => continue,
        };
        block_in_place(|| cluster.member(victim).unwrap().server.kill());
    }
    while let Some(answer) = asks.join_next().await {
        answer.unwrap().unwrap();
    }
    counted(cluster.of(Role::Stats).nth(1).unwrap().address, FRAMES).await;
    block_in_place(|| cluster.stop().unwrap());
}

/// Waits until exactly so many frames are counted.
async fn counted(stats: std::net::SocketAddr, frames: u64) {
    let mut stats = StatsServiceClient::connect(format!("http://{stats}")).await.unwrap();
    let since = Instant::now();
    loop {
        let counted = match stats.query(QueryRequest::default()).await {
            Ok(answer) => answer.into_inner().rows[0].frames,
            // PostgreSQL is only just back.
            Err(_) => 0,
        };
        if counted == frames {
            return;
        }
        assert!(counted < frames && since.elapsed() < LONG, "{counted} of {frames}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_postgres_and_both_redis_away_frames_go_on_and_are_counted_when_it_is_back() {
    const EACH: u64 = 100;
    let folder = tempfile::tempdir().unwrap();
    // A buffer smaller than what comes meanwhile: the rest has to wait on disk.
    let settings = ["ingest.record_buffer=64", "ingest.record_batch=16", "ingest.spool_after=200ms"];
    let Some(mut cluster) = start(&folder, Replicas::each(1), &settings) else { return };
    let client = client(cluster.of(Role::Ingest).next().unwrap().address).await;
    let send = |from: u64| {
        let client = client.clone();
        async move {
            for seed in from..from + EACH {
                classify(client.clone(), frames::jpeg(seed, 48)).await.unwrap();
            }
        }
    };
    send(0).await;
    let stats = cluster.of(Role::Stats).next().unwrap().address;
    counted(stats, EACH).await;
    block_in_place(|| {
        cluster.postgres.server.kill();
        cluster.limits.server.kill();
        cluster.cache.server.kill();
    });
    send(EACH).await;
    block_in_place(|| {
        assert!(cluster.metric(Role::Ingest, "ingest_spool_events").unwrap() > 0.0, "nothing waits on disk");
        assert_eq!(cluster.metric(Role::Ingest, "ingest_dropped_events_total").unwrap(), 0.0);
        cluster.postgres.server.restart().unwrap();
        cluster.limits.server.restart().unwrap();
        cluster.cache.server.restart().unwrap();
    });
    send(2 * EACH).await;
    counted(stats, 3 * EACH).await;
    block_in_place(|| cluster.stop().unwrap());
}
