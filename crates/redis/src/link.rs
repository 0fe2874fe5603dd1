//! A connection that is always there to be asked.

use std::{
    future::Future,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use rand::Rng;
use redis::{
    Cmd, ErrorKind, Pipeline, RedisError, RedisResult, ServerErrorKind, Value,
    aio::ConnectionLike,
    cluster_routing::{RoutingInfo, SingleNodeRoutingInfo},
};
use sightline_config::ServerUrl;
use sightline_telemetry::dependencies::{Condition, Dependency};
use tokio::{
    sync::Notify,
    task::JoinHandle,
    time::{Instant, sleep, timeout, timeout_at},
};
use tracing::debug;

use crate::{
    Script,
    breaker::Breaker,
    target::{Connection, Target, TargetError, Topology},
};

/// How a link behaves.
#[derive(Debug, Clone)]
pub struct Options {
    /// The CA that signed the server's certificate, in PEM; unset: those that the system trusts.
    pub ca_file: Option<PathBuf>,
    /// A call that is not answered by then has failed.
    pub timeout: Duration,
    /// Failures in a row after which callers are turned away at once. A single late answer, as on a busy machine, opens
    /// nothing; five calls of 5 ms that got none cost 25 ms once.
    pub failures: u32,
    /// How long a connection may take to be made, TLS and all.
    pub connect_timeout: Duration,
    /// How often a server that is away is tried: between once and twice this, at random, so that replicas spread. Also how
    /// often an idle one is asked whether it is still there.
    pub probe_every: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            ca_file: None,
            timeout: Duration::from_millis(5),
            failures: 5,
            connect_timeout: Duration::from_secs(2),
            probe_every: Duration::from_millis(100),
        }
    }
}

/// Attempts to connect are at most this far apart.
const LONGEST_BACKOFF: Duration = Duration::from_secs(5);
/// An idle connection is asked this many times less often than one that is away.
const IDLE: u32 = 10;
/// Unanswered probes after which the connection is made anew: its other end may be gone without a word.
const PROBES: u32 = 20;

/// Why a call has no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LinkError {
    /// Redis is slow or away. Whether the call was carried out is not known when it was on its way.
    #[error("Redis is away: {0}")]
    Away(&'static str),
    /// Redis answered with an error.
    #[error("Redis refused: {0}")]
    Refused(RedisError),
}

/// Redis, to be asked. Cheap to clone; the connection and its task end with the last clone.
#[derive(Clone)]
pub struct Link {
    shared: Arc<Shared>,
    _task: Arc<Task>,
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("topology", &self.shared.topology).finish_non_exhaustive()
    }
}

struct Shared {
    connection: ArcSwapOption<Connection>,
    breaker: Breaker,
    /// Wakes the task: the breaker opened.
    opened: Notify,
    /// The server answers, but is a replica now: its successor must be looked for.
    demoted: AtomicBool,
    timeout: Duration,
    topology: Topology,
}

