//! `/metrics`, `/mesh`, `/livez`, `/servingz`, `/readyz` and `/healthz` over plain HTTP/1.1.

use std::{
    future::{Future, IntoFuture},
    io,
    sync::Arc,
};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::IntoResponse,
    routing::get,
};
use tokio::net::TcpListener;

use crate::{dependencies::Dependencies, metrics};

/// Says whether the process is ready, and what it waits for when it is not.
pub type Readiness = Arc<dyn Fn() -> Result<(), String> + Send + Sync>;

/// What is behind a page of JSON.
pub type Page = Arc<dyn Fn() -> String + Send + Sync>;

/// The operators' HTTP server.
pub struct Admin {
    listener: TcpListener,
    ready: Readiness,
    serving: Readiness,
    dependencies: Dependencies,
    mesh: Option<Page>,
}

impl Admin {
    /// Serves on `listener`; `ready` answers `/readyz`, `dependencies` are what `/healthz` shows.
    pub fn new(listener: TcpListener, ready: Readiness, dependencies: Dependencies) -> Self {
        Self { listener, ready, serving: Arc::new(|| Ok(())), dependencies, mesh: None }
    }

    /// Lets `serving` answer `/servingz`, which otherwise is always well.
    #[must_use]
    pub fn with_serving(mut self, serving: Readiness) -> Self {
        self.serving = serving;
        self
    }

    /// Shows `page`, JSON, at `/mesh`: the services that this process calls.
    #[must_use]
    pub fn with_mesh(mut self, page: Option<Page>) -> Self {
        self.mesh = page;
        self
    }

    /// Serves until `stop` completes, and keeps the metrics small meanwhile.
    ///
    /// # Errors
    /// What the listener says.
    pub async fn run(self, stop: impl Future<Output = ()> + Send + 'static) -> io::Result<()> {
        let mesh = self.mesh.unwrap_or_else(|| Arc::new(|| "[]".into()));
        let router = Router::new()
            .route("/mesh", get(async move || ([(CONTENT_TYPE, "application/json")], mesh() + "\n")))
            .route("/metrics", get(|| async { metrics::render() }))
            .route("/livez", get(|| async { "ok\n" }))
            .route("/readyz", get(asked))
            .with_state(self.ready)
            .route("/servingz", get(asked))
            .with_state(self.serving)
            .route("/healthz", get(healthz))
            .with_state(self.dependencies);
        tokio::select! {
            ended = axum::serve(self.listener, router).with_graceful_shutdown(stop).into_future() => ended,
            never = metrics::upkeep() => match never {},
        }
    }
}

async fn asked(State(ready): State<Readiness>) -> (StatusCode, String) {
    match ready() {
        Ok(()) => (StatusCode::OK, "ok\n".into()),
        Err(waiting) => (StatusCode::SERVICE_UNAVAILABLE, format!("{waiting}\n")),
    }
}

/// What the process depends on, as JSON; 503 when something that it cannot do without is down.
async fn healthz(State(dependencies): State<Dependencies>) -> impl IntoResponse {
    let status = match dependencies.overall() {
        "down" => StatusCode::SERVICE_UNAVAILABLE,
        _ => StatusCode::OK,
    };
    (status, [(CONTENT_TYPE, "application/json")], dependencies.json() + "\n")
}
