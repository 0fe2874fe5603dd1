//! Starting and stopping.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use sightline_ingest::Pipeline;
use sightline_mesh::{auth::Verifier, server::bind};
use sightline_telemetry::{
    admin::{Admin, Page},
    dependencies::Dependencies,
};
use tokio::{net::TcpListener, sync::oneshot, task::JoinHandle};
use tokio_util::task::AbortOnDropHandle;
use tracing::info;

use crate::{
    NodeConfig, NodeError,
    check::check_reach,
    roles::{self, Running, Shared},
    tls::Tls,
};

/// The services of the mesh, in the order in which they start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Says whether a caller may go on.
    Ratelimiter,
    /// Runs models.
    Classifier,
    /// Counts.
    Stats,
    /// The public edge.
    Ingest,
}

impl Role {
    /// All of them, in the order in which they start.
    pub const ALL: [Self; 4] = [Self::Ratelimiter, Self::Classifier, Self::Stats, Self::Ingest];

    /// As on the command line and in the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ratelimiter => "ratelimiter",
            Self::Classifier => "classifier",
            Self::Stats => "stats",
            Self::Ingest => "ingest",
        }
    }

    pub(crate) fn listen(self, config: &NodeConfig) -> (&'static str, SocketAddr) {
        match self {
            Self::Ratelimiter => ("ratelimiter.listen", config.ratelimiter.listen),
            Self::Classifier => ("classifier.listen", config.classifier.listen),
            Self::Stats => ("stats.listen", config.stats.listen),
            Self::Ingest => ("ingest.listen", config.ingest.listen),
        }
    }
}

/// Roles that run in this process.
pub struct Node {
    addresses: BTreeMap<Role, SocketAddr>,
    admin: Option<(SocketAddr, oneshot::Sender<()>, JoinHandle<()>)>,
    running: Vec<Running>,
    pipeline: Option<Arc<Pipeline>>,
    /// Set when it was asked to stop.
    leaving: Arc<AtomicBool>,
    /// Look after keys and certificates.
    _watches: Vec<AbortOnDropHandle<()>>,
}

/// How long a request to the admin server may hold a stop back, such as one that was sent by half.
const ADMIN_STOP: Duration = Duration::from_secs(2);
/// How often readiness is looked at while a process starts.
const POLL: Duration = Duration::from_millis(20);

impl Node {
    /// Starts `roles`. When this returns every listener accepts and every model is loaded; ingest may still be
    /// connecting: see [`Node::ready`].
    ///
    /// # Errors
    /// [`NodeError`]; roles started before the failing one are stopped.
    pub async fn start(mut config: NodeConfig, roles: &[Role]) -> Result<Self, NodeError> {
        config.validate().map_err(NodeError::Config)?;
        // Before anything is built: some count through handles that they get once.
        sightline_telemetry::metrics::recorder();
        let dependencies = Dependencies::default();
        let shared = Shared {
            verifier: Verifier::from_config(&config.auth)?,
            tls: Arc::new(Tls::load(&config)?),
            dependencies: dependencies.clone(),
            server: config.server.clone(),
            tree_attempts: config.mesh.tree_attempts,
        };
        let mut roles = roles.to_vec();
        roles.sort_unstable();
        roles.dedup();

        let mut listeners = BTreeMap::new();
        let mut addresses = BTreeMap::new();
        for role in roles {
            let (setting, address) = role.listen(&config);
            let is_guarded = shared.verifier.is_some() || shared.tls.is_mutual(role);
            check_reach(&config, is_guarded, setting, address)?;
            // Before anything is bound: a list of callers that is missing is an error of the configuration.
            shared.tls.acceptor(role)?;
            let listener = bind(setting, address).await?;
            addresses.insert(role, listener.local_addr().unwrap_or(address));
            listeners.insert(role, listener);
        }
        let admin = match config.telemetry.admin_listen.0 {
            Some(address) => Some(bind("telemetry.admin_listen", address).await?),
            None => None,
        };
        connect_to_each_other(&mut config, &addresses);

        let watches = shared.watch();
        let mut node = Self {
            addresses,
            admin: None,
            running: Vec::new(),
            pipeline: None,
            leaving: Arc::default(),
            _watches: watches,
        };
        for (role, listener) in listeners {
            if let Err(error) = node.start_role(role, &config, listener, &shared).await {
                // Nobody has been told of it yet.
                node.stop_rest().await;
                return Err(error);
            }
        }
        node.serve_admin(admin, dependencies);
        Ok(node)
    }

