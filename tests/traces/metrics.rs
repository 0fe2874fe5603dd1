//! A real Prometheus reads every replica.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use serde_json::Value;
use sightline_servers::{Prometheus, find};
use sightline_testkit::{eventually, frames};

use crate::support::{Mesh, there};

/// What requirement R10 and V7 ask for, as far as it exists; each on one of the processes.
const WANTED: [&str; 22] = [
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
];

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
    let up = || -> usize {
        let answer = prometheus.get("/api/v1/query?query=up==1").unwrap();
        let answer: Value = serde_json::from_str(&answer.body).unwrap();
        answer["data"]["result"].as_array().unwrap().len()
    };
    eventually!(up() == targets.len());

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
}
