//! What the server counts. The registry is the process's, so the server has a name of its own here.

use sightline_config::HumanDuration;
use sightline_mesh::server::WebOptions;
use sightline_telemetry::metrics::{recorder, render};

use crate::{
    raw::{Raw, Said},
    support::{hello, start, until},
};

/// The value of the one line that begins so.
fn value(series: &str) -> Option<f64> {
    let page = render();
    let line =
        page.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[tokio::test]
async fn calls_and_connections_are_counted_by_names_that_are_bounded() {
    // Handles are had once: before anything is served.
    recorder();
    let server = start(|setup| {
        setup.name = "counted";
        setup.web = Some(WebOptions::default());
        setup.config.max_calls = 1;
        setup.config.min_calls = 1;
        setup.config.max_queued_calls = 0;
        setup.config.max_connections = 1;
    })
    .await;
    let mut greeter = server.greeter().await;
    let waits = tokio::spawn({
        let mut greeter = greeter.clone();
        async move { greeter.hello(hello("wait")).await }
    });
    server.begun(1).await;
    greeter.hello(hello("ann")).await.unwrap_err();
    assert_eq!(value("calls_refused_total{server=\"counted\",full=\"calls\"}"), Some(1.0));
    assert_eq!(value("requests_in_flight{server=\"counted\"}"), Some(1.0));
    assert_eq!(value("active_connections{server=\"counted\"}"), Some(1.0));
    assert_eq!(value("calls_limit{server=\"counted\"}"), Some(1.0));
    assert_eq!(Raw::connect_anyway(server.address).await, Said::End);
    let refused = "connections_refused_total{server=\"counted\",setting=\"max_connections\"}";
    until(|| value(refused) == Some(1.0)).await;

    server.host.gate.cancel();
    waits.await.unwrap().unwrap();
    let hello = "grpc_method=\"greeter.v1.Greeter/Hello\"";
    let shed =
        format!("grpc_server_call_duration_seconds_count{{{hello},grpc_status=\"RESOURCE_EXHAUSTED\"}}");
    until(|| value(&shed).is_some_and(|calls| calls >= 1.0)).await;
    assert!(value(&format!("grpc_server_call_started_total{{{hello}}}")).unwrap() >= 2.0);
    let size = |what: &str| {
        let name = format!("grpc_server_call_{what}_total_compressed_message_size_bytes_sum");
        value(&format!("{name}{{{hello},grpc_status=\"OK\"}}"))
    };
    // "wait" with the two bytes of a protobuf string before it, and a greeting.
    assert!(size("rcvd").is_some_and(|bytes| bytes >= 6.0));
    assert!(size("sent").is_some_and(|bytes| bytes > 6.0));
    drop(greeter);
    until(|| value("active_connections{server=\"counted\"}") == Some(0.0)).await;
}

#[tokio::test]
async fn the_limit_on_calls_is_shown_as_it_changes() {
    recorder();
    let server = start(|setup| {
        setup.name = "adapting";
        setup.config.latency_target = HumanDuration::from_millis(1);
    })
    .await;
    let limit = || value("calls_limit{server=\"adapting\"}");
    until(|| limit() == Some(1024.0)).await;
    let greeter = server.greeter().await;
    // Each takes 50 ms, and none is refused.
    let calls = (0..20).map(|_| {
        let mut greeter = greeter.clone();
        async move { greeter.hello(hello("work")).await.unwrap() }
    });
    futures_util::future::join_all(calls).await;
    assert!(limit() < Some(1024.0), "{:?}", limit());
}