/// Ends the task when dropped.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Link {
    /// Checks the URL and begins to connect in the background. Called inside a tokio runtime.
    ///
    /// # Errors
    /// [`TargetError`]: the URL or the CA file. A server that is away is no error.
    pub fn new(
        url: &ServerUrl,
        options: &Options,
        dependency: Option<Dependency>,
    ) -> Result<Self, TargetError> {
        let target = Target::new(url, options.ca_file.as_deref(), options.connect_timeout)?;
        let shared = Arc::new(Shared {
            connection: ArcSwapOption::empty(),
            breaker: Breaker::new(options.failures),
            opened: Notify::new(),
            demoted: AtomicBool::new(false),
            timeout: options.timeout,
            topology: target.topology,
        });
        let keeper = Keeper { shared: Arc::clone(&shared), target, options: options.clone(), dependency };
        let task = Arc::new(Task(tokio::spawn(keeper.run())));
        Ok(Self { shared, _task: task })
    }

    /// What stands behind the URL.
    pub fn topology(&self) -> Topology {
        self.shared.topology
    }

    /// Whether calls are let through now.
    pub fn is_available(&self) -> bool {
        !self.shared.breaker.is_open()
    }

    /// Waits until calls are let through; false when they are not by then. For start-up and tests.
    pub async fn available_within(&self, time: Duration) -> bool {
        let poll = async {
            while !self.is_available() {
                sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(time, poll).await.is_ok()
    }

    /// Sends one command.
    ///
    /// # Errors
    /// [`LinkError`], within the link's timeout.
    pub async fn command(&self, cmd: &Cmd) -> Result<Value, LinkError> {
        self.command_by(Instant::now() + self.shared.timeout, cmd).await
    }

    /// Sends one command that is to be answered by `deadline`.
    ///
    /// # Errors
    /// [`LinkError`], by the deadline.
    pub async fn command_by(&self, deadline: Instant, cmd: &Cmd) -> Result<Value, LinkError> {
        let mut connection = self.shared.connection()?;
        self.shared.settle(deadline, connection.command(cmd)).await
    }

    /// Sends several commands in one round trip; on a Cluster all keys must share a slot. The first error is returned.
    ///
    /// # Errors
    /// [`LinkError`], within the link's timeout.
    pub async fn pipeline(&self, pipeline: &Pipeline) -> Result<Vec<Value>, LinkError> {
        let mut connection = self.shared.connection()?;
        let deadline = Instant::now() + self.shared.timeout;
        self.shared.settle(deadline, connection.pipeline(pipeline)).await
    }

    /// Runs a script; `fill` adds the number of keys, the keys and the arguments. One round trip, two where the server
    /// did not know the script.
    ///
    /// # Errors
    /// [`LinkError`], by the deadline.
    pub async fn script_by(
        &self,
        deadline: Instant,
        script: &Script,
        fill: impl Fn(&mut Cmd) + Send + Sync,
    ) -> Result<Value, LinkError> {
        let mut by_digest = script.by_digest();
        fill(&mut by_digest);
        match self.command_by(deadline, &by_digest).await {
            Err(LinkError::Refused(error))
                if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) =>
            {
                let mut by_source = script.by_source();
                fill(&mut by_source);
                self.command_by(deadline, &by_source).await
            }
            answer => answer,
        }
    }

    /// [`Link::script_by`] within the link's timeout.
    ///
    /// # Errors
    /// [`LinkError`].
    pub async fn script(
        &self,
        script: &Script,
        fill: impl Fn(&mut Cmd) + Send + Sync,
    ) -> Result<Value, LinkError> {
        self.script_by(Instant::now() + self.shared.timeout, script, fill).await
    }
}

impl Connection {
    async fn command(&mut self, cmd: &Cmd) -> RedisResult<Value> {
        let answer = match self {
            Self::One(one) => one.send_packed_command(cmd).await,
            Self::Cluster(cluster) => cluster.req_packed_command(cmd).await,
        };
        answer.and_then(or_error)
    }

    async fn pipeline(&mut self, pipeline: &Pipeline) -> RedisResult<Vec<Value>> {
        let count = pipeline.len();
        let answers = match self {
            Self::One(one) => one.send_packed_commands(pipeline, 0, count).await,
            Self::Cluster(cluster) => cluster.req_packed_commands(pipeline, 0, count).await,
        };
        answers?.into_iter().map(or_error).collect()
    }

    /// Any node of a Cluster: one that is away must not keep the others from being used.
    async fn ping(&mut self) -> RedisResult<Value> {
        let ping = redis::cmd("PING");
        let any = RoutingInfo::SingleNode(SingleNodeRoutingInfo::RandomPrimary);
        let answer = match self {
            Self::One(one) => one.send_packed_command(&ping).await,
            Self::Cluster(cluster) => cluster.route_command(ping, any).await,
        };
        answer.and_then(or_error)
    }
}

/// redis-rs hands a server's error over as a value. Only the outermost is looked at: no command here nests any.
fn or_error(answer: Value) -> RedisResult<Value> {
    match answer {
        Value::ServerError(error) => Err(error.into()),
        answer => Ok(answer),
    }
}

impl Shared {
    fn connection(&self) -> Result<Connection, LinkError> {
        if self.breaker.is_open() {
            return Err(LinkError::Away("not reachable"));
        }
        let connection = self.connection.load();
        connection.as_deref().cloned().ok_or(LinkError::Away("not connected"))
    }

    /// Waits for an answer and tells the breaker how it went.
    async fn settle<T>(
        &self,
        deadline: Instant,
        call: impl Future<Output = RedisResult<T>>,
    ) -> Result<T, LinkError> {
        match timeout_at(deadline, call).await {
            Ok(Ok(answer)) => {
                self.breaker.succeeded();
                Ok(answer)
            }
            Ok(Err(error)) => Err(self.failed(error)),
            Err(_) => {
                self.count(self.breaker.failed());
                Err(LinkError::Away("no answer in time"))
            }
        }
    }

