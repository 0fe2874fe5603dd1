//! The servers: one Redis, the Go service, and ours.

use std::{fs, net::TcpStream, path::PathBuf};

use anyhow::{Context, Result};
use sightline_servers::{Home, Redis, Server, Spec, find, free_port};
use tempfile::TempDir;

use crate::options::Options;

/// What ours is told: the same two limits as a gateway's descriptors and as rules. Nobody reaches them.
const OURS: &str = r#"
[[rule]]
name = "user"
keys = ["user"]
limit = 100_000
per = "1s"
burst = 100_000

[[rule]]
name = "address"
keys = ["address"]
limit = 100_000
per = "1s"
burst = 100_000

[[domain]]
name = "edge"

[[domain.descriptors]]
key = "user"
rate_limit = { unit = "second", requests_per_unit = 100_000 }

[[domain.descriptors]]
key = "address"
rate_limit = { unit = "second", requests_per_unit = 100_000 }
"#;

/// What the peer is told.
const PEERS: &str = "\
domain: edge
descriptors:
  - key: user
    rate_limit: { unit: second, requests_per_unit: 100000 }
  - key: address
    rate_limit: { unit: second, requests_per_unit: 100000 }
";

/// All that runs. Ends when dropped.
pub(crate) struct Contestants {
    pub(crate) redis: Redis,
    peer: Option<(Server, u16)>,
    ours: Option<(Server, u16)>,
    _folder: TempDir,
}

impl Contestants {
    pub(crate) fn start(options: &Options) -> Result<Self> {
        let folder = tempfile::tempdir().context("making a folder")?;
        let redis = Redis::start(&[])?;
        let takes_part = |names: &[&str]| options.only.iter().any(|only| names.contains(&only.as_str()));
        let peer = takes_part(&["peer"]).then(|| peer(&redis, &folder)).transpose()?;
        let ours = takes_part(&["unary", "stream"]).then(|| ours(&redis, &folder, options)).transpose()?;
        Ok(Self { redis, peer, ours, _folder: folder })
    }

    pub(crate) fn server(&self, name: &str) -> &Server {
        &self.of(name).0
    }

    pub(crate) fn address(&self, name: &str) -> String {
        format!("http://127.0.0.1:{}", self.of(name).1)
    }

    fn of(&self, name: &str) -> &(Server, u16) {
        let server = if name == "peer" { &self.peer } else { &self.ours };
        server.as_ref().expect("who takes part was started")
    }
}

fn peer(redis: &Redis, folder: &TempDir) -> Result<(Server, u16)> {
    let config = folder.path().join("peer/ratelimit/config");
    fs::create_dir_all(&config)?;
    fs::write(config.join("edge.yaml"), PEERS)?;
    let (port, http, debug) = (free_port(), free_port(), free_port());
    let environment = [
        ("GRPC_HOST", "127.0.0.1".to_owned()),
        ("GRPC_PORT", port.to_string()),
        ("HOST", "127.0.0.1".to_owned()),
        ("PORT", http.to_string()),
        ("DEBUG_HOST", "127.0.0.1".to_owned()),
        ("DEBUG_PORT", debug.to_string()),
        ("LOG_LEVEL", "error".to_owned()),
        ("USE_STATSD", "false".to_owned()),
        ("REDIS_SOCKET_TYPE", "tcp".to_owned()),
        ("REDIS_URL", format!("127.0.0.1:{}", redis.port())),
        ("RUNTIME_ROOT", folder.path().join("peer").display().to_string()),
        ("RUNTIME_SUBDIRECTORY", "ratelimit".to_owned()),
        ("RUNTIME_WATCH_ROOT", "false".to_owned()),
    ];
    let server = Server::start(Spec {
        home: Home::temporary("envoy-ratelimit")?,
        name: "envoy-ratelimit".into(),
        program: find("envoy-ratelimit")?,
        arguments: vec![],
        environment: environment.map(|(name, value)| (name.to_owned(), value)).to_vec(),
        user: None,
        ready: Box::new(move || TcpStream::connect(("127.0.0.1", port)).is_ok()),
    })?;
    Ok((server, port))
}

fn ours(redis: &Redis, folder: &TempDir, options: &Options) -> Result<(Server, u16)> {
    let rules = folder.path().join("limits.toml");
    fs::write(&rules, OURS)?;
    let binary = std::env::var_os("SIGHTLINE_TEST_BINARY")
        .context("SIGHTLINE_TEST_BINARY is not set; `cargo xtask bench ratelimiter` sets it")?;
    let port = free_port();
    let mut settings = vec![
        format!("ratelimiter.listen=127.0.0.1:{port}"),
        format!("ratelimiter.rules={}", rules.display()),
        format!("ratelimiter.redis_url={}", redis.url()),
        // On a machine that the client shares, an answer may come late; nobody may be decided without Redis here.
        "ratelimiter.redis_timeout=5s".into(),
        "telemetry.log=warn".into(),
        "telemetry.admin_listen=127.0.0.1:0".into(),
    ];
    settings.extend(options.set.iter().cloned());
    // sightline takes every SIGHTLINE_ variable for a setting, and ours are none; `env` becomes sightline.
    let variables = std::env::vars().map(|(name, _)| name).filter(|name| name.starts_with("SIGHTLINE_"));
    let mut arguments: Vec<String> = variables.flat_map(|name| ["-u".to_owned(), name]).collect();
    arguments.push(PathBuf::from(binary).display().to_string());
    arguments.extend(["serve", "ratelimiter"].map(str::to_owned));
    arguments.extend(settings.into_iter().flat_map(|setting| ["--set".to_owned(), setting]));
    let server = Server::start(Spec {
        home: Home::temporary("sightline")?,
        name: "sightline".into(),
        program: find("env")?,
        arguments,
        environment: vec![],
        user: None,
        ready: Box::new(move || TcpStream::connect(("127.0.0.1", port)).is_ok()),
    })?;
    Ok((server, port))
}
