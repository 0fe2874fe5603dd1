//! Replicas of the rate limiter that share one Redis are one rate limiter.

use std::collections::HashMap;

use sightline_proto::ratelimiter::{
    CheckRequest, CheckStreamRequest, check_stream_response::Result as Answer,
    rate_limiter_service_client::RateLimiterServiceClient,
};
use sightline_servers::{Redis, there};
use sightline_testkit::Process;
use tempfile::TempDir;
use tokio::task::JoinSet;
use tonic::transport::Channel;

/// `bulk`: one hit comes back an hour, so while the test runs exactly the burst is let through. `rate`: one a
/// millisecond, all the time.
const RULES: &str = r#"
[[rule]]
name = "bulk"
keys = ["bulk"]
limit = 1
per = "1h"
burst = 5000

[[rule]]
name = "rate"
keys = ["rate"]
limit = 1000
per = "1s"
burst = 10000
"#;
const RATE_INTERVAL_MICROS: u64 = 1000;
const RATE_BURST: u32 = 10_000;

const REPLICAS: usize = 3;
const STREAMS: usize = 8;
const CHECKS: usize = 200_000;
const BULK_KEYS: usize = 4;

fn redis() -> Option<Redis> {
    there(Redis::start(&[]))
}

fn replicas(redis: &Redis, folder: &TempDir, settings: &[&str]) -> Option<Vec<Process>> {
    let rules = folder.path().join("limits.toml");
    std::fs::write(&rules, RULES).unwrap();
    let mut arguments = vec![
        format!("ratelimiter.rules={}", rules.display()),
        format!("ratelimiter.redis_url={}", redis.url()),
        // None may be decided without Redis here, however busy the machine is; and no heartbeat among the calls.
        "ratelimiter.redis_timeout=60s".into(),
        "ratelimiter.replicas=3".into(),
    ];
    arguments.extend(settings.iter().map(ToString::to_string));
    let arguments: Vec<&str> = arguments.iter().flat_map(|setting| ["--set", setting]).collect();
    (0..REPLICAS).map(|_| Process::serve(&["ratelimiter"], &arguments)).collect()
}

async fn client(replica: &Process) -> RateLimiterServiceClient<Channel> {
    let channel = Channel::from_shared(replica.uri("ratelimiter")).unwrap().connect().await.unwrap();
    RateLimiterServiceClient::new(channel)
}

fn check(keys: &[(&str, String)], hits: u32) -> CheckRequest {
    let keys = keys.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    CheckRequest { tenant: "acme".into(), keys, hits }
}

/// What the n-th check asks: a hot key of `bulk`, of `rate`, or of both, which must pass both.
fn question(number: usize) -> CheckRequest {
    let bulk = || ("bulk", (number / 4 % BULK_KEYS).to_string());
    match number % 4 {
        0 | 1 => check(&[bulk()], 1),
        2 => check(&[("rate", "all".into())], 1),
        _ => check(&[bulk(), ("rate", "all".into())], 1),
    }
}

/// Hits that were let through, by the keys asked for.
type Admitted = HashMap<String, usize>;

/// Sends its part of the checks on one stream as fast as it goes.
async fn flood(mut client: RateLimiterServiceClient<Channel>, first: usize) -> Admitted {
    let numbers = move || (first..CHECKS).step_by(REPLICAS * STREAMS);
    let questions = numbers().map(|number| CheckStreamRequest {
        id: number as u64,
        check: Some(question(number)),
        ..CheckStreamRequest::default()
    });
    let mut answers = client.check_stream(tokio_stream::iter(questions)).await.unwrap().into_inner();
    let mut admitted = Admitted::new();
    for number in numbers() {
        let answer = answers.message().await.unwrap().unwrap();
        let Some(Answer::Response(response)) = answer.result else { panic!("{answer:?}") };
        assert!(!response.degraded && answer.id == number as u64);
        if response.allowed {
            for (key, value) in question(number).keys {
                *admitted.entry(format!("{key} {value}")).or_default() += 1;
            }
        }
    }
    admitted
}

