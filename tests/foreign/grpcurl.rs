//! grpcurl: no protos, no code, only what the server says of itself.

use std::{
    io::Write,
    path::PathBuf,
    process::{Command, Stdio},
};

use serde_json::{Value, json};
use sightline_testkit::{frames, setup};

use crate::support::{Mesh, assert_verdict, output_of};

/// What each port has besides its own service.
const EVERYWHERE: [&str; 3] = [
    "grpc.health.v1.Health",
    "grpc.reflection.v1.ServerReflection",
    "grpc.reflection.v1alpha.ServerReflection",
];

fn start() -> Option<(PathBuf, Mesh)> {
    Some((setup::path("SIGHTLINE_TEST_GRPCURL")?, Mesh::start()?))
}

fn grpcurl(program: &PathBuf, address: &str, arguments: &[&str]) -> String {
    output_of(Command::new(program).args(["-plaintext", address]).args(arguments))
}

#[test]
fn every_port_lists_and_describes_what_it_serves() {
    let Some((program, mesh)) = start() else { return };
    for (role, service, methods) in [
        ("ingest", "sightline.ingest.v1.IngestService", &["Classify", "ClassifyBatch", "ClassifyStream"][..]),
        ("classifier", "sightline.classifier.v1.ClassifierService", &["Infer", "ListModels"]),
        ("ratelimiter", "sightline.ratelimiter.v1.RateLimiterService", &["Check", "CheckStream"]),
        ("stats", "sightline.stats.v1.StatsService", &["Query", "Record"]),
    ] {
        let address = mesh.process.address(role).to_string();
        let listed = grpcurl(&program, &address, &["list"]);
        // Gateways ask the rate limiter by Envoy's own protocol.
        let envoy = (role == "ratelimiter").then_some("envoy.service.ratelimit.v3.RateLimitService");
        let expected: Vec<_> = envoy.into_iter().chain(EVERYWHERE).chain([service]).collect();
        assert_eq!(listed.lines().collect::<Vec<_>>(), expected, "{role}");

        let listed = grpcurl(&program, &address, &["list", service]);
        let expected: Vec<_> = methods.iter().map(|method| format!("{service}.{method}")).collect();
        assert_eq!(listed.lines().collect::<Vec<_>>(), expected);

        // The description of every service names its methods, and every message can be looked up.
        let described = grpcurl(&program, &address, &["describe"]);
        for method in methods {
            assert!(described.contains(&format!("rpc {method} (")), "{role}: {described}");
        }
        for type_name in
            described.split(['(', ')']).map(str::trim).filter(|name| name.starts_with(".sightline"))
        {
            let message = grpcurl(&program, &address, &["describe", type_name.trim_start_matches('.')]);
            assert!(message.contains("is a message:"), "{message}");
        }
    }
}

#[test]
fn a_frame_in_base64_gets_its_verdict() {
    let Some((program, mesh)) = start() else { return };
    let image = base64(&frames::webp(3, 64));
    let verdict = call(&program, &mesh, &json!({ "frame": { "userId": "ada", "image": image } }));
    assert_verdict(&verdict["verdict"], "MODEL");
}

fn call(program: &PathBuf, mesh: &Mesh, request: &Value) -> Value {
    let mut child = Command::new(program)
        .args(["-plaintext", "-d", "@", &mesh.process.address("ingest").to_string()])
        .arg("sightline.ingest.v1.IngestService/Classify")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(request.to_string().as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Base 64 of RFC 4648 §4.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let bits =
            group.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            let digit = char::from(ALPHABET[(bits >> (18 - 6 * place)) as usize & 63]);
            text.push(if place <= group.len() { digit } else { '=' });
        }
    }
    text
}
