//! The client: the same for all.

use std::{
    cell::Cell,
    collections::HashMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use futures_util::future::try_join_all;
use sightline_proto::{
    envoy::{
        extensions::common::ratelimit::v3::{RateLimitDescriptor, rate_limit_descriptor::Entry},
        service::ratelimit::v3::{
            RateLimitRequest, rate_limit_response::Code, rate_limit_service_client::RateLimitServiceClient,
        },
    },
    ratelimiter::{
        CheckRequest, CheckStreamRequest, check_stream_response::Result as Answer,
        rate_limiter_service_client::RateLimiterServiceClient,
    },
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::options::Options;

/// Connections of a gateway's workers, and streams of an ingest.
const CONNECTIONS: usize = 4;

/// Sends checks and waits for all answers: how long it took in all, and each, ascending.
pub(crate) async fn drive(
    name: &str,
    address: String,
    checks: usize,
    options: &Options,
) -> Result<(Duration, Vec<Duration>)> {
    let connect = || async { Channel::from_shared(address.clone())?.connect().await.context("connecting") };
    let channels = try_join_all((0..CONNECTIONS).map(|_| connect())).await?;
    let next = Cell::new(0);
    let number = || {
        let number = next.get();
        next.set(number + 1);
        (number < checks).then_some(number)
    };
    let since = Instant::now();
    let parts = match name {
        "stream" => {
            let each = (options.on_stream / CONNECTIONS).max(1);
            let parts = channels.into_iter().enumerate();
            try_join_all(parts.map(|(part, channel)| streamed(channel, part, checks, each, options))).await?
        }
        _ => {
            let callers = (0..options.in_flight).map(|caller| channels[caller % CONNECTIONS].clone());
            try_join_all(callers.map(|channel| unary(channel, &number, options))).await?
        }
    };
    let took = since.elapsed();
    let mut latencies = parts.concat();
    ensure!(latencies.len() == checks, "{} answers to {checks} checks", latencies.len());
    latencies.sort_unstable();
    Ok((took, latencies))
}

/// The user and the address of a check.
fn who(number: usize, options: &Options) -> [String; 2] {
    let user = number % options.users;
    [format!("user-{user:08}"), format!("2001:db8::{user:x}")]
}

async fn unary(
    channel: Channel,
    number: &impl Fn() -> Option<usize>,
    options: &Options,
) -> Result<Vec<Duration>> {
    let mut client = RateLimitServiceClient::new(channel);
    let mut latencies = Vec::new();
    while let Some(number) = number() {
        let [user, address] = who(number, options);
        let descriptor = |key: &str, value| RateLimitDescriptor {
            entries: vec![Entry { key: key.into(), value }],
            ..RateLimitDescriptor::default()
        };
        let request = RateLimitRequest {
            domain: "edge".into(),
            descriptors: vec![descriptor("user", user), descriptor("address", address)],
            hits_addend: 1,
        };
        let asked = Instant::now();
        let answer = client.should_rate_limit(request).await?.into_inner();
        latencies.push(asked.elapsed());
        ensure!(answer.overall_code() == Code::Ok && answer.statuses.len() == 2, "{answer:?}");
        ensure!(answer.statuses.iter().all(|status| status.current_limit.is_some()), "{answer:?}");
    }
    Ok(latencies)
}

async fn streamed(
    channel: Channel,
    part: usize,
    checks: usize,
    in_flight: usize,
    options: &Options,
) -> Result<Vec<Duration>> {
    let mut numbers = (part..checks).step_by(CONNECTIONS);
    let (sender, receiver) = mpsc::channel(in_flight);
    let mut client = RateLimiterServiceClient::new(channel);
    let mut answers = client.check_stream(ReceiverStream::new(receiver)).await?.into_inner();
    let mut asked: HashMap<u64, Instant> = HashMap::with_capacity(in_flight);
    let mut latencies = Vec::new();
    let question = |number: usize| {
        let [user, address] = who(number, options);
        let keys = HashMap::from([("user".to_owned(), user), ("address".to_owned(), address)]);
        let check = CheckRequest { tenant: String::new(), keys, hits: 1 };
        CheckStreamRequest { id: number as u64, check: Some(check), ..Default::default() }
    };
    for number in numbers.by_ref().take(in_flight) {
        asked.insert(number as u64, Instant::now());
        sender.send(question(number)).await?;
    }
    while !asked.is_empty() {
        let answer = answers.message().await?.context("the stream ended")?;
        let since = asked.remove(&answer.id).context("an answer to what was not asked")?;
        latencies.push(since.elapsed());
        match answer.result {
            Some(Answer::Response(response)) if response.allowed && !response.degraded => {}
            other => bail!("{other:?}"),
        }
        if let Some(number) = numbers.next() {
            asked.insert(number as u64, Instant::now());
            sender.send(question(number)).await?;
        }
    }
    Ok(latencies)
}