/// The arrival times of all counters in Redis, ascending, in microseconds.
fn arrival_times(redis: &Redis) -> Vec<u64> {
    let keys = redis.command(&["KEYS", "sightline:limit:*"]).unwrap();
    // The first eight bytes are a double.
    let time = |key| {
        let bits = redis.command(&["BITFIELD", key, "GET", "i64", "0"]).unwrap();
        f64::from_bits(bits.trim().parse::<i64>().unwrap().cast_unsigned()) as u64
    };
    let mut times: Vec<u64> = keys.lines().map(time).collect();
    times.sort_unstable();
    times
}

fn calls(redis: &Redis, command: &str) -> usize {
    let stats = redis.command(&["INFO", "commandstats"]).unwrap();
    let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
}

async fn three_replicas_admit_exactly(settings: &[&str]) -> Option<usize> {
    let redis = redis()?;
    let folder = tempfile::tempdir().unwrap();
    let replicas = replicas(&redis, &folder, settings)?;
    // Takes the whole burst of `rate`: from here on a hit is let through each time one comes back, so the counter's
    // arrival time moves by exactly one interval per hit and by nothing else.
    let drain = check(&[("rate", "all".into())], RATE_BURST);
    assert!(client(&replicas[0]).await.check(drain).await.unwrap().into_inner().allowed);
    let before = arrival_times(&redis)[0];
    redis.command(&["CONFIG", "RESETSTAT"]).unwrap();

    let mut streams = JoinSet::new();
    for first in 0..REPLICAS * STREAMS {
        streams.spawn(flood(client(&replicas[first % REPLICAS]).await, first));
    }
    let mut admitted = Admitted::new();
    while let Some(part) = streams.join_next().await {
        for (key, count) in part.unwrap() {
            *admitted.entry(key).or_default() += count;
        }
    }

    for key in 0..BULK_KEYS {
        assert_eq!(admitted[&format!("bulk {key}")], 5000, "exactly the burst: {admitted:?}");
    }
    let times = arrival_times(&redis);
    assert_eq!(times.len(), 1 + BULK_KEYS);
    let moved = times[0] - before;
    assert_eq!(moved % RATE_INTERVAL_MICROS, 0);
    assert_eq!(admitted["rate all"] as u64, moved / RATE_INTERVAL_MICROS, "as many as came back");
    assert!(admitted["rate all"] > 100, "the flood lasted long enough for some to come back: {admitted:?}");
    let now = redis.command(&["TIME"]).unwrap();
    let (seconds, micros) = now.trim().split_once('\n').unwrap();
    let now = seconds.trim().parse::<u64>().unwrap() * 1_000_000 + micros.trim().parse::<u64>().unwrap();
    assert!(times[0] <= now + u64::from(RATE_BURST) * RATE_INTERVAL_MICROS, "never more than came back");
    assert_eq!(calls(&redis, "eval"), 0, "the script is known");
    Some(calls(&redis, "evalsha"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_replicas_admit_exactly_what_the_rules_allow_of_200_000_checks() {
    let Some(calls) = three_replicas_admit_exactly(&["ratelimiter.deny_cache=0"]).await else { return };
    println!("{CHECKS} checks, all decided by Redis, in {calls} calls");
    assert!(calls <= CHECKS, "never more than one round trip a check: {calls}");
    assert!(calls >= CHECKS / 64, "batches have at most 64: {calls}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn remembering_refusals_changes_no_count() {
    let Some(calls) = three_replicas_admit_exactly(&[]).await else { return };
    println!("{CHECKS} checks, refusals remembered, in {calls} calls");
    assert!(calls < CHECKS / 2, "{calls}");
}

#[tokio::test]
async fn one_check_is_one_round_trip() {
    let Some(redis) = redis() else { return };
    let folder = tempfile::tempdir().unwrap();
    let Some(replicas) = replicas(&redis, &folder, &[]) else { return };
    let mut client = client(&replicas[0]).await;
    client.check(check(&[("rate", "first".into())], 1)).await.unwrap();
    redis.command(&["CONFIG", "RESETSTAT"]).unwrap();
    for number in 0..1000 {
        let both = check(&[("bulk", number.to_string()), ("rate", number.to_string())], 1);
        assert!(client.check(both).await.unwrap().into_inner().allowed);
    }
    assert_eq!((calls(&redis, "evalsha"), calls(&redis, "eval")), (1000, 0));
}
