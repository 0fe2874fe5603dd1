//! Redis stops, hangs, slows down and comes back empty: each rule does what it declares, within milliseconds.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // a panic here is a failed test

use std::{
    collections::HashMap,
    io::Write,
    time::{Duration, Instant},
};

use sightline_config::{HumanDuration, ServerUrl};
use sightline_mesh::server::{Lifecycle, Server};
use sightline_proto::ratelimiter::{
    CheckRequest, CheckResponse, WhenAway, rate_limiter_service_client::RateLimiterServiceClient,
};
use sightline_ratelimiter::{Deps, RateLimiter, RateLimiterConfig, build};
use sightline_servers::{Redis, Toxiproxy, there};
use sightline_telemetry::dependencies::Dependencies;
use tonic::{service::Routes, transport::Channel};

/// Twelve an hour for all replicas: none comes back while a test runs.
const RULES: &str = r#"
[[rule]]
name = "opens"
keys = ["open"]
limit = 12
per = "1h"
burst = 12
when_away = "open"

[[rule]]
name = "closes"
keys = ["closed"]
limit = 12
per = "1h"
burst = 12
when_away = "closed"

[[rule]]
name = "shares"
keys = ["share"]
limit = 12
per = "1h"
burst = 12
"#;

/// No test waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a check may take when Redis is away. Of many the median is held to it: this machine may be busy.
const BOUND: Duration = Duration::from_millis(5);

struct Limiter {
    client: RateLimiterServiceClient<Channel>,
    dependencies: Dependencies,
}

impl Limiter {
    /// A rate limiter with the default bounds, one of three replicas.
    async fn start(port: u16) -> Self {
        sightline_telemetry::metrics::recorder();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(RULES.as_bytes()).unwrap();
        let config = RateLimiterConfig {
            rules: file.path().to_str().unwrap().into(),
            redis_url: Some(ServerUrl::new(format!("redis://127.0.0.1:{port}"))),
            replicas: Some(3),
            ..RateLimiterConfig::default()
        };
        assert!(config.redis_timeout < HumanDuration(BOUND));
        let (lifecycle, dependencies) = (Lifecycle::default(), Dependencies::default());
        let deps = Deps { lifecycle: lifecycle.clone(), dependencies: dependencies.clone() };
        let limiter = build(&config, deps).unwrap();
        assert!(limiter.ready_within(PATIENCE).await);
        let listener = sightline_mesh::server::bind("ratelimiter.listen", "127.0.0.1:0".parse().unwrap());
        let listener = listener.await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = Server {
            name: "ratelimiter",
            listener,
            routes: Routes::new(limiter.into_service()),
            service_names: vec![RateLimiter::SERVICE_NAME],
            web: None,
            drain_timeout: config.drain_timeout.0,
        };
        tokio::spawn(server.run(lifecycle));
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        Self { client: RateLimiterServiceClient::new(channel), dependencies }
    }

    async fn ask(&mut self, key: &str, value: &str) -> CheckResponse {
        let keys = HashMap::from([(key.to_owned(), value.to_owned())]);
        let check = CheckRequest { tenant: String::new(), keys, hits: 1 };
        self.client.check(check).await.expect("no error, whatever Redis does").into_inner()
    }

    /// Asks until an answer is, or is not, degraded.
    async fn until(&mut self, degraded: bool) {
        let since = Instant::now();
        while self.ask("open", "watch").await.degraded != degraded {
            assert!(since.elapsed() < PATIENCE, "never degraded = {degraded}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Every rule by what it declares, and how long the answers took.
    async fn declared(&mut self, round: &str) {
        let mut took = Vec::new();
        let mut admitted = HashMap::from([("open", 0), ("closed", 0), ("share", 0)]);
        for _ in 0..60 {
            for (key, did) in
                [("open", WhenAway::Open), ("closed", WhenAway::Closed), ("share", WhenAway::LocalShare)]
            {
                let asked = Instant::now();
                let answer = self.ask(key, round).await;
                took.push(asked.elapsed());
                assert!(answer.degraded && answer.rules[0].when_away() == did, "{answer:?}");
                assert_eq!(answer.allowed, answer.retry_after.is_none());
                *admitted.get_mut(key).unwrap() += usize::from(answer.allowed);
            }
        }
        let expected = HashMap::from([("open", 60), ("closed", 0), ("share", 4)]);
        assert_eq!(admitted, expected, "all, none, and twelve among three replicas");
        took.sort_unstable();
        println!("{round}: median {:?}, longest {:?}", took[took.len() / 2], took[took.len() - 1]);
        assert!(took[took.len() / 2] < BOUND, "{took:?}");
        self.health("degraded").await;
    }

    /// The counters that all replicas share, from a fresh value: twelve.
    async fn shared(&mut self, round: &str) {
        self.health("healthy").await;
        for key in ["open", "closed", "share"] {
            let mut admitted = 0;
            for _ in 0..20 {
                let answer = self.ask(key, round).await;
                // A busy machine may let one answer of Redis come late: that one is not counted against it.
                admitted += usize::from(answer.allowed && !answer.degraded);
            }
            assert!((10..=12).contains(&admitted), "{key}: {admitted}");
        }
    }

    async fn health(&self, status: &str) {
        let since = Instant::now();
        while self.dependencies.overall() != status {
            assert!(since.elapsed() < PATIENCE, "never {status}: {}", self.dependencies.json());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_stops_and_comes_back_empty() {
    let Some(mut redis) = there(Redis::start(&[])) else { return };
    let mut limiter = Limiter::start(redis.port()).await;
    limiter.shared("before").await;
    redis.server.kill();
    limiter.until(true).await;
    limiter.declared("stopped").await;
    redis.server.restart().unwrap();
    limiter.until(false).await;
    limiter.shared("after").await;
    let metrics = sightline_telemetry::metrics::recorder().render();
    for line in [
        r#"ratelimiter_degraded_total{rule="closes",when_away="closed"}"#,
        r#"ratelimiter_degraded_total{rule="shares",when_away="local_share"}"#,
        r#"dependency_up{dependency="ratelimiter-redis"}"#,
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_hangs_and_goes_on() {
    let Some(redis) = there(Redis::start(&[])) else { return };
    let mut limiter = Limiter::start(redis.port()).await;
    limiter.shared("before").await;
    redis.server.pause();
    // The first that find out: each waits its 3 ms, and the fifth of them opens the breaker.
    let asked = Instant::now();
    assert!(limiter.ask("share", "first").await.degraded);
    let first = asked.elapsed();
    println!("the first check after the pause took {first:?}");
    assert!(first < Duration::from_millis(200), "{first:?}");
    limiter.until(true).await;
    limiter.declared("paused").await;
    redis.server.resume();
    limiter.until(false).await;
    limiter.shared("resumed").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_is_half_a_second_slow() {
    let Some(redis) = there(Redis::start(&[])) else { return };
    let Some(proxies) = there(Toxiproxy::start()) else { return };
    let proxy = proxies.proxy(redis.port()).unwrap();
    let mut limiter = Limiter::start(proxy.port()).await;
    limiter.shared("before").await;
    proxy.delay(Duration::from_millis(500)).unwrap();
    limiter.until(true).await;
    limiter.declared("slow").await;
    proxy.delay(Duration::ZERO).unwrap();
    limiter.until(false).await;
    limiter.shared("after").await;
}
