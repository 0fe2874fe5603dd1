//! What each process says of what it depends on.

use serde_json::Value;
use sightline_servers::request;
use sightline_testkit::{eventually, frames};
use tonic::transport::Channel;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::support::{Member, Mesh};

fn health(member: &Member) -> (u16, Value) {
    let answer = request(member.admin.port(), "GET", "/healthz", "").unwrap();
    (answer.status, serde_json::from_str(&answer.body).unwrap_or_else(|_| panic!("{answer:?}")))
}

/// As `grpc.health.v1` numbers it: 1 is SERVING, 2 is NOT_SERVING.
async fn status(mesh: &Mesh, service: &str) -> i32 {
    let channel = Channel::from_shared(mesh.uri("ingest")).unwrap().connect().await.unwrap();
    let asked = HealthCheckRequest { service: service.into() };
    HealthClient::new(channel).check(asked).await.unwrap().into_inner().status
}

#[tokio::test(flavor = "multi_thread")]
async fn health_names_each_dependency_and_why_it_is_not_well() {
    let Some(mut mesh) = Mesh::start(1, &[]) else { return };
    let names = ["classifier", "ratelimiter", "stats"];
    let (code, page) = health(mesh.ingest());
    assert_eq!((code, &page["status"]), (200, &"healthy".into()));
    for name in names {
        assert_eq!(page["dependencies"][name]["status"], "healthy", "{page}");
        assert_eq!(status(&mesh, &format!("dependency.{name}")).await, 1);
    }

    // Limits and statistics go: frames are still answered.
    mesh.member("ratelimiter-stats").server.kill();
    eventually!(health(mesh.ingest()).1["dependencies"]["stats"]["status"] == "degraded");
    mesh.classify(frames::mixed(1, 48), "").await.unwrap();
    let (code, page) = health(mesh.ingest());
    assert_eq!((code, &page["status"]), (200, &"degraded".into()), "{page}");
    let why = page["dependencies"]["stats"]["why"].as_str().unwrap();
    assert!(why.contains("no replica can be used"), "{why}");

    // Without a classifier none are.
    mesh.member("classifier").server.kill();
    eventually!(health(mesh.ingest()).0 == 503);
    assert_eq!(health(mesh.ingest()).1["dependencies"]["classifier"]["status"], "down");
    eventually!(status(&mesh, "dependency.classifier").await == 2);
    assert_eq!(mesh.ingest().metric("dependency_up{dependency=\"classifier\"}"), 0.0);

    mesh.member("classifier").server.restart().unwrap();
    eventually!(health(mesh.ingest()).1["dependencies"]["classifier"]["status"] == "healthy");
    eventually!(status(&mesh, "dependency.classifier").await == 1);
}
