//! The lines a process really writes: with the trace's id inside of a trace, and otherwise as without traces.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // a panic here is a failed test

use std::{
    env,
    process::{Command, Stdio},
};

use sightline_telemetry::{TelemetryConfig, logs::Format, root_span, trace::Parent};
use tracing::{Instrument, error, error_span};

/// Set for the process that writes: how, and whether traces are sent.
const CHILD: &str = "SIGHTLINE_TELEMETRY_TEST_CHILD";
const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// The process that writes; does nothing when it runs as a test of its own.
#[tokio::test]
async fn child() {
    let Ok(how) = env::var(CHILD) else { return };
    let config = TelemetryConfig {
        // Spans of traces are of level info: what is logged must not decide what is traced.
        log: "error".into(),
        log_format: if how.contains("json") { Format::Json } else { Format::Text },
        // Nobody listens at the discard port.
        otlp_endpoint: how.contains("traced").then(|| "http://127.0.0.1:9".into()),
        ..TelemetryConfig::default()
    };
    let telemetry = sightline_telemetry::start(&config, "test").unwrap();
    error!("outside");
    let flags = if how.contains("kept") { "01" } else { "00" };
    let parent = Parent::read(&format!("00-{TRACE}-00f067aa0ba902b7-{flags}")).begin();
    let span = root_span!(parent, "a.b", otel.kind = "server");
    assert_eq!(span.is_disabled(), !how.contains("kept"));
    let inside = async { error_span!("for.logs", frame = 17).in_scope(|| error!(field = 1, "inside")) };
    parent.around(inside.instrument(span)).await;
    telemetry.stop().await;
}

/// The lines for "outside" and "inside".
fn lines(how: &str) -> [String; 2] {
    let output = Command::new(env::current_exe().unwrap())
        .args(["child", "--exact", "--nocapture"])
        .env(CHILD, how)
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    ["outside", "inside"].map(|word| {
        let line = text.lines().find(|line| line.contains(word) && line.contains("ERROR"));
        line.unwrap_or_else(|| panic!("no {word} in {text}")).to_owned()
    })
}

#[test]
fn a_json_line_inside_of_a_trace_has_its_id_whether_it_is_kept_or_not() {
    for how in ["json traced", "json traced kept"] {
        let [outside, inside] = lines(how);
        let inside: serde_json::Value = serde_json::from_str(&inside).unwrap_or_else(|_| panic!("{inside}"));
        assert_eq!(inside["trace_id"], TRACE, "{how}");
        assert_eq!((&inside["message"], &inside["field"]), (&"inside".into(), &1.into()));
        let own = serde_json::json!({ "name": "for.logs", "frame": 17 });
        assert_eq!(inside["span"], own, "the log's own span");
        let outside: serde_json::Value = serde_json::from_str(&outside).unwrap();
        assert_eq!(outside.get("trace_id"), None);
    }
}

#[test]
fn a_line_of_text_inside_of_a_trace_has_its_id() {
    let [outside, inside] = lines("text traced");
    assert!(inside.ends_with(&format!("inside field=1 trace_id={TRACE}")), "{inside}");
    assert!(outside.ends_with("ERROR outside"), "{outside}");
}

#[test]
fn without_an_endpoint_lines_are_as_they_were() {
    let [_, inside] = lines("json");
    let inside: serde_json::Value = serde_json::from_str(&inside).unwrap();
    assert_eq!(inside.get("trace_id"), None);
    assert_eq!(inside["span"], serde_json::json!({ "name": "for.logs", "frame": 17 }));
    let [_, inside] = lines("text");
    assert!(inside.ends_with("inside field=1") && inside.contains("for.logs{frame=17}"), "{inside}");
}
