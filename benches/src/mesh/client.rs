//! The calling process: unary calls by one of several ways, so that each way's CPU time is told apart.

use std::{
    str::FromStr,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use sightline_mesh::{
    Deadline,
    client::{
        CallOptions, Channel as MeshChannel, Cluster, ClusterOptions, Fixed, MethodPolicies, MethodPolicy,
        Outcome, Pick, TransportOptions,
    },
};
use sightline_proto::ratelimiter::{CheckRequest, rate_limiter_service_client::RateLimiterServiceClient};
use sightline_telemetry::{TelemetryConfig, root_span, trace::Parent};
use tokio::task::JoinSet;
use tonic::{
    Request, Status,
    transport::{Channel, Endpoint},
};
use tracing::Instrument;

use crate::child::{orders, say};

/// The called method's path, for the table of policies.
pub(crate) const CHECK: &str = "/sightline.ratelimiter.v1.RateLimiterService/Check";
/// How long a caller waits, where the way has deadlines.
const TIMEOUT: Duration = Duration::from_secs(5);

/// How calls are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) enum Way {
    /// tonic's channel, with the settings of a mesh connection: what is compared is the way to it.
    Bare,
    /// The same, and each call has a deadline.
    BareDeadline,
    /// A replica is picked and called over its connection.
    Pick,
    /// The mesh's channel: deadline, retries within budgets, throttle, gRPC's metrics.
    Channel,
    /// The same inside of a trace, one in a hundred of which is kept and sent.
    Traced,
}

impl Way {
    /// In the table's order.
    pub(crate) const ALL: [Self; 5] =
        [Self::Bare, Self::BareDeadline, Self::Pick, Self::Channel, Self::Traced];

    /// As the table shows it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bare => "bare tonic channel",
            Self::BareDeadline => "bare, with a deadline",
            Self::Pick => "Cluster::pick",
            Self::Channel => "mesh Channel",
            Self::Traced => "mesh Channel, traced at 1 %",
        }
    }
}

impl FromStr for Way {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let way = Self::ALL.into_iter().find(|way| format!("{way:?}") == text);
        way.with_context(|| format!("{text:?} is no way to call"))
    }
}

/// What one round showed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Load {
    pub(crate) calls: usize,
    pub(crate) seconds: f64,
    /// Microseconds.
    pub(crate) p50: f64,
    pub(crate) p99: f64,
}

#[derive(Clone)]
enum Caller {
    Bare(RateLimiterServiceClient<Channel>, Option<Duration>),
    Pick(Cluster),
    Channel(RateLimiterServiceClient<MeshChannel>),
    Traced(RateLimiterServiceClient<MeshChannel>),
}

impl Caller {
    async fn new(way: Way, address: &str) -> Result<Self> {
        let fixed = || Fixed::from_uris("replica", &[address.to_owned()]);
        let cluster = || Ok::<_, anyhow::Error>(Cluster::start(ClusterOptions::new("replica", fixed()?)));
        let channel = || Ok::<_, anyhow::Error>(RateLimiterServiceClient::new(channel(cluster()?)?));
        Ok(match way {
            Way::Bare => Self::Bare(bare(address).await?, None),
            Way::BareDeadline => Self::Bare(bare(address).await?, Some(TIMEOUT)),
            Way::Pick => Self::Pick(cluster()?),
            Way::Channel => Self::Channel(channel()?),
            Way::Traced => Self::Traced(channel()?),
        })
    }

    async fn call(&mut self) -> Result<(), Status> {
        let message = CheckRequest::default();
        match self {
            Self::Bare(client, timeout) => {
                let mut request = Request::new(message);
                if let Some(timeout) = timeout {
                    request.set_timeout(*timeout);
                }
                client.check(request).await?;
            }
            Self::Pick(cluster) => {
                let picked = cluster.pick(Pick::until(Deadline::after(TIMEOUT))).await?;
                let transport =
                    picked.transport().ok_or_else(|| Status::unavailable("the connection went"))?;
                RateLimiterServiceClient::new(transport).check(message).await?;
                picked.done(Outcome::Success);
            }
            Self::Channel(client) => drop(client.check(message).await?),
            Self::Traced(client) => {
                let trace = Parent::default().begin();
                let span = root_span!(trace, "bench.call");
                trace.around(client.check(message).instrument(span)).await?;
            }
        }
        Ok(())
    }
}

async fn bare(address: &str) -> Result<RateLimiterServiceClient<Channel>> {
    let mesh = TransportOptions::default();
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .tcp_nodelay(true)
        .http2_keep_alive_interval(mesh.keepalive_interval)
        .keep_alive_timeout(mesh.keepalive_timeout)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(mesh.stream_window)
        .initial_connection_window_size(mesh.connection_window);
    Ok(RateLimiterServiceClient::new(endpoint.connect().await?))
}

/// The mesh's channel with what a safe method has: a deadline, and retries that are not needed here.
fn channel(cluster: Cluster) -> Result<MeshChannel> {
    let policies = MethodPolicies::default().method(CHECK, MethodPolicy::idempotent().timeout(TIMEOUT))?;
    Ok(MeshChannel::new(cluster, &policies, CallOptions::default()))
}

/// `callers` that call one after another for so long.
async fn round(caller: &Caller, callers: usize, length: Duration) -> Result<Load> {
    let (since, mut tasks) = (Instant::now(), JoinSet::new());
    for _ in 0..callers {
        let mut caller = caller.clone();
        tasks.spawn(async move {
            let mut latencies: Vec<Duration> = Vec::new();
            while since.elapsed() < length {
                let asked = Instant::now();
                caller.call().await?;
                latencies.push(asked.elapsed());
            }
            Ok::<_, Status>(latencies)
        });
    }
    let mut latencies = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        latencies.extend(ended??);
    }
    let seconds = since.elapsed().as_secs_f64();
    latencies.sort_unstable();
    let at = |share: f64| {
        let index = (latencies.len() - 1) as f64 * share;
        latencies[index as usize].as_secs_f64() * 1e6
    };
    Ok(Load { calls: latencies.len(), seconds, p50: at(0.50), p99: at(0.99) })
}

/// Calls until there are no more orders: `client WAY ADDRESS [COLLECTOR]`; each order is `CALLERS MILLISECONDS`.
pub(crate) async fn run(arguments: &[String]) -> Result<()> {
    let [way, address, collector @ ..] = arguments else { bail!("{arguments:?} is no client") };
    let way: Way = way.parse()?;
    let mut telemetry = TelemetryConfig { log: "warn".into(), otlp_metrics: false, ..Default::default() };
    if way == Way::Traced {
        telemetry.otlp_endpoint = collector.first().map(|address| format!("http://{address}"));
    }
    // As in a service: the metrics of each call are kept.
    let telemetry = sightline_telemetry::start(&telemetry, "bench")?;
    tokio::spawn(sightline_telemetry::metrics::upkeep());
    let mut caller = Caller::new(way, address).await?;
    caller.call().await?;
    let mut orders = orders();
    say("ready")?;
    while let Some(order) = orders.recv().await {
        let (callers, length) = order.split_once(' ').context("an order is CALLERS MILLISECONDS")?;
        let length = Duration::from_millis(length.parse()?);
        say(&serde_json::to_string(&round(&caller, callers.parse()?, length).await?)?)?;
    }
    telemetry.stop().await;
    Ok(())
}
