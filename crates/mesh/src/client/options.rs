//! Settings of a cluster, their defaults and why.

use std::{collections::HashMap, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use sightline_telemetry::dependencies::Dependency;
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue};

use super::{Connect, Discover, EndpointError, TcpConnect, Without};

/// What [`super::Cluster::start`] needs.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// The service's name, for messages and metrics.
    pub service: &'static str,
    /// Where its replicas are.
    pub discover: Arc<dyn Discover>,
    /// How connections are made.
    pub connect: Arc<dyn Connect>,
    /// Goes with every request made by [`super::Cluster::request`].
    pub metadata: Vec<(AsciiMetadataKey, AsciiMetadataValue)>,
    /// Where it is reported whether the service can be called, and what it means when not.
    pub report: Option<(Dependency, Without)>,
    /// Everything that has a default.
    pub mesh: MeshOptions,
    /// Where random choices start: the same seed and the same events give the same choices. `None` in production.
    pub seed: Option<u64>,
}

impl ClusterOptions {
    /// Over TCP with the defaults.
    pub fn new(service: &'static str, discover: impl Discover) -> Self {
        Self::over(service, Arc::new(discover))
    }

    /// The same over what was made elsewhere.
    pub fn over(service: &'static str, discover: Arc<dyn Discover>) -> Self {
        Self {
            service,
            discover,
            connect: Arc::new(TcpConnect::default()),
            metadata: Vec::new(),
            report: None,
            mesh: MeshOptions::default(),
            seed: None,
        }
    }

    /// Metadata for every request.
    ///
    /// # Errors
    /// [`EndpointError`] for a value that is not ASCII.
    pub fn metadata(mut self, metadata: &HashMap<&'static str, String>) -> Result<Self, EndpointError> {
        for (key, value) in metadata {
            let value = value.parse().map_err(|_| EndpointError {
                uri: (*key).to_owned(),
                problem: "metadata must be ASCII".into(),
            })?;
            self.metadata.push((AsciiMetadataKey::from_static(key), value));
        }
        Ok(self)
    }

    /// Says how the service's endpoints are.
    #[must_use]
    pub fn reporting(mut self, dependency: Dependency, without: Without) -> Self {
        self.report = Some((dependency, without));
        self
    }

    /// With other settings.
    #[must_use]
    pub fn mesh(mut self, mesh: MeshOptions) -> Self {
        self.mesh = mesh;
        self
    }
}

/// How calls to a service are spread and what happens when replicas fail.
#[derive(Debug, Clone)]
pub struct MeshOptions {
    /// Who takes the next call.
    pub balance: Balance,
    /// Connections.
    pub transport: TransportOptions,
    /// Connecting again.
    pub reconnect: ReconnectOptions,
    /// What an endpoint is taken to cost.
    pub load: LoadOptions,
    /// When an endpoint is turned away for a while.
    pub breaker: BreakerOptions,
    /// What servers say of themselves.
    pub health: HealthOptions,
    /// Which zone comes first.
    pub zone: ZoneOptions,
    /// How long a pick waits for a usable endpoint, deadline permitting: 2 s, the restart of one replica.
    pub patience: Duration,
    /// When no endpoint was usable for so long, picks fail at once until one is: 3 s, so that a queue of callers does not
    /// build up behind a service that is down.
    pub failfast_after: Duration,
    /// Below this share of usable endpoints, ejected ones and lame ducks are used too: better a failing replica than
    /// all calls on a few that break down next. 0.3: with three replicas, one that is left is not panic.
    pub panic_below: f64,
    /// Calls in flight on one endpoint past which a pick does not choose it: 1,024, what our servers take on a connection.
    pub max_in_flight: usize,
    /// Picks that may wait at once: 4,096, more is a service that is down and not one that restarts.
    pub max_waiting: usize,
    /// Endpoints taken from discovery, in order of their addresses: 1,024 connections are enough for one process.
    pub max_endpoints: usize,
    /// How long calls on an endpoint that discovery dropped may still run before its connection is cut: 30 s.
    pub removal_timeout: Duration,
}

impl Default for MeshOptions {
    fn default() -> Self {
        Self {
            balance: Balance::default(),
            transport: TransportOptions::default(),
            reconnect: ReconnectOptions::default(),
            load: LoadOptions::default(),
            breaker: BreakerOptions::default(),
            health: HealthOptions::default(),
            zone: ZoneOptions::default(),
            patience: Duration::from_secs(2),
            failfast_after: Duration::from_secs(3),
            panic_below: 0.3,
            max_in_flight: 1024,
            max_waiting: 4096,
            max_endpoints: 1024,
            removal_timeout: Duration::from_secs(30),
        }
    }
}

/// Who takes the next call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Balance {
    /// The cheaper of two random endpoints: latency × calls in flight (power of two choices).
    #[default]
    LeastLoaded,
    /// One after another, in proportion to weight.
    RoundRobin,
    /// Calls with the same key on the same endpoint while it is usable and not overloaded, whatever its zone.
    RingHash,
}

