//! The Dockerfile, without a container engine: its instructions are read, and what it puts together runs as in a container.

use std::{collections::BTreeSet, fs, process::Command};

use serde_json::Value;
use sightline_testkit::{Process, frames, setup};

use crate::support::{Objects, Profile, chart, render};

/// One instruction with its words; lines that go on are joined.
struct Instruction {
    name: String,
    text: String,
}

fn instructions() -> Vec<Instruction> {
    let text = fs::read_to_string(setup::repository().join("Dockerfile")).unwrap();
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let joined = lines.join("\n").replace("\\\n", " ");
    let split = |line: &str| {
        let (name, text) = line.split_once(' ').unwrap();
        Instruction { name: name.to_owned(), text: text.split_whitespace().collect::<Vec<_>>().join(" ") }
    };
    joined.lines().filter(|line| !line.trim().is_empty()).map(split).collect()
}

/// The instructions of the stage that the image is made from.
fn last_stage(all: &[Instruction]) -> &[Instruction] {
    let start = all.iter().rposition(|instruction| instruction.name == "FROM").unwrap();
    &all[start..]
}

fn only<'a>(stage: &'a [Instruction], name: &str) -> &'a str {
    let mut found = stage.iter().filter(|instruction| instruction.name == name);
    let text = &found.next().unwrap_or_else(|| panic!("no {name}")).text;
    assert!(found.next().is_none(), "two of {name}");
    text
}

#[test]
fn every_stage_starts_from_something_known() {
    let known =
        ["ARG", "FROM", "RUN", "ENV", "WORKDIR", "COPY", "USER", "EXPOSE", "STOPSIGNAL", "ENTRYPOINT", "CMD"];
    let mut stages = BTreeSet::new();
    for Instruction { name, text } in instructions() {
        assert!(known.contains(&name.as_str()), "{name}");
        let words: Vec<&str> = text.split(' ').collect();
        match name.as_str() {
            "FROM" => {
                for base in [words[0].replace("${VARIANT}", "cpu"), words[0].replace("${VARIANT}", "cuda")] {
                    let debian_12 = base.contains(":") && base.contains("bookworm");
                    assert!(stages.contains(&base) || debian_12, "FROM {base}");
                }
                if let [_, "AS", stage] = words[..] {
                    stages.insert(stage.to_owned());
                }
            }
            "COPY" => match words[0].strip_prefix("--from=") {
                Some(stage) => assert!(stages.contains(stage), "COPY {text}"),
                None => assert!(setup::repository().join(words[0]).exists(), "COPY {text}"),
            },
            "RUN" if text.contains("apt-get install") => {
                assert!(
                    text.contains("--no-install-recommends") && text.ends_with("rm -rf /var/lib/apt/lists/*")
                );
            }
            _ => {}
        }
    }
}

#[test]
fn the_image_is_what_the_chart_expects() {
    let all = instructions();
    let stage = last_stage(&all);
    let Some(objects) = Objects::of("distributed", &[]) else { return };
    let pod = objects.pod("classifier");
    let user = &pod["securityContext"];
    assert_eq!(only(stage, "USER"), format!("{}:{}", user["runAsUser"], user["runAsGroup"]));
    assert_eq!(only(stage, "ENTRYPOINT"), r#"["/opt/sightline/bin/sightline"]"#);
    let exposed: BTreeSet<String> = only(stage, "EXPOSE").split(' ').map(ToOwned::to_owned).collect();
    for service in ["ingest", "classifier", "ratelimiter", "stats"] {
        for port in objects.pod(service)["containers"][0]["ports"].as_array().unwrap() {
            assert!(exposed.contains(&port["containerPort"].to_string()), "{service}");
        }
    }
    let layout = fs::read_to_string(setup::repository().join("docker/layout.sh")).unwrap();
    assert!(objects.config("classifier").contains("/opt/sightline/models/nsfwjs-mobilenet-v2"));
    assert!(layout.contains("/opt/sightline/models/nsfwjs-mobilenet-v2"));
    // Any other place is read-only: what the program writes to is a volume.
    assert_eq!(only(stage, "WORKDIR"), "/var/lib/sightline");
}

#[test]
fn the_build_uses_the_versions_of_the_repository() {
    let read = |path: &str| fs::read_to_string(setup::repository().join(path)).unwrap();
    let dockerfile = read("Dockerfile");
    let rust =
        read("Cargo.toml").lines().find_map(|line| line.strip_prefix("rust-version = ").map(str::to_owned));
    assert!(dockerfile.contains(&format!("FROM rust:{}-", rust.unwrap().trim_matches('"'))));
    let constant = |path: &str, name: &str| {
        let text = read(path);
        let line =
            text.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{name} in {path}"));
        line.rsplit('"').nth(1).unwrap().to_owned()
    };
    let libtorch = constant("xtask/src/libtorch.rs", "const INSTALL_FOLDER");
    let model = constant("xtask/src/model.rs", "pub(crate) const DEFAULT:");
    assert_eq!(dockerfile.matches(&format!("/cache/{libtorch} ")).count(), 2);
    assert_eq!(dockerfile.matches(&format!("/cache/models/{model} ")).count(), 2);
    let version = constant("xtask/src/libtorch.rs", "pub const VERSION");
    assert!(read("docker/layout.sh").contains(&format!("torch=={version}\n")));

    // What the build needs is not left out of its context.
    let ignored: BTreeSet<String> = read(".dockerignore").lines().map(ToOwned::to_owned).collect();
    for needed in [
        "Cargo.toml",
        "Cargo.lock",
        "crates",
        "services",
        "tests",
        "benches",
        "xtask",
        "proto",
        "docker",
        ".cargo",
    ] {
        assert!(setup::repository().join(needed).exists() && !ignored.contains(needed), "{needed}");
    }
}

#[test]
fn the_files_of_the_image_serve_in_a_read_only_root_without_privileges() {
    let (Some(binary), Some(model)) = (Process::binary(), setup::model()) else { return };
    let Some(libtorch) = setup::path("LIBTORCH") else { return };
    let Some(rendered) = render(&Profile::named("small").arguments()) else { return };
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let config = Objects(crate::support::parse(&rendered)).config("all-in-one").to_owned();
    fs::write(at("sightline.toml"), config).unwrap();
    fs::write(at("photo.jpg"), frames::jpeg(7, 320)).unwrap();

    let script = |name: &str| Command::new(setup::repository().join("docker").join(name));
    let mut layout = script("layout.sh");
    let output = layout.arg("cpu").arg(binary).arg(libtorch).arg(model).arg(at("image")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    let mut run = script("try.sh");
    let output = run.args([at("image"), at("sightline.toml"), at("photo.jpg")]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let verdict: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(verdict["model"], "nsfwjs-mobilenet-v2@4.4.0", "{verdict}");
    assert!(said.contains("\"message\":\"stopped\""), "it did not stop by itself: {said}");
}

#[test]
fn the_charts_version_is_the_programs() {
    let read = |path: std::path::PathBuf| fs::read_to_string(path).unwrap();
    let version = |text: &str, key: &str| {
        text.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().trim_matches('"').to_owned()
    };
    let workspace = version(&read(setup::repository().join("Cargo.toml")), "version = ");
    assert_eq!(version(&read(chart().join("Chart.yaml")), "appVersion:"), workspace);
}
