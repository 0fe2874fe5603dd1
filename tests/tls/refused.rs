//! Who is not let in, and what both sides say of it.

use std::{fs, thread};

use sightline_testkit::{Process, eventually};

use crate::{
    certs::{Authority, DAY},
    mesh::{Mesh, SERVICES, Service, id},
    secret::Secret,
};

/// What `sightline health` says of a service inside the mesh to whoever shows this certificate and trusts these authorities.
pub fn ask(
    mesh: &Mesh,
    service: &str,
    own: Option<(String, String)>,
    trusted: &[&Authority],
) -> Result<String, String> {
    let folder = tempfile::tempdir().unwrap();
    let bundle = mesh.bundle("asker.pem", trusted);
    let endpoint = format!("https://{}", mesh.service(service).address(service));
    let (server, path) = (id(service), |name: &str| folder.path().join(name).display().to_string());
    let [cert, key] = ["cert", "key"].map(path);
    let mut arguments = vec!["--ca", bundle.to_str().unwrap(), "--server-name", &server];
    if let Some(own) = own {
        fs::write(&cert, own.0).unwrap();
        fs::write(&key, own.1).unwrap();
        arguments.extend(["--cert", &cert, "--key", &key]);
    }
    health(&endpoint, &arguments)
}

/// `sightline health --endpoint` with more arguments: what it printed, or said on standard error.
pub fn health(endpoint: &str, arguments: &[&str]) -> Result<String, String> {
    let output = Process::run(&[&["health", "--endpoint", endpoint], arguments].concat()).unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap().trim().to_owned();
    match output.status.code() {
        Some(0) => Ok(text(output.stdout)),
        _ => Err(text(output.stderr)),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_without_the_right_identity_is_refused_both_ways() {
    let (authority, other) = (Authority::new("mesh"), Authority::new("other"));
    let Some(mesh) = Mesh::start(&authority, DAY, &[]).await else { return };
    eventually!(mesh.service("ingest").view("stats")["endpoints"][0]["state"] == "ready");

    // As a caller: an ingest that is called something else, one of another authority, and whoever has no certificate.
    let evil = id("evil");
    let issued = authority.issue(&[&evil], DAY);
    for (own, expected) in [
        (Some(issued.clone()), format!("we are {evil}, and it is not on the server's list of callers")),
        (Some(other.issue(&[&id("ingest")], DAY)), "the server does not hold our authority".to_owned()),
        (None, "the server asks for a certificate: name yours with --cert and --key".to_owned()),
    ] {
        for service in SERVICES.iter().filter(|service| **service != "ingest") {
            let said = ask(&mesh, service, own.clone(), &[&authority]).unwrap_err();
            assert!(said.contains(&expected), "{service}: {said}");
        }
    }
    let secret = Secret::new(issued, &[&authority]);
    let evil_ingest = Service::start("ingest", &secret, mesh.folder(), &evil_settings(&mesh)).unwrap();
    for service in SERVICES.iter().filter(|service| **service != "ingest") {
        let problem = || evil_ingest.view(service)["endpoints"][0]["last_problem"].to_string();
        eventually!(problem().contains(&format!("we are {evil}, and it is not on the server's list")));
        assert_ne!(evil_ingest.view(service)["endpoints"][0]["state"], "ready", "{service}");
    }
    let warnings = mesh.service("stats").process.logged("WARN");
    let text = serde_json::to_string(&warnings).unwrap();
    assert!(
        text.contains(&format!("the peer is {evil}, which is not on the list `tls.callers.stats`")),
        "{text}"
    );
    let labels = [format!("identity=\"{evil}\""), "list=\"tls.callers.stats\"".into()];
    let labels = labels.each_ref().map(String::as_str);
    assert!(mesh.service("stats").metric("mesh_identity_refused_total", &labels) > 0.0);

    // As a server: a stats that is called something else is not told anything.
    let impostor = Secret::new(authority.issue(&[&id("evil")], DAY), &[&authority]);
    let data = |name: &str| format!("node.data_dir={}", mesh.folder().path().join(name).display());
    let stats = Service::start("stats", &impostor, mesh.folder(), &[data("impostor")]).unwrap();
    let mut calls = mesh.calls();
    calls.extend([format!("ingest.stats=[{:?}]", stats.address("stats")), data("third")]);
    let ingest = Service::start("ingest", &mesh.secrets["ingest"], mesh.folder(), &calls).unwrap();
    let problem = || ingest.view("stats")["endpoints"][0]["last_problem"].to_string();
    eventually!(problem().contains("is not who it must be"));
    let problem = problem();
    assert!(
        problem.contains(&format!("the peer is {evil}")) && problem.contains("tls.servers.stats"),
        "{problem}"
    );
}

fn evil_settings(mesh: &Mesh) -> Vec<String> {
    let mut settings = mesh.calls();
    settings.push(format!("node.data_dir={}", mesh.folder().path().join("evil").display()));
    settings
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_of_refusals_is_counted_one_by_one_and_logged_in_a_few_lines() {
    const FLOOD: usize = 60;
    let (authority, other) = (Authority::new("mesh"), Authority::new("other"));
    let folder = tempfile::tempdir().unwrap();
    let secret = Secret::new(authority.issue(&[&id("ratelimiter")], DAY), &[&authority]);
    let Some(_) = Process::binary() else { return };
    let service = Service::start("ratelimiter", &secret, &folder, &[]).unwrap();
    let stranger = Secret::new(other.issue(&[&id("ingest")], DAY), &[&authority]);
    let endpoint = format!("https://{}", service.address("ratelimiter"));
    let file = |name: &str| stranger.path(name).display().to_string();
    let (ca, cert, key, name) = (file("ca.crt"), file("tls.crt"), file("tls.key"), id("ratelimiter"));
    let arguments = ["--ca", &ca, "--cert", &cert, "--key", &key, "--server-name", &name];
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..FLOOD / 4 {
                    health(&endpoint, &arguments).unwrap_err();
                }
            });
        }
    });
    assert_eq!(service.metric("mesh_handshakes_total", &[r#"outcome="certificate""#]), FLOOD as f64);
    let refusals = || {
        let said = service.process.logged("WARN").into_iter();
        let said = said.map(|event| event["message"].as_str().unwrap().to_owned());
        said.filter(|message| message.starts_with("refused")).collect::<Vec<_>>()
    };
    // The first in full; the others summed up, once for each ten seconds that the flood took.
    eventually!(refusals().len() >= 2);
    let said = refusals();
    assert!(said[0].contains("an authority that our `ca_file` does not hold"), "{said:?}");
    assert!(said[1].contains("more in the last 10s (certificate "), "{said:?}");
    assert!(said.len() <= FLOOD / 6, "{said:?}");
}
