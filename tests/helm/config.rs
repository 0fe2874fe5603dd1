//! The chart and the program agree on settings.

use std::{collections::BTreeSet, fs};

use sightline_testkit::{Process, setup};

use crate::support::{Objects, PROFILES, TLS};

#[test]
fn every_variable_of_a_pod_is_a_setting() {
    let documented = fs::read_to_string(setup::repository().join("docs/CONFIG.md")).unwrap();
    for profile in &PROFILES {
        let Some(objects) = Objects::of(profile.name, &[]) else { return };
        let mut names = BTreeSet::new();
        for (_, pod) in objects.pods() {
            let env = pod["containers"][0]["env"].as_array().into_iter().flatten();
            names.extend(env.map(|entry| entry["name"].as_str().unwrap().to_owned()));
        }
        for name in names {
            assert!(documented.contains(&format!("`{name}`")), "{name} is no setting");
        }
    }
}

/// Settings of every type, as values.yaml takes them.
const SETTINGS: [&str; 8] = [
    r#"node.settings={"worker_threads":2}"#,
    r#"mesh.settings={"balance":"round_robin","zone_stay_above":0.5}"#,
    r#"discovery.settings={"dns_ceiling":"10s"}"#,
    r#"server.settings={"max_connection_age":"10m","max_calls":100}"#,
    r#"ingest.settings={"cors_origins":["https://a.example.com"],"max_pixels":33177600,"cache_ttl":"1m"}"#,
    r#"ratelimiter.settings={"max_keys":20000000}"#,
    r#"stats.settings={"durability":"process"}"#,
    r#"policy={"severe":1,"mild":0.25,"version":"2 \"quoted\""}"#,
];

#[test]
fn the_program_takes_every_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let tls = [TLS, &[r#"edgeTls.secretName="edge""#, r#"tls.callers.stats=["spiffe://a/*"]"#]].concat();
    let more = [(&PROFILES[1], &SETTINGS[..]), (&PROFILES[1], &tls)];
    for (profile, set) in PROFILES.iter().map(|profile| (profile, &[][..])).chain(more) {
        let Some(objects) = Objects::of(profile.name, set) else { return };
        let files = objects.0.iter().filter(|object| object["data"]["sightline.toml"].is_string());
        for object in files {
            let file = folder.path().join("sightline.toml");
            fs::write(&file, object["data"]["sightline.toml"].as_str().unwrap()).unwrap();
            let Some(mut command) = Process::command() else { return };
            let output = command.args(["config", "print", "--config"]).arg(&file).output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{} of {}: {said}", object["metadata"]["name"], profile.name);
        }
    }
}
