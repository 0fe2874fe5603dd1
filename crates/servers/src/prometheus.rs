//! Prometheus.

use std::fs;

use crate::{Answer, Home, Result, Server, Spec, http, io, lasting_port, tools::find};

/// A Prometheus that scrapes every second.
#[derive(Debug)]
pub struct Prometheus {
    /// The process.
    pub server: Server,
    port: u16,
}

impl Prometheus {
    /// Scrapes `jobs`: each a name and its `host:port` targets.
    ///
    /// # Errors
    /// [`crate::Error`].
    pub fn start(jobs: &[(&str, Vec<String>)]) -> Result<Self> {
        Self::start_at(Home::temporary("prometheus")?, lasting_port(), jobs)
    }

    /// The same at a place and port of the caller's choice.
    ///
    /// # Errors
    /// [`crate::Error`].
    pub fn start_at(home: Home, port: u16, jobs: &[(&str, Vec<String>)]) -> Result<Self> {
        let mut text = "global:\n  scrape_interval: 1s\nscrape_configs:\n".to_owned();
        for (name, targets) in jobs {
            text += &format!("  - job_name: {name}\n    static_configs:\n      - targets: {targets:?}\n");
        }
        let file = home.folder().join("prometheus.yml");
        fs::write(&file, text).map_err(io("writing prometheus.yml"))?;
        let spec = Spec {
            name: "prometheus".into(),
            program: find("prometheus")?,
            arguments: vec![
                format!("--config.file={}", file.display()),
                format!("--storage.tsdb.path={}", home.folder().join("data").display()),
                format!("--web.listen-address=127.0.0.1:{port}"),
            ],
            environment: vec![],
            home,
            user: None,
            ready: Box::new(move || http::is_ok(port, "/-/ready")),
        };
        Ok(Self { server: Server::start(spec)?, port })
    }

    /// Where its page and API are.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// GETs a path of its API, such as `/api/v1/query?query=up`.
    ///
    /// # Errors
    /// [`crate::Error`].
    pub fn get(&self, path: &str) -> Result<Answer> {
        http::request(self.port, "GET", path, "")
    }
}
