//! Jaeger, all in one process, spans in memory.

use std::fs;

use crate::{Answer, Home, Result, Server, Spec, http, io, lasting_port, tools::find};

/// A Jaeger that takes OTLP over gRPC.
#[derive(Debug)]
pub struct Jaeger {
    /// The process.
    pub server: Server,
    otlp: u16,
    query: u16,
}

impl Jaeger {
    /// Starts one on free ports.
    ///
    /// # Errors
    /// [`crate::Error`].
    pub fn start() -> Result<Self> {
        Self::start_at(Home::temporary("jaeger")?, lasting_port())
    }

    /// The same at a place of the caller's choice, with its page on this port.
    ///
    /// # Errors
    /// [`crate::Error`].
    pub fn start_at(home: Home, query: u16) -> Result<Self> {
        let (otlp, grpc) = (lasting_port(), lasting_port());
        let file = home.folder().join("jaeger.yaml");
        fs::write(&file, config(otlp, query, grpc)).map_err(io("writing jaeger.yaml"))?;
        let spec = Spec {
            name: "jaeger".into(),
            program: find("jaeger")?,
            arguments: vec![format!("--config=file:{}", file.display())],
            environment: vec![],
            home,
            user: None,
            ready: Box::new(move || http::is_ok(query, "/api/services")),
        };
        Ok(Self { server: Server::start(spec)?, otlp, query })
    }

    /// Where spans are sent: `http://127.0.0.1:PORT`, OTLP over gRPC.
    pub fn endpoint(&self) -> String {
        format!("http://127.0.0.1:{}", self.otlp)
    }

    /// Where its page and query API are.
    pub fn port(&self) -> u16 {
        self.query
    }

    /// GETs a path of its query API, such as `/api/traces/TRACE_ID`.
    ///
    /// # Errors
    /// [`crate::Error`].
    pub fn get(&self, path: &str) -> Result<Answer> {
        http::request(self.query, "GET", path, "")
    }
}

fn config(otlp: u16, query: u16, grpc: u16) -> String {
    format!(
        "service:
  extensions: [jaeger_storage, jaeger_query]
  pipelines:
    traces:
      receivers: [otlp]
      processors: [batch]
      exporters: [jaeger_storage_exporter]
  telemetry:
    metrics:
      level: none
extensions:
  jaeger_query:
    storage:
      traces: memory
    http:
      endpoint: 127.0.0.1:{query}
    grpc:
      endpoint: 127.0.0.1:{grpc}
  jaeger_storage:
    backends:
      memory:
        memory:
          max_traces: 100000
receivers:
  otlp:
    protocols:
      grpc:
        endpoint: 127.0.0.1:{otlp}
processors:
  batch:
    timeout: 200ms
exporters:
  jaeger_storage_exporter:
    trace_storage: memory
"
    )
}