    fn failed(&self, error: RedisError) -> LinkError {
        match error.kind() {
            ErrorKind::Server(ServerErrorKind::ReadOnly) => {
                self.demoted.store(true, Ordering::Relaxed);
                self.count(self.breaker.trip());
                LinkError::Away("it is a replica")
            }
            ErrorKind::Server(
                ServerErrorKind::BusyLoading
                | ServerErrorKind::ClusterDown
                | ServerErrorKind::MasterDown
                | ServerErrorKind::TryAgain,
            ) => {
                self.count(self.breaker.failed());
                LinkError::Away("it cannot serve now")
            }
            ErrorKind::Server(_) | ErrorKind::Extension => {
                self.breaker.succeeded();
                LinkError::Refused(error)
            }
            // A Cluster that lost one node serves the others' slots; a plain connection that broke is gone.
            _ if self.topology == Topology::Cluster || !error.is_connection_dropped() => {
                self.count(self.breaker.failed());
                LinkError::Away("the connection failed")
            }
            _ => {
                self.count(self.breaker.trip());
                LinkError::Away("the connection broke")
            }
        }
    }

    fn count(&self, opened: bool) {
        if opened {
            self.opened.notify_one();
        }
    }
}

/// The task that connects, probes and reports.
struct Keeper {
    shared: Arc<Shared>,
    target: Target,
    options: Options,
    dependency: Option<Dependency>,
}

/// Why a probe failed.
enum Probe {
    Late,
    Broken(String),
}

impl Keeper {
    async fn run(mut self) {
        let mut backoff = self.options.probe_every;
        loop {
            match timeout(self.options.connect_timeout * 2, self.target.connect()).await {
                Ok(Ok(connection)) => {
                    backoff = self.options.probe_every;
                    let why = self.keep(connection).await;
                    self.away(&why);
                }
                Ok(Err(error)) => self.away(&error.to_string()),
                Err(_) => self.away("connecting takes too long"),
            }
            self.shared.connection.store(None);
            sleep(jittered(backoff)).await;
            backoff = (backoff * 2).min(LONGEST_BACKOFF);
        }
    }

    /// Uses a connection for as long as it works; says why it no longer does.
    async fn keep(&self, mut connection: Connection) -> String {
        self.shared.connection.store(Some(Arc::new(connection.clone())));
        let mut unanswered = 0;
        loop {
            match self.probe(&mut connection).await {
                Ok(()) => {
                    unanswered = 0;
                    self.healthy();
                    // Idle, it is asked now and then; busy, its callers notice first.
                    let idle = jittered(self.options.probe_every * IDLE);
                    timeout(idle, self.shared.opened.notified()).await.ok();
                    if !self.shared.breaker.is_open() {
                        continue;
                    }
                    if self.shared.demoted.swap(false, Ordering::Relaxed) {
                        return "the server is a replica now".into();
                    }
                    self.away("calls are not answered in time");
                }
                Err(Probe::Broken(why)) => return why,
                Err(Probe::Late) => {
                    unanswered += 1;
                    if self.shared.breaker.failed() || self.shared.breaker.is_open() {
                        self.away("no answer in time");
                    }
                    if unanswered >= PROBES {
                        return "no answer for long: connecting anew".into();
                    }
                }
            }
            sleep(jittered(self.options.probe_every)).await;
        }
    }

    async fn probe(&self, connection: &mut Connection) -> Result<(), Probe> {
        match timeout(self.options.timeout, connection.ping()).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(Probe::Broken(error.to_string())),
            Err(_) => Err(Probe::Late),
        }
    }

    fn healthy(&self) {
        if self.shared.breaker.is_open() && self.shared.breaker.close() {
            debug!(redis = self.target.shown(), "available");
        }
        if let Some(dependency) = &self.dependency {
            dependency.report(Condition::Healthy);
        }
    }

    fn away(&self, why: &str) {
        self.shared.breaker.trip();
        if let Some(dependency) = &self.dependency {
            dependency.report(Condition::Degraded(format!("{}: {why}", self.target.shown())));
        }
    }
}

/// Between once and twice `time`.
fn jittered(time: Duration) -> Duration {
    time.mul_f64(rand::rng().random_range(1.0..2.0))
}
