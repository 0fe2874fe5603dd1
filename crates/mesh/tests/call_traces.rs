//! What a collector and a scrape see of calls: spans, and metrics under gRPC's names.

#![allow(clippy::unwrap_used)] // a panic here is a failed test

#[path = "calls/echo.rs"]
mod echo;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use echo::{Net, SAFE, UNKNOWN, header, hello, one, policies, previous, unary};
use opentelemetry_proto::tonic::{
    collector::trace::v1::{
        ExportTraceServiceRequest, ExportTraceServiceResponse,
        trace_service_server::{TraceService, TraceServiceServer},
    },
    common::v1::any_value::Value,
    trace::v1::{Span, span::SpanKind},
};
use sightline_mesh::client::{CallOptions, MethodPolicy};
use sightline_telemetry::{
    TelemetryConfig, metrics, root_span,
    trace::{Parent, TRACEPARENT},
};
use tokio::net::TcpListener;
use tonic::{
    Request, Response, Status,
    transport::{Server, server::TcpIncoming},
};
use tracing::Instrument;

#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let resources = request.into_inner().resource_spans;
        let scopes = resources.into_iter().flat_map(|resource| resource.scope_spans);
        self.0.lock().unwrap().extend(scopes.flat_map(|scope| scope.spans));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

impl Collector {
    async fn serve(&self) -> TelemetryConfig {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let server = Server::builder().add_service(TraceServiceServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        TelemetryConfig {
            otlp_endpoint: Some(endpoint),
            otlp_metrics: false,
            otlp_sample: 1.0,
            ..TelemetryConfig::default()
        }
    }
}

/// An attribute as text.
fn attribute(span: &Span, key: &str) -> String {
    let found = span.attributes.iter().find(|attribute| attribute.key == key);
    match found.and_then(|attribute| attribute.value.clone()?.value) {
        Some(Value::StringValue(text)) => text,
        Some(Value::IntValue(number)) => number.to_string(),
        Some(Value::BoolValue(truth)) => truth.to_string(),
        other => format!("{other:?}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_is_a_span_with_its_attempts_beneath_and_counted_by_grpcs_names() {
    let collector = Collector::default();
    let telemetry = sightline_telemetry::start(&collector.serve().await, "sightline-test").unwrap();
    let net = Net::default();
    let seen = Arc::new(Mutex::new(Vec::new()));
    for authority in ["a:1", "b:1"] {
        let told = Arc::clone(&seen);
        net.serve(authority, move |request| {
            told.lock().unwrap().push(header(&request, TRACEPARENT).unwrap_or_default().to_owned());
            async move {
                match previous(&request) {
                    0 => Err(Status::unavailable("restarting")),
                    1 => {
                        tokio::time::sleep(Duration::from_secs(20)).await;
                        one("late")
                    }
                    _ => one("done"),
                }
            }
        });
    }
    let policy = MethodPolicy::idempotent().hedge_after(Duration::from_millis(300));
    let channel = net.channel(&["a:1", "b:1"], &policies(policy), CallOptions::default());
    let root = root_span!(Parent::default(), "test.root");
    assert_eq!(unary(&channel, SAFE, hello()).instrument(root).await.unwrap(), "done");
    unary(&channel, UNKNOWN, hello()).await.unwrap_err();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let rendered = metrics::render();
    telemetry.stop().await;

    spans(&collector.0.lock().unwrap(), &seen.lock().unwrap());
    numbers(&rendered);
}

/// What tells attempts apart.
const FACTS: [&str; 5] = [
    "previous-rpc-attempts",
    "transparent-retry",
    "mesh.attempt.hedged",
    "rpc.grpc.status_code",
    "mesh.attempt.outcome",
];

fn spans(spans: &[Span], told: &[String]) {
    let root = spans.iter().find(|span| span.name == "test.root").unwrap();
    let call = spans.iter().find(|span| span.parent_span_id == root.span_id).unwrap();
    assert_eq!(call.name, "test.Echo/Safe");
    assert_eq!(call.kind(), SpanKind::Client);
    for (key, expected) in [
        ("rpc.system", "grpc"),
        ("rpc.service", "test.Echo"),
        ("rpc.method", "Safe"),
        ("rpc.grpc.status_code", "0"),
        ("server.address", "echo"),
    ] {
        assert_eq!(attribute(call, key), expected, "{key}");
    }
    let mut attempts: Vec<&Span> = spans.iter().filter(|span| span.parent_span_id == call.span_id).collect();
    attempts.sort_by_key(|span| span.start_time_unix_nano);
    let facts: Vec<_> = attempts.iter().map(|span| FACTS.map(|key| attribute(span, key))).collect();
    let expected = [
        ["0", "false", "false", "14", "None"],
        ["1", "false", "false", "1", "None"],
        ["2", "false", "true", "0", "won"],
    ];
    assert_eq!(facts, expected, "{facts:?}");
    for (span, told) in attempts.iter().zip(told) {
        assert_eq!(*told, format!("00-{}-{}-01", hex(&span.trace_id), hex(&span.span_id)));
        assert!(["a", "b"].contains(&attribute(span, "server.address").as_str()));
        let rest = ["server.port", "rpc.service", "rpc.method"].map(|key| attribute(span, key));
        assert_eq!(rest, ["1", "test.Echo", "Safe"]);
        assert_eq!(span.trace_id, root.trace_id);
    }
}

fn numbers(rendered: &str) {
    let of = r#"{grpc_method="test.Echo/Safe",grpc_target="echo""#;
    for line in [
        format!("grpc_client_attempt_started_total{of}}} 3"),
        format!("grpc_client_attempt_duration_seconds_count{of},grpc_status=\"UNAVAILABLE\"}} 1"),
        format!("grpc_client_attempt_duration_seconds_count{of},grpc_status=\"CANCELLED\"}} 1"),
        format!("grpc_client_attempt_duration_seconds_count{of},grpc_status=\"OK\"}} 1"),
        format!("grpc_client_call_duration_seconds_count{of},grpc_status=\"OK\"}} 1"),
        // "hello" and "done", each with the two bytes of a protobuf string before it.
        format!(
            "grpc_client_attempt_sent_total_compressed_message_size_bytes_sum{of},grpc_status=\"OK\"}} 7"
        ),
        format!(
            "grpc_client_attempt_rcvd_total_compressed_message_size_bytes_sum{of},grpc_status=\"OK\"}} 6"
        ),
        "grpc_client_attempt_started_total{grpc_method=\"other\",grpc_target=\"echo\"} 1".to_owned(),
        "mesh_retries_total{service=\"echo\"} 1".to_owned(),
        "mesh_hedges_total{service=\"echo\"} 1".to_owned(),
        "grpc_client_call_duration_seconds_bucket".to_owned(),
    ] {
        assert!(rendered.contains(&line), "{line} in\n{}", grpc(rendered));
    }
    assert!(!rendered.contains("Unknown"), "a method without a policy is no label");
}

fn grpc(rendered: &str) -> String {
    rendered
        .lines()
        .filter(|line| line.contains("grpc_") || line.contains("mesh_"))
        .collect::<Vec<_>>()
        .join("\n")
}
