//! `models list`, `limits check`, `stats query`.

use std::fs;

use serde_json::json;
use sightline_testkit::{Process, eventually, frames};

use crate::support::{counted, sightline};

#[tokio::test(flavor = "multi_thread")]
async fn a_running_mesh_tells_its_models_limits_and_counts() {
    let folder = tempfile::tempdir().unwrap();
    let rules = folder.path().join("limits.toml");
    fs::write(&rules, "[[rule]]\nname = \"strict\"\nkeys = [\"user\"]\nlimit = 1\nper = \"1h\"\nburst = 1\n")
        .unwrap();
    let rules = format!("ratelimiter.rules={}", rules.display());
    let Some(process) = Process::dev(&folder, &[&rules]) else { return };
    models(&process);
    limits(&process);
    stats(&process, &folder.path().join("photo.png").display().to_string()).await;
}

fn models(process: &Process) {
    let classifier = process.uri("classifier");
    let said = sightline(&["models", "list", "--json", "--endpoint", &classifier]).unwrap();
    assert_eq!((said.code, said.lines().len()), (0, 1), "{said:?}");
    let model = &said.lines()[0];
    for (field, value) in [
        ("name", json!("small")),
        ("version", json!("1")),
        ("default", json!(true)),
        ("device", json!("cpu")),
        ("width", json!(32)),
        ("height", json!(32)),
        ("classes", json!(["safe", "suggestive", "explicit"])),
        ("tolerance", json!(1e-4)),
        ("license", json!("Apache-2.0")),
        ("source", json!("made in a test")),
    ] {
        assert_eq!(model[field], value, "{field}");
    }
    assert!(model["digest"].as_str().unwrap().starts_with("sha256:"), "{model}");
    assert!(
        model["executors"].as_u64().unwrap() >= 1 && model["max_batch"].as_u64().unwrap() >= 1,
        "{model}"
    );
    let table = sightline(&["models", "list", "--endpoint", &classifier]).unwrap().ok();
    assert!(table.contains("small@1") && table.contains("32 × 32"), "{table}");
}

fn limits(process: &Process) {
    let endpoint = process.uri("ratelimiter");
    let check = ["limits", "check", "--json", "--endpoint", &endpoint, "user=bob"];
    let said = sightline(&check).unwrap();
    assert_eq!((said.code, &said.lines()[0]["allowed"]), (0, &json!(true)), "{said:?}");
    let said = sightline(&check).unwrap();
    let answer = &said.lines()[0];
    assert_eq!((said.code, &answer["allowed"], &answer["refused_by"]), (1, &json!(false), &json!("strict")));
    let wait = answer["retry_after_seconds"].as_f64().unwrap();
    assert!((3540.0..=3600.0).contains(&wait), "{answer}");
    assert_eq!((&answer["rules"][0]["limit"], &answer["rules"][0]["remaining"]), (&json!(1), &json!(0)));

    let said = sightline(&["limits", "check", "--endpoint", &endpoint, "user=bob"]).unwrap();
    assert!(said.code == 1 && said.out.starts_with("refused by strict; retry after 3"), "{said:?}");
    let said = sightline(&["limits", "check", "--endpoint", &endpoint, "bob"]).unwrap();
    said.refused(&["\"bob\": write it as user=ada"]);
}

async fn stats(process: &Process, photo: &str) {
    fs::write(photo, frames::png(1, 64)).unwrap();
    let (endpoint, stats) = (process.uri("ingest"), process.uri("stats"));
    // The second frame is refused by the rule, and a refused frame is not counted.
    for code in [0, 1] {
        let said =
            sightline(&["classify", "--json", "--endpoint", &endpoint, "--user", "ada", photo]).unwrap();
        assert_eq!(said.code, code, "{said:?}");
    }
    eventually!(counted(process) == 1);
    let by_user = ["stats", "query", "--json", "--endpoint", &stats, "--by", "user,source"];
    let said = sightline(&by_user).unwrap();
    assert_eq!(said.lines(), [json!({ "user": "ada", "source": "MODEL", "frames": 1 })], "{said:?}");
    let table = sightline(&["stats", "query", "--endpoint", &stats, "--bucket", "day"]).unwrap().ok();
    assert!(table.starts_with("day") && table.trim_end().ends_with('1'), "{table}");
}