/// One connection.
#[derive(Debug, Clone)]
pub struct TransportOptions {
    /// A replica that takes longer to accept a connection is as good as down.
    pub connect_timeout: Duration,
    /// A connection on which nothing was read for so long is asked for a sign of life. Foreign servers may object to many
    /// pings (grpc-go by default to more than one in 5 minutes): after a GOAWAY that says so the interval doubles.
    pub keepalive_interval: Duration,
    /// Without one for so long it is closed. Together they are the time after which a stopped or unreachable replica is
    /// given up: 4 s.
    pub keepalive_timeout: Duration,
    /// HTTP/2 flow-control window of one call's answer: scores, decisions and acknowledgements are small, lists of models
    /// larger.
    pub stream_window: u32,
    /// The same of the whole connection.
    pub connection_window: u32,
}

impl Default for TransportOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(2),
            keepalive_interval: Duration::from_secs(2),
            keepalive_timeout: Duration::from_secs(2),
            stream_window: 1 << 20,
            connection_window: 4 << 20,
        }
    }
}

/// Pauses between tries to connect: each twice the last, every one times a random 0.5 to 1.5.
#[derive(Debug, Clone)]
pub struct ReconnectOptions {
    /// The first pause: 20 ms, a process that restarts is missed briefly.
    pub first: Duration,
    /// The longest: 2 s, so that a replica that is back is used soon; one try costs little.
    pub longest: Duration,
    /// A connection that lasted so long starts the pauses anew, the first try without any: 2 s.
    pub stable_after: Duration,
}

impl Default for ReconnectOptions {
    fn default() -> Self {
        Self {
            first: Duration::from_millis(20),
            longest: Duration::from_secs(2),
            stable_after: Duration::from_secs(2),
        }
    }
}

/// What an endpoint is taken to cost: see [`super::load`].
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// How fast an old latency loses weight: after so long it counts 37 %. 5 s: a replica that recovered is tried again
    /// within seconds (Finagle and linkerd take 10 s).
    pub decay: Duration,
    /// How fast one slow answer is forgiven: 250 ms, so that it turns calls away at once and a replica that is always slow
    /// still differs from one that paused.
    pub peak_decay: Duration,
    /// What an endpoint is taken to need before its first answer came, and at least after a failure, so that one that fails
    /// fast does not look fast: 30 ms.
    pub default_rtt: Duration,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            decay: Duration::from_secs(5),
            peak_decay: Duration::from_millis(250),
            default_rtt: Duration::from_millis(30),
        }
    }
}

/// When an endpoint is turned away for a while: see [`super::breaker`].
#[derive(Debug, Clone)]
pub struct BreakerOptions {
    /// So many failures in a row eject: 5, as Envoy.
    pub consecutive_failures: u32,
    /// What the success rate is counted over: 10 s.
    pub window: Duration,
    /// Fewer calls than this in a window say nothing: 20.
    pub min_calls: u32,
    /// A lower share of successes ejects: 0.5. Half of the answers wrong is a fault of the replica, not of chance.
    pub min_success_rate: f64,
    /// How long the first ejection lasts; each one after it twice as long: 1 s, as linkerd.
    pub ejection: Duration,
    /// The longest ejection: 60 s.
    pub longest_ejection: Duration,
    /// Without an ejection for so long the next one is a first again: 60 s.
    pub forgiven_after: Duration,
    /// Of all endpoints no larger share is ejected at once, of two or more at least one may be, and never all: 0.5.
    pub max_ejected: f64,
}

impl Default for BreakerOptions {
    fn default() -> Self {
        Self {
            consecutive_failures: 5,
            window: Duration::from_secs(10),
            min_calls: 20,
            min_success_rate: 0.5,
            ejection: Duration::from_secs(1),
            longest_ejection: Duration::from_secs(60),
            forgiven_after: Duration::from_secs(60),
            max_ejected: 0.5,
        }
    }
}

/// What servers say of themselves over `grpc.health.v1`.
#[derive(Debug, Clone)]
pub struct HealthOptions {
    /// Which service is watched: the empty name is the server as a whole. `None` watches nothing.
    pub service: Option<String>,
    /// How long a watch that broke waits before it is opened again, and how long an answer to a check may take: 1 s.
    pub pause: Duration,
}

impl Default for HealthOptions {
    fn default() -> Self {
        Self { service: Some(String::new()), pause: Duration::from_secs(1) }
    }
}

/// Which zone comes first.
#[derive(Debug, Clone)]
pub struct ZoneOptions {
    /// The zone of this process. `None`: all zones are alike, as they are to [`Balance::RingHash`].
    pub own: Option<String>,
    /// While at least this share of the own zone's weight is usable, calls stay there: 0.7. Below, all zones share them.
    pub stay_above: f64,
}

impl Default for ZoneOptions {
    fn default() -> Self {
        Self { own: None, stay_above: 0.7 }
    }
}
