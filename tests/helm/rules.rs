//! Alerts and dashboard: Prometheus reads them, and they ask for metrics that there are.

use std::{collections::BTreeSet, fs, path::Path, process::Command};

use serde_json::{Value, json};
use sightline_servers::find;
use sightline_testkit::setup;

use crate::support::{Objects, chart, there};

/// Metrics of Prometheus itself, the kubelet and kube-state-metrics.
const OF_OTHERS: [&str; 3] =
    ["up", "container_memory_working_set_bytes", "kube_pod_container_resource_limits"];

fn alerts() -> Option<Value> {
    Some(Objects::of("production", &[])?.get("PrometheusRule", "alerts")["spec"].clone())
}

fn panels() -> Vec<String> {
    let text = fs::read_to_string(chart().join("files/dashboard.json")).unwrap();
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let targets =
        dashboard["panels"].as_array().unwrap().iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    targets.map(|target| target["expr"].as_str().unwrap().to_owned()).collect()
}

/// Runs promtool on a file in `folder` that holds this.
fn promtool(folder: &Path, command: &str, name: &str, content: &Value) -> Option<()> {
    let promtool = there(find("promtool"))?;
    fs::write(folder.join(name), content.to_string()).unwrap();
    let output = Command::new(promtool).args([command, "rules", name]).current_dir(folder).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
    Some(())
}

#[test]
fn prometheus_reads_the_alerts_and_the_dashboard() {
    let Some(alerts) = alerts() else { return };
    assert!(alerts["groups"][0]["rules"].as_array().unwrap().len() >= 8);
    let folder = tempfile::tempdir().unwrap();
    let Some(()) = promtool(folder.path(), "check", "alerts.yaml", &alerts) else { return };
    let rules: Vec<Value> = panels()
        .iter()
        .enumerate()
        .map(|(number, expr)| {
            let expr = expr.replace("$namespace", "x").replace("$__rate_interval", "5m");
            json!({"record": format!("panel:{number}"), "expr": expr})
        })
        .collect();
    assert!(rules.len() >= 15);
    promtool(folder.path(), "check", "panels.yaml", &json!({"groups": [{"name": "panels", "rules": rules}]}));
}

/// Names before a `{`.
fn metrics_in(expression: &str) -> BTreeSet<String> {
    let name = |before: &str| {
        let word = |letter: char| letter.is_ascii_alphanumeric() || letter == '_' || letter == ':';
        let start = before.rfind(|letter| !word(letter)).map_or(0, |place| place + 1);
        before[start..].to_owned()
    };
    expression.match_indices('{').map(|(place, _)| name(&expression[..place])).collect()
}

fn sources(folder: &Path, text: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            *text += &fs::read_to_string(path).unwrap();
        }
    }
}

#[test]
fn every_metric_asked_for_is_one_that_the_program_has() {
    let Some(alerts) = alerts() else { return };
    let rules = alerts["groups"][0]["rules"].as_array().unwrap().clone();
    let expressions = rules.iter().map(|rule| rule["expr"].as_str().unwrap().to_owned()).chain(panels());
    let asked: BTreeSet<String> = expressions.flat_map(|expression| metrics_in(&expression)).collect();
    let mut text = String::new();
    for folder in ["crates", "services"] {
        sources(&setup::repository().join(folder), &mut text);
    }
    assert!(asked.len() > 15, "{asked:?}");
    for metric in asked.iter().filter(|metric| !OF_OTHERS.contains(&metric.as_str())) {
        let name = metric.trim_end_matches("_bucket");
        assert!(text.contains(&format!("\"{name}\"")), "{metric} is not a metric of ours");
    }
}

#[test]
fn alerts_fire_when_they_should_and_only_then() {
    let Some(alerts) = alerts() else { return };
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("alerts.yaml"), alerts.to_string()).unwrap();
    let frames = |labels: &str, each: &str| {
        let series = format!("ingest_frames_total{{namespace=\"sightline\",{labels}}}");
        json!({"series": series, "values": each})
    };
    let case = |series: &[Value], firing: &[&str]| {
        let alert = |name: &str| {
            let fires = firing.contains(&name);
            json!({"eval_time": "12m", "alertname": name, "exp_alerts": if fires { json!([{}]) } else { json!([]) }})
        };
        let names = ["SightlineErrorsHigh", "SightlineEventsDropped", "SightlineQueueDeep"];
        let mut tests: Vec<Value> = names.iter().map(|name| alert(name)).collect();
        // promtool compares labels and annotations too.
        for test in &mut tests {
            let name = test["alertname"].as_str().unwrap().to_owned();
            let rule = rules(&alerts).into_iter().find(|rule| rule["alert"] == name.as_str()).unwrap();
            for alert in test["exp_alerts"].as_array_mut().unwrap() {
                *alert = json!({"exp_labels": rule["labels"], "exp_annotations": rule["annotations"]});
            }
        }
        json!({"interval": "1m", "input_series": series, "alert_rule_test": tests})
    };
    let dropped =
        json!({"series": "ingest_dropped_events_total{namespace=\"sightline\"}", "values": "0+1x15"});
    let deep =
        json!({"series": "classifier_queue_depth{namespace=\"sightline\",model=\"m\"}", "values": "6000x15"});
    let ok = frames("result=\"ok\",reason=\"\"", "0+90x15");
    let tests = [
        case(
            &[ok.clone(), frames("result=\"error\",reason=\"SERVICE_UNAVAILABLE\"", "0+10x15")],
            &["SightlineErrorsHigh"],
        ),
        case(&[ok.clone(), frames("result=\"error\",reason=\"IMAGE_CORRUPT\"", "0+10x15")], &[]),
        case(&[ok.clone(), frames("result=\"error\",reason=\"INTERNAL\"", "0+1x15")], &[]),
        case(&[ok, dropped], &["SightlineEventsDropped"]),
        case(&[deep], &["SightlineQueueDeep"]),
    ];
    let content = json!({"rule_files": ["alerts.yaml"], "tests": tests});
    promtool(folder.path(), "test", "tests.yaml", &content);
}

fn rules(alerts: &Value) -> Vec<Value> {
    alerts["groups"][0]["rules"].as_array().unwrap().clone()
}

/// Whether the alert on errors leaves a reason out.
fn left_out(alerts: &Value, reason: &str) -> bool {
    let rule = rules(alerts).into_iter().find(|rule| rule["alert"] == "SightlineErrorsHigh").unwrap();
    let expression = rule["expr"].as_str().unwrap().to_owned();
    let (_, rest) = expression.split_once("reason!~\"").unwrap();
    rest.split('"').next().unwrap().split('|').any(|pattern| match pattern.strip_suffix(".*") {
        Some(start) => reason.starts_with(start),
        None => reason == pattern,
    })
}

#[test]
fn errors_that_callers_make_alert_nobody() {
    let Some(alerts) = alerts() else { return };
    let text = fs::read_to_string(setup::repository().join("services/ingest/src/error.rs")).unwrap();
    let mut count = 0;
    for line in text.lines().filter(|line| line.contains("=> (Code::")) {
        let reason = line.split('"').nth(1).unwrap();
        let code = line.split("Code::").nth(1).unwrap().split(',').next().unwrap();
        let callers = !matches!(code, "Unavailable" | "Internal") && reason != "OVERLOADED";
        assert_eq!(left_out(&alerts, reason), callers, "{reason}");
        count += 1;
    }
    assert!(count > 15);
    for ours in ["INTERNAL", "SERVICE_UNAVAILABLE", "DEADLINE_EXCEEDED", "OVERLOADED"] {
        assert!(!left_out(&alerts, ours), "{ours}");
    }
}
