//! values.yaml, values.schema.json and the README's table say the same.

use std::{collections::BTreeSet, fs};

use serde_json::{Map, Value, json};
use sightline_testkit::setup;

use crate::{
    fresh::assert_fresh,
    support::{chart, parse},
};

/// A value with its comment.
struct Documented {
    path: Vec<String>,
    default: String,
    comment: String,
}

/// Reads values.yaml line by line: comments above a key belong to it; a key without a value opens a map.
fn documented() -> Vec<Documented> {
    let text = fs::read_to_string(chart().join("values.yaml")).unwrap();
    let (mut path, mut comment, mut found) = (Vec::new(), Vec::new(), Vec::new());
    for line in text.lines() {
        let trimmed = line.trim_start();
        if let Some(words) = trimmed.strip_prefix("# ") {
            comment.push(words);
        } else if trimmed.is_empty() {
            comment.clear();
        } else {
            let (key, default) = trimmed.split_once(':').unwrap();
            path.truncate((line.len() - trimmed.len()) / 2);
            path.push(key.to_owned());
            if !default.is_empty() {
                let default = default.trim().to_owned();
                found.push(Documented { path: path.clone(), default, comment: comment.join(" ") });
            }
            comment.clear();
        }
    }
    found
}

#[test]
fn every_value_is_documented_and_in_the_readme() {
    let mut table = "| key | default | what it is |\n|---|---|---|\n".to_owned();
    for Documented { path, default, comment } in documented() {
        let key = path.join(".");
        assert!(comment.ends_with('.'), "{key} has no comment in values.yaml that is a sentence");
        table += &format!("| `{key}` | `{default}` | {} |\n", comment.replace('|', "\\|"));
    }
    let file = chart().join("README.md");
    let readme = fs::read_to_string(&file).unwrap();
    let (before, rest) = readme.split_once("<!-- values: ").unwrap();
    let (marker, rest) = rest.split_once("-->\n").unwrap();
    let (_, after) = rest.split_once("<!-- end of values -->").unwrap();
    let wanted = format!("{before}<!-- values: {marker}-->\n{table}<!-- end of values -->{after}");
    assert_fresh(&file, &wanted);
}

/// A list of paths of leaves: what is no map, or an empty one.
fn leaves(value: &Value, path: &str, out: &mut BTreeSet<String>) {
    match value.as_object().filter(|map| !map.is_empty()) {
        Some(map) => {
            for (key, value) in map {
                leaves(value, &format!("{path}/{key}"), out);
            }
        }
        None => {
            out.insert(path.to_owned());
        }
    }
}

/// The schema at a path of values, with references followed.
fn schema_at<'a>(root: &'a Value, path: &str) -> Option<&'a Value> {
    let mut at = root;
    for key in path.split('/').skip(1) {
        at = match at.get("properties").and_then(|properties| properties.get(key)) {
            Some(property) => follow(root, property),
            None => return at.get("additionalProperties").filter(|rest| rest.is_object()),
        };
    }
    Some(at)
}

fn follow<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    match schema.get("$ref").and_then(Value::as_str) {
        Some(reference) => root.pointer(reference.trim_start_matches('#')).unwrap(),
        None => schema,
    }
}

fn schema() -> Value {
    serde_json::from_str(&fs::read_to_string(chart().join("values.schema.json")).unwrap()).unwrap()
}

#[test]
fn the_schema_knows_every_value_and_no_other() {
    let (schema, values) = (schema(), parse(&fs::read_to_string(chart().join("values.yaml")).unwrap()));
    let mut paths = BTreeSet::new();
    leaves(&values[0], "", &mut paths);
    for path in &paths {
        assert!(schema_at(&schema, path).is_some(), "{path} is not in the schema");
    }
    let mut known = BTreeSet::new();
    properties(&schema, &schema, "", &mut known);
    for path in known {
        let there = values[0].pointer(&path).is_some();
        // Below these a value has no default.
        let below = ["/settings/", "/policy/", "/affinity/", "/global", "/resources/"];
        assert!(there || below.iter().any(|part| path.contains(part)), "{path} is not in values.yaml");
    }
}

fn properties(root: &Value, schema: &Value, path: &str, out: &mut BTreeSet<String>) {
    for (key, property) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let path = format!("{path}/{key}");
        properties(root, follow(root, property), &path, out);
        out.insert(path);
    }
}

#[test]
fn the_schema_is_closed() {
    fn walk(at: &Value, path: &str) {
        if at.get("type") == Some(&json!("object")) {
            let rest = &at["additionalProperties"];
            // Maps of labels and amounts have any key; what is inside affinity terms Kubernetes checks.
            let closed = *rest == json!(false) || rest.is_object() || path.contains("/affinity/properties/");
            assert!(closed, "{path} takes keys that nobody reads");
        }
        match at {
            Value::Object(map) => map.iter().for_each(|(key, value)| walk(value, &format!("{path}/{key}"))),
            Value::Array(list) => list.iter().for_each(|value| walk(value, path)),
            _ => {}
        }
    }
    walk(&schema(), "");
}

/// Keys that templates write themselves.
const OWN: [(&str, &[&str]); 10] = [
    ("node", &["data_dir", "insecure"]),
    ("mesh", &[]),
    ("discovery", &["kubernetes_domain"]),
    ("server", &["lame_duck"]),
    ("telemetry", &["log", "log_format", "admin_listen", "otlp_endpoint"]),
    ("ingest", &["listen", "classifier", "ratelimiter", "stats", "drain_timeout"]),
    ("policy", &[]),
    ("classifier", &["listen", "models", "device", "drain_timeout"]),
    ("ratelimiter", &["listen", "rules", "drain_timeout"]),
    ("stats", &["listen", "database", "drain_timeout"]),
];

/// The schema of each section's settings, from docs/CONFIG.md.
fn settings() -> Value {
    let text = fs::read_to_string(setup::repository().join("docs/CONFIG.md")).unwrap();
    let mut sections = Map::new();
    for (section, own) in OWN {
        let (_, rest) = text.split_once(&format!("## `[{section}]`")).unwrap();
        let rows = rest.split("\n## ").next().unwrap().lines().filter(|line| line.starts_with("| `"));
        let mut properties = Map::new();
        for row in rows {
            let cells: Vec<&str> = row.split(" | ").collect();
            let key = cells[0].trim_start_matches("| `").trim_end_matches('`');
            // URLs carry passwords: they come from Secrets, as certificates do.
            if !own.contains(&key) && !key.ends_with("_url") && !key.ends_with("_ca_file") {
                properties.insert(key.to_owned(), type_of(cells[2].trim_matches('`')));
            }
        }
        let section_schema =
            json!({"type": "object", "additionalProperties": false, "properties": properties});
        sections.insert(section.to_owned(), section_schema);
    }
    sections.into()
}

fn type_of(default: &str) -> Value {
    match default.chars().next() {
        // Without a default its type does not show.
        _ if default == "unset" => json!({"type": ["string", "number"]}),
        Some('[') => json!({"type": "array", "items": {"type": "string"}}),
        Some('0'..='9' | '-') => json!({"type": "number"}),
        Some('t' | 'f') => json!({"type": "boolean"}),
        _ => json!({"type": "string"}),
    }
}

#[test]
fn the_schema_has_the_settings_of_the_program() {
    let mut wanted = schema();
    wanted["$defs"]["settings"] = settings();
    assert_fresh(
        &chart().join("values.schema.json"),
        &(serde_json::to_string_pretty(&wanted).unwrap() + "\n"),
    );
}
