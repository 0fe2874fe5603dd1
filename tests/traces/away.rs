//! A collector that is away, or hangs, costs spans and nothing else.

use std::{
    net::TcpListener,
    time::{Duration, Instant},
};

use sightline_servers::free_port;
use sightline_testkit::{eventually, frames};

use crate::support::Mesh;

const FRAMES: u64 = 40;

async fn classify_all(mesh: &Mesh) {
    for index in 0..FRAMES {
        mesh.classify(frames::mixed(index, 48), "").await.unwrap();
    }
}

fn settings(endpoint: &str, queue: usize) -> [String; 4] {
    [
        format!("telemetry.otlp_endpoint={endpoint}"),
        "telemetry.otlp_sample=1".into(),
        format!("telemetry.otlp_queue_spans={queue}"),
        "telemetry.otlp_timeout=2s".into(),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_go_on_while_the_collector_is_away() {
    let endpoint = format!("http://127.0.0.1:{}", free_port());
    let Some(mesh) = Mesh::start(1, &settings(&endpoint, 8192)) else { return };
    classify_all(&mesh).await;
    for member in &mesh.members {
        eventually!(member.metric("telemetry_spans_total{result=\"failed\"}") >= FRAMES as f64);
        assert_eq!(member.metric("telemetry_spans_total{result=\"sent\"}"), 0.0);
    }
    assert!(mesh.ingest().log().contains("traces cannot be sent"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_fills_the_queue_and_no_more() {
    // Accepts, because the kernel does, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let Some(mut mesh) = Mesh::start(1, &settings(&endpoint, 16)) else { return };
    let dropped = || mesh.ingest().metric("telemetry_spans_total{result=\"dropped\"}") > 0.0;
    eventually!({
        classify_all(&mesh).await;
        dropped()
    });
    // The end waits for the collector no longer than it may.
    let since = Instant::now();
    let mut last = mesh.members.pop().unwrap();
    assert!(last.server.stop().unwrap().success());
    assert!(since.elapsed() < Duration::from_secs(8), "{:?}", since.elapsed());
}
