//! What the mesh says of itself: logs, metrics and the small HTTP server that shows them to operators.
//!
//! - [`start`]: all of it that a process begins with, and [`Telemetry::stop`] at its end.
//! - [`logs`]: human-readable lines on a terminal, one JSON object a line elsewhere, always on standard error; inside of
//!   a trace with its id.
//! - [`trace`]: one trace per frame across processes; [`TelemetryConfig::otlp_endpoint`] says where they go.
//! - [`metrics::recorder`]: the process's Prometheus registry.
//! - [`dependencies::Dependencies`]: how each server that the process needs is.
//! - [`admin::Admin`]: `/metrics`, `/livez`, `/servingz`, `/readyz` and `/healthz` over plain HTTP, on a port of its own so that it never shares
//!   the public edge.
//!
//! Pixels, tokens and hashes never go into a field of either (promise P6); user ids never into a label.

pub mod admin;
pub mod dependencies;
pub mod logs;
pub mod metrics;
mod otlp;
mod process;
pub mod trace;

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use sightline_config::{HumanDuration, Listen};

sightline_config::settings! {
    /// What the process tells operators.
    pub struct TelemetryConfig in "telemetry" {
        /// What is logged: a level, or directives such as "info,sightline_mesh=debug".
        pub log: String = "info".into(),
        /// How: "text", "json", or "auto" (text on a terminal, JSON elsewhere).
        pub log_format: logs::Format = logs::Format::Auto,
        /// Where /metrics, /livez, /servingz, /readyz and /healthz are served over HTTP; "off": nowhere. Several
        /// processes on one machine need one port each.
        pub admin_listen: Listen = Listen::at(SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 7400))),
        /// Where traces and metrics are sent, by OTLP over gRPC, such as "http://127.0.0.1:4317" (Jaeger, or a collector
        /// of any kind). Unset: nowhere, and tracing costs nothing.
        pub otlp_endpoint: Option<String> = None,
        /// The share of frames whose trace is kept, 0 to 1, where the caller's own traceparent has not decided it. One in
        /// a hundred: at 20,000 frames/s that is 200 traces, some 2,000 spans and 1 MB a second, enough to see every
        /// kind of delay; all of them would be 100 MB/s and cost more than the rate limiter.
        pub otlp_sample: f64 = 0.01,
        /// Spans that may wait for the collector, about 1 KB each; past it they are dropped and counted
        /// (telemetry_spans_total): a collector that is slow or away never holds a frame back.
        pub otlp_queue_spans: usize = 8192,
        /// How long one export may take, and all that waits at the end of the process.
        pub otlp_timeout: HumanDuration = HumanDuration::from_secs(5),
        /// Also send what /metrics shows; a collector that takes no metrics, such as Jaeger, is asked once.
        pub otlp_metrics: bool = true,
        /// How often metrics are sent: as often as most Prometheus servers scrape.
        pub otlp_metrics_interval: HumanDuration = HumanDuration::from_secs(15),
    }
}

/// The most spans that may be allowed to wait: 1 GB.
const MAX_QUEUE_SPANS: usize = 1 << 20;

/// Why telemetry cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter cannot be read.
    #[error("`telemetry.log`: {0:?} is not a level or a list of directives")]
    Log(String),
    /// The collector's address.
    #[error("`telemetry.otlp_endpoint`: {endpoint:?} cannot be used: {problem}")]
    Endpoint {
        /// As set.
        endpoint: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A value out of its range.
    #[error("{0}")]
    Value(String),
}

impl TelemetryConfig {
    /// Checks what types cannot.
    ///
    /// # Errors
    /// [`TelemetryError`], naming the setting.
    pub fn validate(&self) -> Result<(), TelemetryError> {
        logs::filter(&self.log)?;
        if let Some(endpoint) = &self.otlp_endpoint {
            otlp::check(endpoint)?;
        }
        let fail = |text: &str| Err(TelemetryError::Value(text.to_owned()));
        if !(0.0..=1.0).contains(&self.otlp_sample) {
            return fail("`telemetry.otlp_sample` must be between 0 and 1");
        }
        if !(1..=MAX_QUEUE_SPANS).contains(&self.otlp_queue_spans) {
            return fail("`telemetry.otlp_queue_spans` must be between 1 and 1048576");
        }
        if self.otlp_timeout.is_zero() || self.otlp_metrics_interval.is_zero() {
            return fail("`telemetry.otlp_timeout` and `telemetry.otlp_metrics_interval` must be above 0");
        }
        Ok(())
    }
}

/// What says things of this process to others, from [`start`] to [`Telemetry::stop`].
#[derive(Debug, Default)]
#[must_use = "stop() sends what waits"]
pub struct Telemetry {
    exporter: Option<otlp::Exporter>,
}

/// Starts logs, and traces and metrics where `telemetry.otlp_endpoint` is set. `service` is what a trace calls this
/// process, such as `sightline-ingest`. A second call in the same process changes nothing. Called inside a tokio runtime.
///
/// # Errors
/// [`TelemetryError`], naming the setting.
pub fn start(config: &TelemetryConfig, service: &str) -> Result<Telemetry, TelemetryError> {
    config.validate()?;
    metrics::recorder();
    let Some(endpoint) = &config.otlp_endpoint else {
        logs::init(config, None)?;
        return Ok(Telemetry::default());
    };
    let (tracer, exporter) = otlp::start(config, endpoint, service)?;
    if logs::init(config, Some(tracer))? {
        trace::turn_on(config.otlp_sample);
    }
    Ok(Telemetry { exporter: Some(exporter) })
}

impl Telemetry {
    /// Sends what waits, within `telemetry.otlp_timeout`. Call it when everything else has ended.
    pub async fn stop(self) {
        if let Some(exporter) = self.exporter {
            exporter.stop().await;
        }
    }
}