    async fn start_role(
        &mut self,
        role: Role,
        config: &NodeConfig,
        listener: TcpListener,
        shared: &Shared,
    ) -> Result<(), NodeError> {
        let running = match role {
            Role::Ratelimiter => roles::ratelimiter::start(&config.ratelimiter, listener, shared).await?,
            Role::Classifier => roles::classifier::start(&config.classifier, listener, shared).await?,
            Role::Stats => {
                let path = &config.node.data_dir;
                let fail = |source| NodeError::DataDir { path: path.clone(), source };
                tokio::fs::create_dir_all(path).await.map_err(fail)?;
                roles::stats::start(&config.stats, path, listener, shared).await?
            }
            Role::Ingest => {
                let (running, pipeline) = roles::ingest::start(config, listener, shared).await?;
                self.pipeline = Some(pipeline);
                running
            }
        };
        info!(role = role.name(), address = %self.addresses[&role], "serving");
        self.running.push(running);
        Ok(())
    }

    fn serve_admin(&mut self, listener: Option<TcpListener>, dependencies: Dependencies) {
        let Some(listener) = listener else { return };
        let Ok(address) = listener.local_addr() else { return };
        let pipeline = self.pipeline.clone();
        let ready = Arc::new(move || pipeline.as_ref().map_or(Ok(()), |pipeline| pipeline.ready()));
        let mesh = self.pipeline.clone().map(|pipeline| -> Page {
            Arc::new(move || serde_json::to_string(&pipeline.mesh()).expect("numbers and texts"))
        });
        let leaving = Arc::clone(&self.leaving);
        let serving = Arc::new(move || match leaving.load(Ordering::Relaxed) {
            true => Err("it was asked to stop".to_owned()),
            false => Ok(()),
        });
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(async move {
            let stopped = async { drop(stopped.await) };
            let admin = Admin::new(listener, ready, dependencies).with_serving(serving).with_mesh(mesh);
            if let Err(error) = admin.run(stopped).await {
                tracing::error!("the admin server ended: {error}");
            }
        });
        self.admin = Some((address, stop, task));
    }

    /// Where a role listens.
    pub fn address(&self, role: Role) -> Option<SocketAddr> {
        self.addresses.get(&role).copied()
    }

    /// Where /metrics is.
    pub fn admin_address(&self) -> Option<SocketAddr> {
        self.admin.as_ref().map(|(address, ..)| *address)
    }

    /// Waits until a frame could be classified.
    ///
    /// # Errors
    /// [`NodeError::NotReady`] saying what was waited for.
    pub async fn ready(&self, timeout: Duration) -> Result<(), NodeError> {
        let Some(pipeline) = &self.pipeline else { return Ok(()) };
        let since = Instant::now();
        while let Err(waiting) = pipeline.ready() {
            if since.elapsed() > timeout {
                return Err(NodeError::NotReady(timeout, waiting));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// Completes with the reason when a server ends by itself.
    pub async fn failed(&mut self) -> NodeError {
        let mut servers: Vec<_> = self.running.iter_mut().map(|running| Box::pin(running.ended())).collect();
        std::future::poll_fn(|context| {
            for server in &mut servers {
                if let std::task::Poll::Ready(error) = server.as_mut().poll(context) {
                    return std::task::Poll::Ready(error);
                }
            }
            std::task::Poll::Pending
        })
        .await
    }

    async fn stop_rest(&mut self) {
        while let Some(running) = self.running.pop() {
            running.stop_now().await;
        }
    }

    /// Stops in reverse order, each role within its own bound: callers first, then what they call. There is one lame duck,
    /// that of the first: when it is over, whoever routes calls to this process has heard of its end.
    pub async fn stop(mut self) {
        self.leaving.store(true, Ordering::Relaxed);
        if let Some(first) = self.running.pop() {
            first.stop().await;
        }
        self.stop_rest().await;
        if let Some((_, stop, mut task)) = self.admin.take() {
            stop.send(()).ok();
            if tokio::time::timeout(ADMIN_STOP, &mut task).await.is_err() {
                task.abort();
            }
        }
        info!("stopped");
    }
}

/// Ingest calls the roles that run beside it where they really listen, which matters for port 0.
fn connect_to_each_other(config: &mut NodeConfig, addresses: &BTreeMap<Role, SocketAddr>) {
    let ingest = &mut config.ingest;
    for (role, upstream) in [
        (Role::Ratelimiter, &mut ingest.ratelimiter),
        (Role::Classifier, &mut ingest.classifier),
        (Role::Stats, &mut ingest.stats),
    ] {
        if let Some(address) = addresses.get(&role) {
            *upstream = vec![format!("http://{address}")];
        }
    }
}
