//! One wiring file per role: configuration in, a running server out.

pub(crate) mod classifier;
pub(crate) mod ingest;
pub(crate) mod ratelimiter;
pub(crate) mod stats;

use std::{future::Future, pin::Pin, sync::Arc};

use sightline_mesh::{
    auth::{ForwardTrust, Guard, Verifier},
    server::{Accept, Lifecycle, Options, Plain, ServeError, Server, ServerConfig},
};
use sightline_telemetry::dependencies::Dependencies;
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

use crate::{NodeError, Role, tls::Tls};

/// What every role is built with.
#[derive(Debug, Clone, Default)]
pub(crate) struct Shared {
    pub(crate) verifier: Option<Arc<Verifier>>,
    pub(crate) tls: Arc<Tls>,
    pub(crate) dependencies: Dependencies,
    pub(crate) server: ServerConfig,
    /// Extra attempts of the calls made for one call, in all services together.
    pub(crate) tree_attempts: u32,
}

impl Shared {
    /// For the public edge.
    pub(crate) fn client_guard(&self) -> Guard {
        Guard::new(self.verifier.clone(), "classify")
    }

    /// Starts serving a role.
    pub(crate) fn serve(
        &self,
        role: Role,
        server: Server,
        lifecycle: Lifecycle,
        finish: Finish,
    ) -> Result<Running, NodeError> {
        let accept: Arc<dyn Accept> = match self.tls.acceptor(role)? {
            Some(acceptor) => Arc::new(acceptor),
            None => Arc::new(Plain),
        };
        let options = Options {
            accept,
            config: self.server.clone(),
            attempts: self.tree_attempts,
            descriptors: vec![sightline_proto::FILE_DESCRIPTOR_SET],
            dependencies: self.dependencies.clone(),
            ..Options::default()
        };
        let server = tokio::spawn(server.run_with(lifecycle.clone(), options));
        Ok(Running { role, lifecycle, server, finish })
    }

    /// For services that only other services call. Claims of a user count where a peer of the mesh that has proven who it
    /// is hands them on. Ours name user and tenant in each message, as their streams are shared by all users.
    pub(crate) fn service_guard(&self) -> Guard {
        Guard::inside(self.verifier.clone(), "service", ForwardTrust::Mtls)
    }

    /// Keeps keys and certificates as their files and URLs are, for as long as the handles live.
    pub(crate) fn watch(&self) -> Vec<AbortOnDropHandle<()>> {
        let mut watches = self.tls.watch(&self.dependencies);
        if let Some(verifier) = &self.verifier {
            watches.push(verifier.watch(self.dependencies.register("auth")));
        }
        watches
    }
}

type Finish = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A role that serves.
pub(crate) struct Running {
    role: Role,
    lifecycle: Lifecycle,
    server: JoinHandle<Result<(), ServeError>>,
    /// What is left to do after the last call ended: flush, join threads.
    finish: Finish,
}

impl Running {
    /// Drains, waits for the calls in flight within the server's own bound, and flushes.
    pub(crate) async fn stop(self) {
        self.lifecycle.drain();
        self.end().await;
    }

    /// The same without a lame duck.
    pub(crate) async fn stop_now(self) {
        self.lifecycle.drain_now();
        self.end().await;
    }

    async fn end(self) {
        if let Ok(Err(problem)) = self.server.await {
            tracing::error!(role = self.role.name(), "the server ended: {problem}");
        }
        self.finish.await;
    }

    /// Completes when the server ends by itself, which it never should.
    pub(crate) async fn ended(&mut self) -> NodeError {
        let problem = match (&mut self.server).await {
            Ok(Ok(())) => "without an error".into(),
            Ok(Err(error)) => error.to_string(),
            Err(panic) => panic.to_string(),
        };
        NodeError::Ended { role: self.role.name(), problem }
    }
}

/// Slack between the largest payload and the largest message: field tags, ids, other texts.
pub(crate) const MESSAGE_SLACK: usize = 64 << 10;

/// Nothing to do at the end.
pub(crate) fn nothing() -> Finish {
    Box::pin(std::future::ready(()))
}
