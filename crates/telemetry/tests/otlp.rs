//! Metrics arrive at a collector, over the wire.

#![allow(clippy::unwrap_used)] // a panic here is a failed test

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use opentelemetry_proto::tonic::{
    collector::metrics::v1::{
        ExportMetricsServiceRequest, ExportMetricsServiceResponse,
        metrics_service_server::{MetricsService, MetricsServiceServer},
    },
    metrics::v1::metric::Data,
};
use sightline_config::HumanDuration;
use sightline_telemetry::TelemetryConfig;
use tokio::{net::TcpListener, time::timeout};
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};

/// Keeps what it was sent, or takes no metrics at all.
#[derive(Clone, Default)]
struct Collector {
    refuses: bool,
    asked: Arc<AtomicUsize>,
    last: Arc<Mutex<Option<ExportMetricsServiceRequest>>>,
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.refuses {
            return Err(Status::unimplemented("traces only"));
        }
        *self.last.lock().unwrap() = Some(request.into_inner());
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

impl Collector {
    async fn serve(&self) -> TelemetryConfig {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let server = Server::builder().add_service(MetricsServiceServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        TelemetryConfig {
            otlp_endpoint: Some(endpoint),
            otlp_metrics_interval: HumanDuration(Duration::from_millis(50)),
            ..TelemetryConfig::default()
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_metrics_show_is_sent_and_once_more_at_the_end() {
    let collector = Collector::default();
    let telemetry = sightline_telemetry::start(&collector.serve().await, "sightline-test").unwrap();
    metrics::counter!("otlp_test_total", "result" => "ok").increment(3);
    for seconds in [0.003, 0.3] {
        metrics::histogram!("otlp_test_seconds").record(seconds);
    }
    telemetry.stop().await;

    let sent = collector.last.lock().unwrap().take().unwrap();
    let [resource] = &sent.resource_metrics[..] else { panic!("{sent:?}") };
    let attributes = format!("{:?}", resource.resource);
    for text in ["service.name", "sightline-test", "service.version", "service.instance.id"] {
        assert!(attributes.contains(text), "{text} in {attributes}");
    }
    let find = |name: &str| {
        let all = resource.scope_metrics.iter().flat_map(|scope| &scope.metrics);
        all.filter(|metric| metric.name == name).find_map(|metric| metric.data.clone()).unwrap()
    };
    let Data::Sum(sum) = find("otlp_test_total") else { panic!("no sum") };
    assert!(sum.is_monotonic && format!("{:?}", sum.data_points[0].value).contains("3.0"), "{sum:?}");
    let Data::Histogram(histogram) = find("otlp_test_seconds") else { panic!("no histogram") };
    let point = &histogram.data_points[0];
    assert!(point.count == 2 && (point.sum.unwrap() - 0.303).abs() < 1e-9, "{point:?}");
    assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
    assert!(matches!(find("process_resident_memory_bytes"), Data::Gauge(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_of_traces_is_asked_once() {
    let collector = Collector { refuses: true, ..Collector::default() };
    let telemetry = sightline_telemetry::start(&collector.serve().await, "sightline-test").unwrap();
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(collector.asked.load(Ordering::SeqCst), 1);
    timeout(Duration::from_secs(5), telemetry.stop()).await.unwrap();
    assert_eq!(collector.asked.load(Ordering::SeqCst), 1);
}

#[test]
fn settings_that_cannot_be_are_named() {
    for (change, name) in [
        (TelemetryConfig { otlp_sample: 1.5, ..TelemetryConfig::default() }, "otlp_sample"),
        (TelemetryConfig { otlp_queue_spans: 0, ..TelemetryConfig::default() }, "otlp_queue_spans"),
        (
            TelemetryConfig { otlp_timeout: HumanDuration::from_secs(0), ..TelemetryConfig::default() },
            "otlp_timeout",
        ),
        (
            TelemetryConfig { otlp_endpoint: Some("jaeger:4317".into()), ..TelemetryConfig::default() },
            "http://",
        ),
        (
            TelemetryConfig {
                otlp_endpoint: Some("https://jaeger:4317".into()),
                ..TelemetryConfig::default()
            },
            "TLS",
        ),
        (TelemetryConfig { log: "x=y=z".into(), ..TelemetryConfig::default() }, "telemetry.log"),
    ] {
        let error = change.validate().unwrap_err().to_string();
        assert!(error.contains(name) && error.contains("`telemetry."), "{error}");
    }
}
