//! Traces and metrics to a collector, by OTLP over gRPC. Whatever the collector does, frames go on: spans wait in a
//! bounded queue, past it they are dropped and counted, and each export ends within `telemetry.otlp_timeout`.

mod metrics;
mod prometheus;
mod spans;

use std::{fs, time::Duration};

use opentelemetry::{KeyValue, trace::TracerProvider};
use opentelemetry_otlp::{RetryPolicy, SpanExporter, WithExportConfig, WithTonicConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{Sampler, SdkTracer, SdkTracerProvider, SpanExporter as _},
};
use tokio::{sync::watch, task::JoinHandle, time::timeout};
use tonic::transport::{Channel, Endpoint};

use crate::{TelemetryConfig, TelemetryError};

/// What sends, until it is stopped.
#[derive(Debug)]
pub(crate) struct Exporter {
    stop: watch::Sender<bool>,
    spans: JoinHandle<()>,
    metrics: Option<JoinHandle<()>>,
    patience: Duration,
}

/// Checks an endpoint without connecting to it.
pub(crate) fn check(endpoint: &str) -> Result<Endpoint, TelemetryError> {
    let fail = |problem: String| TelemetryError::Endpoint { endpoint: endpoint.to_owned(), problem };
    let parsed = Endpoint::from_shared(endpoint.to_owned()).map_err(|error| fail(error.to_string()))?;
    match parsed.uri().scheme_str() {
        Some("http") => Ok(parsed),
        Some("https") => {
            Err(fail("TLS is not spoken here: name a collector beside this process by http://".into()))
        }
        _ => Err(fail("it must begin with http://".into())),
    }
}

/// Starts sending to `telemetry.otlp_endpoint`, on the current tokio runtime; gives the tracer that feeds it.
pub(crate) fn start(
    config: &TelemetryConfig,
    endpoint: &str,
    service: &str,
) -> Result<(SdkTracer, Exporter), TelemetryError> {
    let channel = channel(config, check(endpoint)?);
    let resource = resource(service);
    let fail = |problem: String| TelemetryError::Endpoint { endpoint: endpoint.to_owned(), problem };
    let mut exporter = SpanExporter::builder()
        .with_tonic()
        .with_channel(channel.clone())
        .with_timeout(config.otlp_timeout.0)
        // A batch that fails is dropped: the next one is waiting behind it, and newer.
        .with_retry_policy(RetryPolicy::disabled())
        .build()
        .map_err(|error| fail(error.to_string()))?;
    exporter.set_resource(&resource);

    let (stop, stopped) = watch::channel(false);
    let (processor, sending) =
        spans::queue(exporter, config.otlp_queue_spans, config.otlp_timeout.0, stopped.clone());
    let provider = SdkTracerProvider::builder()
        // `Parent::begin` decided before a span was made.
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::AlwaysOn)))
        .with_resource(resource.clone())
        .with_span_processor(processor)
        .build();
    let metrics = config.otlp_metrics.then(|| {
        let every = config.otlp_metrics_interval.0;
        tokio::spawn(metrics::send(channel, resource, every, config.otlp_timeout.0, stopped))
    });
    let exporter = Exporter { stop, spans: tokio::spawn(sending), metrics, patience: config.otlp_timeout.0 };
    Ok((provider.tracer("sightline"), exporter))
}

fn channel(config: &TelemetryConfig, endpoint: Endpoint) -> Channel {
    endpoint.timeout(config.otlp_timeout.0).connect_timeout(config.otlp_timeout.0).connect_lazy()
}

/// Who sends: `OTEL_RESOURCE_ATTRIBUTES` adds to it.
fn resource(service: &str) -> Resource {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let instance = format!("{}-{}", host.trim(), std::process::id());
    Resource::builder()
        .with_service_name(service.to_owned())
        .with_attributes([
            KeyValue::new("service.namespace", "sightline"),
            KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
            KeyValue::new("service.instance.id", instance),
        ])
        .build()
}

impl Exporter {
    /// Sends what waits and ends, within `telemetry.otlp_timeout`.
    pub(crate) async fn stop(self) {
        self.stop.send_replace(true);
        let mut tasks = vec![self.spans];
        tasks.extend(self.metrics);
        let handles: Vec<_> = tasks.iter().map(JoinHandle::abort_handle).collect();
        let all = async {
            for task in tasks {
                task.await.ok();
            }
        };
        if timeout(self.patience, all).await.is_err() {
            tracing::warn!("telemetry that was not sent within {:?} is lost", self.patience);
            handles.iter().for_each(tokio::task::AbortHandle::abort);
        }
    }
}
