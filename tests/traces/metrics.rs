//! A real Prometheus reads every replica.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use serde_json::Value;
use sightline_servers::{Prometheus, find};
use sightline_testkit::{eventually, frames};

use crate::support::{Mesh, there};

/// What requirement R10 and V7 ask for, as far as it exists, and gRPC's own names (gRFC A66); each on one of the processes.
const WANTED: [&str; 36] = [
    "sightline_build_info",
    "process_cpu_seconds_total",
    "process_resident_memory_bytes",
    "process_open_fds",
    "process_threads",
    "request_duration_seconds_bucket",
    "request_count_total",
    "requests_in_flight",
    "rpc_duration_seconds_bucket",
    "active_connections",
    "active_users",
    "cache_requests_total",
    "nsfw_detections_total",
    "ingest_frames_total",
    "ml_inference_duration_seconds_bucket",
    "ml_batch_size_bucket",
    "classifier_queue_depth",
    "classifier_queue_wait_seconds_bucket",
    "ratelimiter_checks_total",
    "ratelimiter_check_duration_seconds_bucket",
    "stats_events_total",
    "stats_commit_duration_seconds_bucket",
    "grpc_client_attempt_started_total",
    "grpc_client_attempt_duration_seconds_bucket",
    "grpc_client_attempt_sent_total_compressed_message_size_bytes_bucket",
    "grpc_client_attempt_rcvd_total_compressed_message_size_bytes_bucket",
    "grpc_client_call_duration_seconds_bucket",
    "grpc_server_call_started_total",
    "grpc_server_call_sent_total_compressed_message_size_bytes_bucket",
    "grpc_server_call_rcvd_total_compressed_message_size_bytes_bucket",
    "grpc_server_call_duration_seconds_bucket",
    "mesh_endpoints",
    "mesh_picks_total",
    "mesh_streams_open",
    "mesh_message_attempts_total",
    "mesh_message_duration_seconds_bucket",
];

/// The share of frames that failed, as docs/OBSERVABILITY.md writes R10's `error_rate`.
const ERROR_RATE: &str =
    "sum(rate(ingest_frames_total{result=\"error\"}[5m])) / sum(rate(ingest_frames_total[5m]))";

#[tokio::test(flavor = "multi_thread")]
async fn prometheus_scrapes_every_replica_and_promtool_accepts_what_it_reads() {
    let Some(promtool) = there(find("promtool")) else { return };
    let Some(mesh) = Mesh::start(2, &[]) else { return };
    for index in 0..8 {
        mesh.classify(frames::mixed(index / 2, 48), "").await.unwrap();
    }
    mesh.classify(b"no image".to_vec(), "").await.unwrap_err();
    eventually!(mesh.members.iter().map(|member| member.metric("stats_events_total")).sum::<f64>() >= 8.0);

    let targets: Vec<_> = mesh.members.iter().map(|member| member.admin.to_string()).collect();
    let Some(prometheus) = there(Prometheus::start(&[("sightline", targets.clone())])) else { return };
    let ask = |query: &str| -> Vec<Value> {
        let answer = prometheus.get(&format!("/api/v1/query?query={query}")).unwrap();
        let answer: Value = serde_json::from_str(&answer.body).unwrap();
        answer["data"]["result"].as_array().unwrap_or_else(|| panic!("{answer}")).clone()
    };
    eventually!(ask("up==1").len() == targets.len());

    let pages: Vec<_> = mesh.members.iter().map(|member| member.page("/metrics")).collect();
    for page in &pages {
        let mut check = Command::new(&promtool);
        let check = check.args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped());
        let mut check = check.stdout(Stdio::piped()).spawn().unwrap();
        check.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
        let said = check.wait_with_output().unwrap();
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    }
    for name in WANTED {
        let there = |page: &String| page.lines().any(|line| line.starts_with(name));
        // The gauge of users is shown every few seconds.
        if name == "active_users" {
            eventually!(mesh.ingest().metric(name).round() == 1.0);
        } else {
            assert!(pages.iter().any(there), "{name}");
        }
    }
    let ingest = mesh.ingest();
    let classify = "method=\"sightline.ingest.v1.IngestService/Classify\"";
    let ended = |code: &str| ingest.metric(&format!("request_count_total{{{classify},code=\"{code}\"}}"));
    assert_eq!((ended("OK"), ended("INVALID_ARGUMENT")), (8.0, 1.0));
    assert_eq!(ingest.metric(&format!("rpc_duration_seconds_count{{{classify}}}")), 9.0);
    assert!(ingest.metric("active_connections{server=\"ingest\"}") <= 1.0, "each client has gone");
    sizes(&mesh);

    // One of the two fails while Prometheus looks.
    eventually!({
        mesh.classify(frames::mixed(1, 48), "").await.unwrap();
        mesh.classify(b"no image".to_vec(), "").await.unwrap_err();
        let rates = ask(&percent(ERROR_RATE));
        rates.iter().any(|rate| rate["value"][1].as_str().unwrap().parse::<f64>().unwrap() > 0.1)
    });
}

/// As bytes of messages, on both ends of calls.
fn sizes(mesh: &Mesh) {
    let of = |side: &str, what: &str, method: &str| {
        let size = format!("grpc_{side}_{what}_total_compressed_message_size_bytes_sum");
        mesh.members
            .iter()
            .map(|member| member.metric(&format!("{size}{{grpc_method=\"{method}\"")))
            .sum::<f64>()
    };
    let classify = "sightline.ingest.v1.IngestService/Classify";
    let images: usize = (0..8).map(|index| frames::mixed(index / 2, 48).len()).sum();
    let read = of("server", "call_rcvd", classify);
    // What is beside an image in its message is the user's name and a few tags.
    assert!((images as f64..images as f64 + 9.0 * 64.0).contains(&read), "{read} for images of {images}");
    assert!(of("server", "call_sent", classify) > 8.0 * 100.0, "verdicts");
    let list = "sightline.classifier.v1.ClassifierService/ListModels";
    let told = of("client", "attempt_rcvd", list);
    assert!(told > 0.0);
    assert_eq!(of("client", "attempt_sent", list), 0.0, "the question is empty");
}

/// As a query of a URL.
fn percent(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}
