//! A mesh of four processes with certificates of their own.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde_json::Value;
use sightline_servers::{free_port, request};
use sightline_testkit::{Process, eventually, models::Small};
use tempfile::TempDir;

use crate::{
    certs::{Authority, DAY},
    secret::Secret,
};

/// The services, in the order in which they start.
pub const SERVICES: [&str; 4] = ["ratelimiter", "classifier", "stats", "ingest"];
/// What the edge's certificate names.
pub const EDGE: [&str; 2] = ["127.0.0.1", "images.example"];

/// Who a service is.
pub fn id(service: &str) -> String {
    format!("spiffe://mesh.example/ns/prod/sa/{service}")
}

/// A running service.
pub struct Service {
    pub process: Process,
    /// Its admin port.
    pub admin: u16,
}

impl Service {
    /// Starts it as whoever `secret` says, with more settings.
    pub fn start(role: &str, secret: &Secret, data: &TempDir, settings: &[String]) -> Option<Self> {
        let admin = free_port();
        let file = |name: &str| secret.path(name).display().to_string();
        let mut all = vec![
            format!("tls.cert_file={}", file("tls.crt")),
            format!("tls.key_file={}", file("tls.key")),
            format!("tls.ca_file={}", file("ca.crt")),
            "tls.reload_interval=1s".into(),
            format!("node.data_dir={}", data.path().join(role).display()),
            format!("telemetry.admin_listen=127.0.0.1:{admin}"),
        ];
        if role != "ingest" {
            all.push(format!("tls.callers={{{role}=[{:?}]}}", id("ingest")));
        }
        all.extend_from_slice(settings);
        let arguments: Vec<&str> = all.iter().flat_map(|setting| ["--set", setting]).collect();
        Some(Self { process: Process::serve(&[role], &arguments)?, admin })
    }

    /// `host:port` of a role.
    pub fn address(&self, role: &str) -> String {
        self.process.address(role).to_string()
    }

    /// The sum of a metric's series whose labels contain these texts.
    pub fn metric(&self, name: &str, labels: &[&str]) -> f64 {
        let page = request(self.admin, "GET", "/metrics", "").unwrap().body;
        let series = page.lines().filter_map(|line| {
            let (series, value) = line.strip_prefix(name)?.rsplit_once(' ')?;
            let fits = series.is_empty() || series.starts_with('{');
            (fits && labels.iter().all(|label| series.contains(label))).then(|| value.parse::<f64>().unwrap())
        });
        series.sum()
    }

    /// How it sees a service that it calls: the page of `sightline mesh top`.
    pub fn view(&self, service: &str) -> Value {
        let page = request(self.admin, "GET", "/mesh", "").unwrap().body;
        let page: Value = serde_json::from_str(&page).unwrap();
        page.as_array().unwrap().iter().find(|entry| entry["service"] == service).unwrap().clone()
    }
}

/// All four, each a process.
pub struct Mesh {
    pub services: BTreeMap<&'static str, Service>,
    pub secrets: BTreeMap<&'static str, Secret>,
    pub edge: Secret,
    folder: TempDir,
}

impl Mesh {
    /// Certificates of `authority` that live for `life`, and settings for all services. Waits until frames can be classified.
    pub async fn start(authority: &Authority, life: Duration, settings: &[&str]) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let secrets: BTreeMap<_, _> = SERVICES
            .into_iter()
            .map(|service| (service, Secret::new(authority.issue(&[&id(service)], life), &[authority])))
            .collect();
        let edge = Secret::new(authority.issue(&EDGE, DAY), &[authority]);
        let settings: Vec<String> = settings.iter().map(ToString::to_string).collect();
        let mut mesh = Self { services: BTreeMap::new(), secrets, edge, folder };
        let model = Small::default().write(mesh.folder.path()).display().to_string();
        for service in SERVICES {
            let own = match service {
                "ratelimiter" => vec!["ratelimiter.rules=dev".into()],
                "classifier" => vec![format!("classifier.models=[{model:?}]")],
                "ingest" => mesh.calls(),
                _ => vec![],
            };
            let all = [&own[..], &settings].concat();
            let started = Service::start(service, &mesh.secrets[service], &mesh.folder, &all)?;
            mesh.services.insert(service, started);
        }
        let admin = mesh.service("ingest").admin;
        eventually!(request(admin, "GET", "/readyz", "").is_ok_and(|answer| answer.status == 200));
        Some(mesh)
    }

    /// Settings of an ingest that calls these services, and speaks TLS to clients.
    pub fn calls(&self) -> Vec<String> {
        let called = self.services.iter().filter(|(name, _)| **name != "ingest");
        let servers: Vec<_> = called.clone().map(|(name, _)| format!("{name}=[{:?}]", id(name))).collect();
        let upstreams = called.map(|(name, service)| format!("ingest.{name}=[{:?}]", service.address(name)));
        let file = |name: &str| self.edge.path(name).display().to_string();
        upstreams
            .chain([
                format!("tls.servers={{{}}}", servers.join(",")),
                format!("edge_tls.cert_file={}", file("tls.crt")),
                format!("edge_tls.key_file={}", file("tls.key")),
                "edge_tls.reload_interval=1s".into(),
                "ingest.ratelimiter_away=closed".into(),
                // On a machine that is busy; and with one replica of each, messages wait for a handshake whenever a
                // connection moves.
                "ingest.ratelimiter_timeout=5s".into(),
            ])
            .collect()
    }

    pub fn service(&self, name: &str) -> &Service {
        &self.services[name]
    }

    /// Where clients connect.
    pub fn edge_address(&self) -> String {
        self.service("ingest").address("ingest")
    }

    /// A file with these authorities, for clients.
    pub fn bundle(&self, name: &str, authorities: &[&Authority]) -> PathBuf {
        let path = self.folder.path().join(name);
        let bundle: String = authorities.iter().map(|authority| authority.pem()).collect();
        std::fs::write(&path, bundle).unwrap();
        path
    }

    pub fn folder(&self) -> &TempDir {
        &self.folder
    }

    /// New certificates for all services, and for the edge, of `signer`; each trusts `authorities`. Waits until every
    /// process uses them.
    pub async fn rotate(&mut self, signer: &Authority, authorities: &[&Authority], life: Duration) {
        let reloads = |mesh: &Self| -> f64 {
            let new =
                |service: &Service| service.metric("mesh_certificate_reloads_total", &[r#"outcome="new""#]);
            mesh.services.values().map(new).sum()
        };
        let before = reloads(self);
        for (service, secret) in &mut self.secrets {
            secret.replace(signer.issue(&[&id(service)], life), authorities);
        }
        self.edge.replace(signer.issue(&EDGE, DAY), authorities);
        self.services.values().for_each(|service| service.process.hang_up());
        // Four services, and the edge's own.
        let wanted = before + SERVICES.len() as f64 + 1.0;
        eventually!(reloads(self) >= wanted);
    }
}
