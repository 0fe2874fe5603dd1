//! Metrics stay small although nobody scrapes them. In a process of its own, because its memory is looked at.

#![allow(clippy::unwrap_used)] // helpers of tests: a panic is a failed test

use std::{sync::Arc, time::Duration};

use sightline_telemetry::{admin::Admin, dependencies::Dependencies, metrics::recorder};
use tokio::{net::TcpListener, sync::oneshot};

/// Bytes of the process in memory.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

#[tokio::test(start_paused = true)]
async fn samples_are_counted_into_buckets_without_a_scrape() {
    const ROUNDS: u64 = 40;
    const SAMPLES: u64 = 250_000;
    recorder();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (stop, stopped) = oneshot::channel::<()>();
    let admin = Admin::new(listener, Arc::new(|| Ok(())), Dependencies::default());
    let serving = tokio::spawn(admin.run(async { drop(stopped.await) }));
    let samples = metrics::histogram!("upkeep_test_seconds");
    let mut after_first = 0;
    for round in 0..ROUNDS {
        for n in 0..SAMPLES {
            samples.record(n as f64);
        }
        // The clock is paused: this passes as soon as nothing else is to be done.
        tokio::time::sleep(Duration::from_secs(6)).await;
        if round == 4 {
            after_first = resident();
        }
    }
    let grown = resident().saturating_sub(after_first);
    // 35 rounds of 2 MB would be 70 MB.
    assert!(grown < 20 << 20, "{} MiB more", grown >> 20);
    let count = format!("upkeep_test_seconds_count {}", ROUNDS * SAMPLES);
    assert!(recorder().render().contains(&count));
    stop.send(()).unwrap();
    tokio::time::timeout(Duration::from_secs(60), serving).await.unwrap().unwrap().unwrap();
}
