//! What every client's test does: start a mesh, give the client images, read what it saw.

use std::{path::PathBuf, process::Command};

use serde_json::Value;
use sightline_testkit::{Process, frames};
use tempfile::TempDir;

/// Frames an hour that one user may send.
pub const FRAMES_AN_HOUR: usize = 20;

/// A page of this origin may call.
pub const ORIGIN: &str = "https://app.example.com";

/// A mesh for foreign clients, its files, and images that no other client of it has sent.
pub struct Mesh {
    pub process: Process,
    folder: TempDir,
}

impl Mesh {
    /// `None` when there is no binary, and that was said.
    pub fn start() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let rules = folder.path().join("limits.toml");
        let limit = format!("limit = {FRAMES_AN_HOUR}\nper = \"1h\"\nburst = {FRAMES_AN_HOUR}");
        std::fs::write(&rules, format!("[[rule]]\nname = \"hourly\"\nkeys = [\"user\"]\n{limit}\n")).unwrap();
        let settings =
            [format!("ratelimiter.rules={}", rules.display()), format!("ingest.cors_origins=[{ORIGIN:?}]")];
        let process = Process::dev(&folder, &settings.each_ref().map(String::as_str))?;
        Some(Self { process, folder })
    }

    /// A JPEG and a PNG.
    pub fn images(&self) -> [PathBuf; 2] {
        let files = [("photo.jpg", frames::jpeg(1, 320)), ("screen.png", frames::png(2, 320))];
        files.map(|(name, bytes)| {
            let path = self.folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            path
        })
    }

    /// A folder that goes with the mesh.
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }
}

/// Runs a client to its end and gives its standard output; a client that fails fails the test with what it said.
pub fn output_of(client: &mut Command) -> String {
    let output = client.output().unwrap();
    let (out, err) = (String::from_utf8(output.stdout).unwrap(), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "the client ended with {}:\n{out}{err}", output.status);
    out
}

/// The same, as the JSON that it printed.
pub fn json_of(client: &mut Command) -> Value {
    serde_json::from_str(&output_of(client)).unwrap()
}

/// Fails unless this is the verdict of the small model, as protobuf's JSON writes it, from this source.
pub fn assert_verdict(verdict: &Value, source: &str) {
    let scores = verdict["scores"].as_array().unwrap();
    let classes: Vec<_> = scores.iter().map(|score| score["class"].as_str().unwrap()).collect();
    let sum: f64 = scores.iter().map(|score| score["value"].as_f64().unwrap()).sum();
    assert_eq!(classes, ["safe", "suggestive", "explicit"], "{verdict}");
    assert!((sum - 1.0).abs() < 1e-5, "{verdict}");
    assert_eq!(verdict["source"], format!("VERDICT_SOURCE_{source}"), "{verdict}");
    assert_eq!((&verdict["model"], &verdict["policy"]), (&"small@1".into(), &"default@1".into()));
    assert!(verdict["level"].as_str().unwrap().starts_with("LEVEL_"), "{verdict}");
    assert!(verdict["nextCaptureAfter"].as_str().unwrap().ends_with('s'), "{verdict}");
}

/// Fails unless `first` and `repeat` are answers to the same bytes sent under the two `ids`.
pub fn assert_repeat(unary: &Value) {
    let (first, repeat) = (&unary["first"], &unary["repeat"]);
    assert_verdict(first, "MODEL");
    assert_verdict(repeat, "EXACT_DUPLICATE");
    assert_eq!(first["scores"], repeat["scores"]);
    assert_eq!([&first["frameId"], &repeat["frameId"]], [&unary["ids"][0], &unary["ids"][1]]);
    assert_eq!(repeat["anchorFrameId"], first["frameId"]);
}

/// Fails unless this is the error of an item whose bytes are no image.
pub fn assert_no_image(error: &Value) {
    assert_eq!((&error["code"], &error["reason"]), (&3.into(), &"IMAGE_UNRECOGNISED".into()), "{error}");
    assert_eq!(error["message"], NO_IMAGE);
}

/// What a client is told about bytes that are no image.
pub const NO_IMAGE: &str = "frame.image: the bytes are no image; JPEG, PNG, WebP and GIF are taken";
