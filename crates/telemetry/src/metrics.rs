//! The process's metrics, in Prometheus's text format.

use std::{convert::Infallible, sync::OnceLock, time::Duration};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// Bounds of every duration histogram, in seconds: from a cache hit (20 µs) to the longest deadline (10 s).
const SECONDS: [f64; 14] =
    [0.00002, 0.0001, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 10.0];
/// Bounds of every histogram of counts, such as a batch's size.
const COUNTS: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 256.0, 1024.0, 8192.0];
/// Bounds of every histogram of bytes: powers of four from 1 KiB, gRPC's own from there on (gRFC A66).
const BYTES: [f64; 10] = [
    1024.0,
    4096.0,
    16384.0,
    65536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
    67_108_864.0,
    268_435_456.0,
];

/// How often the samples of histograms are counted into their buckets. Until then each takes eight bytes, which at
/// 100,000 samples a second is 4 MB in this time. A scrape does the same, but nobody may come to scrape.
const UPKEEP: Duration = Duration::from_secs(5);

static RECORDER: OnceLock<PrometheusHandle> = OnceLock::new();

/// The handle that renders the metrics. The first call makes the registry and installs it for the process.
pub fn recorder() -> &'static PrometheusHandle {
    RECORDER.get_or_init(|| {
        let recorder = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &SECONDS)
            .and_then(|builder| {
                builder.set_buckets_for_metric(Matcher::Suffix("_message_size_bytes".into()), &BYTES)
            })
            .and_then(|builder| builder.set_buckets(&COUNTS))
            .expect("the constant lists of bounds are not empty")
            .build_recorder();
        let handle = recorder.handle();
        // Another recorder can only be there if a library installed one; then ours shows nothing, and serves on.
        ::metrics::set_global_recorder(recorder).ok();
        describe();
        ::metrics::gauge!("sightline_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
        handle
    })
}

/// Counts samples into their buckets from time to time, for as long as it is polled.
pub async fn upkeep() -> Infallible {
    loop {
        tokio::time::sleep(UPKEEP).await;
        recorder().run_upkeep();
    }
}

/// Everything there is to show now: what was counted, and what the system says of the process.
pub fn render() -> String {
    recorder().render() + &crate::process::render()
}

fn describe() {
    use ::metrics::{describe_counter, describe_gauge};
    describe_gauge!("sightline_build_info", "1, with the version of the program as a label");
    describe_gauge!("dependency_up", "1 healthy, 0.5 degraded, 0 down, by dependency");
    describe_counter!(
        "telemetry_spans_total",
        "Spans of traces by result: sent, failed, dropped (the queue was full)"
    );
}
