//! `/metrics`, `/livez` and `/readyz` over plain HTTP/1.1.

use std::{future::Future, io, sync::Arc};

use axum::{Router, extract::State, http::StatusCode, routing::get};
use tokio::net::TcpListener;

use crate::metrics;

/// Says whether the process is ready, and what it waits for when it is not.
pub type Readiness = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// The operators' HTTP server.
pub struct Admin {
    listener: TcpListener,
    ready: Readiness,
}

impl Admin {
    /// Serves on `listener`; `ready` answers `/readyz`.
    pub fn new(listener: TcpListener, ready: Readiness) -> Self {
        Self { listener, ready }
    }

    /// Serves until `stop` completes.
    ///
    /// # Errors
    /// What the listener says.
    pub async fn run(self, stop: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
        let router = Router::new()
            .route("/metrics", get(|| async { metrics::recorder().render() }))
            .route("/livez", get(|| async { "ok\n" }))
            .route("/readyz", get(readyz))
            .with_state(self.ready);
        axum::serve(self.listener, router).with_graceful_shutdown(stop).await
    }
}

async fn readyz(State(ready): State<Readiness>) -> (StatusCode, String) {
    match ready() {
        Ok(()) => (StatusCode::OK, "ok\n".into()),
        Err(waiting) => (StatusCode::SERVICE_UNAVAILABLE, format!("{waiting}\n")),
    }
}
