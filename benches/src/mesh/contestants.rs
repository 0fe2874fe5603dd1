//! Who sends messages to three replicas, and by what rule.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sightline_ingest::limits::CheckLane;
use sightline_mesh::{
    Deadline, RpcError,
    client::{
        Ask, Balance, CallOptions, Channel as MeshChannel, Cluster, ClusterOptions, Fixed, Lane, MeshOptions,
        Message, MethodPolicies, MethodPolicy, PoolOptions, RouteKey, State, StreamPool, Transport,
    },
};
use sightline_proto::ratelimiter::{
    CheckRequest, CheckStreamRequest, rate_limiter_service_client::RateLimiterServiceClient,
};
use tokio::time::{Instant, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Channel, Endpoint},
};

use crate::client::CHECK;

/// How long a message may take.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(2);
/// How long a contestant may take to connect.
const CONNECT: Duration = Duration::from_secs(10);

/// Who takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Contestant {
    Pool,
    LeastLoaded,
    RoundRobin,
    RingHash,
    Tonic,
}

impl Contestant {
    /// In the table's order.
    pub(crate) const ALL: [Self; 5] =
        [Self::Pool, Self::LeastLoaded, Self::RoundRobin, Self::RingHash, Self::Tonic];

    /// As the table shows it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Pool => "StreamPool, least_loaded",
            Self::LeastLoaded => "mesh Channel, least_loaded",
            Self::RoundRobin => "mesh Channel, round_robin",
            Self::RingHash => "mesh Channel, ring_hash",
            Self::Tonic => "tonic balance_list",
        }
    }

    fn balance(self) -> Balance {
        match self {
            Self::RoundRobin => Balance::RoundRobin,
            Self::RingHash => Balance::RingHash,
            Self::Pool | Self::LeastLoaded | Self::Tonic => Balance::LeastLoaded,
        }
    }

    /// Connects to the replicas at these addresses.
    pub(crate) async fn connect(self, addresses: &[String]) -> Result<Sender> {
        if self == Self::Tonic {
            let endpoint = |address: &String| {
                Ok(Endpoint::from_shared(format!("http://{address}"))?.tcp_nodelay(true).timeout(TIMEOUT))
            };
            let endpoints = addresses.iter().map(endpoint).collect::<Result<Vec<_>>>()?;
            let channel = Channel::balance_list(endpoints.into_iter());
            return Ok(Sender::Tonic(RateLimiterServiceClient::new(channel)));
        }
        let mesh = MeshOptions { balance: self.balance(), ..MeshOptions::default() };
        let fixed = Fixed::from_uris("replica", addresses)?;
        let cluster = Cluster::start(ClusterOptions::new("replica", fixed).mesh(mesh));
        ready("every replica", || {
            cluster.snapshot().endpoints.iter().all(|endpoint| endpoint.state == State::Ready)
        })
        .await?;
        if self == Self::Pool {
            let pool = StreamPool::start(Checks, cluster, PoolOptions::default());
            let count = addresses.len();
            ready("a stream to each", || {
                pool.snapshot().streams.iter().filter(|streams| streams.credits > 0).count() == count
            })
            .await?;
            return Ok(Sender::Pool(pool));
        }
        let policy = MethodPolicy::idempotent().timeout(TIMEOUT);
        let policies = MethodPolicies::default().method(CHECK, policy)?;
        let channel = MeshChannel::new(cluster, &policies, CallOptions::default());
        Ok(Sender::Channel(RateLimiterServiceClient::new(channel)))
    }
}

async fn ready(what: &str, is: impl Fn() -> bool) -> Result<()> {
    let since = Instant::now();
    while !is() {
        ensure!(since.elapsed() < CONNECT, "{what}: not within {CONNECT:?}");
        sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// A contestant at work.
#[derive(Clone)]
pub(crate) enum Sender {
    Pool(StreamPool<Checks>),
    Channel(RateLimiterServiceClient<MeshChannel>),
    Tonic(RateLimiterServiceClient<Channel>),
}

impl Sender {
    /// Sends one message of this user and waits for its answer.
    pub(crate) async fn send(&mut self, user: u64) -> Result<()> {
        match self {
            Self::Pool(pool) => {
                let ask = Ask { deadline: Deadline::after(TIMEOUT), key: Some(user) };
                let answer = pool.call(ask, question).await?;
                answer.ok().context("an error instead of an answer")?;
            }
            Self::Channel(client) => {
                let mut request = Request::new(CheckRequest::default());
                request.extensions_mut().insert(RouteKey(user));
                client.check(request).await?;
            }
            Self::Tonic(client) => drop(client.check(CheckRequest::default()).await?),
        }
        Ok(())
    }
}

fn question(id: u64) -> CheckStreamRequest {
    CheckStreamRequest { id, check: Some(CheckRequest::default()), ..CheckStreamRequest::default() }
}

/// Ingest's checks, of a rate limiter where it does no harm to repeat one.
pub(crate) struct Checks;

impl Lane for Checks {
    type Outbound = <CheckLane as Lane>::Outbound;
    type Inbound = <CheckLane as Lane>::Inbound;
    type Answer = <CheckLane as Lane>::Answer;

    async fn open(
        &self,
        transport: Transport,
        outbound: Request<ReceiverStream<Self::Outbound>>,
    ) -> Result<Response<Streaming<Self::Inbound>>, Status> {
        CheckLane.open(transport, outbound).await
    }

    fn read(&self, inbound: Self::Inbound) -> Result<Message<Self::Answer>, RpcError> {
        CheckLane.read(inbound)
    }

    fn repeatable(&self) -> bool {
        true
    }

    fn hello(&self) -> Option<Self::Outbound> {
        CheckLane.hello()
    }
}
