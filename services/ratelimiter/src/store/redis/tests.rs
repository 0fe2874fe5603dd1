//! The store on real servers.
#![allow(clippy::print_stdout)] // says what was skipped

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU32, AtomicU64, Ordering},
    time::Instant,
};

use sightline_config::ServerUrl;
use sightline_redis::Options;
use sightline_servers::{Redis, RedisCluster, there};

use super::*;
use crate::{rules::RuleSet, store::conformance};

/// Patient enough for a machine that is busy with other tests.
const PATIENT: Duration = Duration::from_secs(10);

fn settings(prefix: &str) -> Settings {
    Settings {
        prefix: prefix.into(),
        timeout: PATIENT,
        batch: 64,
        queue: 4096,
        keep: Duration::from_secs(60),
        deny_cache: 4096,
        replicas: Some(1),
    }
}

async fn store(url: &str, settings: Settings, clock: Clock) -> RedisStore {
    let options = Options { timeout: settings.timeout, ..Options::default() };
    let link = Link::new(&ServerUrl::new(url), &options, None).unwrap();
    assert!(link.available_within(Duration::from_secs(30)).await);
    RedisStore::new(link, settings, Arc::new(MemoryStore::new(4096)), clock)
}

fn cluster_url(cluster: &RedisCluster) -> String {
    let nodes: Vec<_> = cluster.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
    format!("redis+cluster://{}", nodes.join(","))
}

/// Counters of their own for every store, and a clock that only the test moves.
struct Fixture {
    url: String,
    clock: Arc<AtomicU64>,
    stores: AtomicU32,
    deny_cache: usize,
}

impl Fixture {
    fn new(url: String, deny_cache: usize) -> Self {
        // As far from 1970 as today is: the numbers have as many digits as they will have.
        Self {
            url,
            clock: Arc::new(AtomicU64::new(1_790_000_000_123_457)),
            stores: AtomicU32::new(0),
            deny_cache,
        }
    }
}

impl conformance::Fixture for Fixture {
    type Store = RedisStore;

    async fn fresh(&self) -> Arc<RedisStore> {
        let number = self.stores.fetch_add(1, Ordering::Relaxed);
        let settings = Settings { deny_cache: self.deny_cache, ..settings(&format!("t{number}:")) };
        Arc::new(store(&self.url, settings, Clock::Set(Arc::clone(&self.clock))).await)
    }

    async fn wait(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap();
        assert_eq!(time, Duration::from_micros(micros), "a microsecond is the smallest step");
        self.clock.fetch_add(micros, Ordering::SeqCst);
    }

    fn resolution(&self) -> Duration {
        Duration::from_micros(1)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn it_conforms_on_a_server() {
    let Some(redis) = there(Redis::start(&[])) else { return };
    for deny_cache in [4096, 0] {
        redis.command(&["FLUSHALL"]).unwrap();
        conformance::run(&Fixture::new(redis.url(), deny_cache)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn it_conforms_on_a_cluster_of_three() {
    let Some(cluster) = there(RedisCluster::start(3)) else { return };
    conformance::run(&Fixture::new(cluster_url(&cluster), 4096)).await;
    let sizes: Vec<String> = cluster.nodes.iter().map(|node| node.command(&["DBSIZE"]).unwrap()).collect();
    assert!(sizes.iter().all(|size| size.trim() != "0"), "every node holds counters: {sizes:?}");
}

const RULES: &str = r#"
[[rule]]
name = "user"
keys = ["user"]
limit = 10
per = "3s"
burst = 1

[[rule]]
name = "ip"
keys = ["ip"]
limit = 100
per = "1s"
burst = 100
"#;

async fn ask(store: &RedisStore, rules: &RuleSet, keys: &[(&str, &str)], hits: u32) -> Decision {
    let keys: HashMap<_, _> = keys.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect();
    store.check(&Check { tenant: "acme", counters: rules.applying("acme", &keys, hits) }).await.unwrap()
}

#[tokio::test]
async fn waits_are_exact_by_rediss_own_clock() {
    let Some(redis) = there(Redis::start(&[])) else { return };
    let rules = RuleSet::parse("test", RULES).unwrap();
    let store = store(&redis.url(), Settings { deny_cache: 0, ..settings("t:") }, Clock::real()).await;
    let interval = Duration::from_millis(300);
    for _ in 0..5 {
        let (before, user) = (Instant::now(), [("user", "u")]);
        assert_eq!(ask(&store, &rules, &user, 1).await.refusal, None);
        let after = Instant::now();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let again = Instant::now();
        let refusal = ask(&store, &rules, &user, 1).await.refusal.unwrap();
        let told = Instant::now();
        // Redis decided at some time in [before, after] and in [again, told]: no tolerance beside that.
        assert!(refusal.retry_after <= interval - (again - after), "{refusal:?}");
        assert!(refusal.retry_after + (told - before) >= interval, "{refusal:?}");
        tokio::time::sleep((told + refusal.retry_after).saturating_duration_since(Instant::now())).await;
    }
}

#[tokio::test]
async fn counters_expire_by_themselves() {
    let Some(redis) = there(Redis::start(&[])) else { return };
    let rules = RuleSet::parse("test", RULES).unwrap();
    let keep = Duration::from_millis(700);
    let store = store(&redis.url(), Settings { keep, ..settings("t:") }, Clock::real()).await;
    ask(&store, &rules, &[("user", "u"), ("ip", "i")], 1).await;
    assert_eq!(redis.command(&["DBSIZE"]).unwrap().trim(), "2");
    for key in redis.command(&["KEYS", "t:*"]).unwrap().lines() {
        let left: i64 = redis.command(&["PTTL", key]).unwrap().trim().parse().unwrap();
        assert!(
            (0..=2000).contains(&left),
            "a counter lives until it is as if never used, what it is kept longer, and a second: {left}"
        );
    }
    tokio::time::sleep(Duration::from_millis(2300)).await;
    assert_eq!(redis.command(&["DBSIZE"]).unwrap().trim(), "0");
    assert_eq!(ask(&store, &rules, &[("user", "u")], 1).await.refusal, None);
}

#[tokio::test]
async fn a_time_to_live_is_set_anew_only_when_it_would_end_too_early() {
    let Some(redis) = there(Redis::start(&[])) else { return };
    let rules = RuleSet::parse("test", &RULES.replace("burst = 1", "burst = 1000")).unwrap();
    let keep = Duration::from_millis(1500);
    let store = store(&redis.url(), Settings { keep, ..settings("t:") }, Clock::real()).await;
    let (mut sets, mut charged) = (0, 0_i64);
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(4) {
        assert_eq!(ask(&store, &rules, &[("user", "u")], 1).await.refusal, None);
        charged += 1;
        let key = redis.command(&["KEYS", "t:*"]).unwrap();
        let left: i64 = redis.command(&["PTTL", key.trim()]).unwrap().trim().parse().unwrap();
        // A charge is as if never made after 300 ms.
        let needs = charged * 300 - i64::try_from(since.elapsed().as_millis()).unwrap();
        assert!(left >= needs, "{charged} charges need {needs} ms, {left} are left");
        sets = calls(&redis, "set");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(
        charged > 20 && sets > 1 && sets * 3 < u64::try_from(charged).unwrap(),
        "{sets} times in {charged} charges"
    );
}

/// How often Redis ran a command, by INFO commandstats.
fn calls(redis: &Redis, command: &str) -> u64 {
    let stats = redis.command(&["INFO", "commandstats"]).unwrap();
    let line = stats.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{command}:calls=")));
    line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_is_one_round_trip_shared_with_others_and_a_known_refusal_none() {
    let Some(redis) = there(Redis::start(&[])) else { return };
    let rules = RuleSet::parse("test", RULES).unwrap();
    let store = store(&redis.url(), settings("t:"), Clock::real()).await;
    ask(&store, &rules, &[("user", "first")], 1).await;
    redis.command(&["CONFIG", "RESETSTAT"]).unwrap();
    for user in 0..100 {
        ask(&store, &rules, &[("user", &user.to_string()), ("ip", &user.to_string())], 1).await;
    }
    assert_eq!(calls(&redis, "evalsha"), 100, "one by one, each check of two rules is one call");
    assert_eq!((calls(&redis, "eval"), calls(&redis, "script")), (0, 0));

    redis.command(&["CONFIG", "RESETSTAT"]).unwrap();
    let names: Vec<String> = (0..1000).map(|user| format!("together-{user}")).collect();
    let keys: Vec<[(&str, &str); 1]> = names.iter().map(|name| [("user", name.as_str())]).collect();
    let checks = keys.iter().map(|keys| ask(&store, &rules, keys, 1));
    let admitted = futures_util::future::join_all(checks).await;
    assert!(admitted.iter().all(|decision| decision.refusal.is_none()));
    let shared = calls(&redis, "evalsha");
    assert!(shared <= 100, "a thousand at once share trips: {shared}");

    let slow = RuleSet::parse("test", &RULES.replace("3s", "1h")).unwrap();
    ask(&store, &slow, &[("user", "hammer")], 1).await;
    redis.command(&["CONFIG", "RESETSTAT"]).unwrap();
    for _ in 0..1000 {
        assert!(ask(&store, &slow, &[("user", "hammer")], 1).await.refusal.is_some());
    }
    assert_eq!(calls(&redis, "evalsha"), 0);
}

#[tokio::test]
async fn what_one_slot_charged_is_given_back_when_another_refuses() {
    let Some(cluster) = there(RedisCluster::start(3)) else { return };
    let rules =
        RuleSet::parse("test", &RULES.replace("\"3s\"", "\"10h\"").replace("\"1s\"", "\"10h\"")).unwrap();
    let settings = Settings { deny_cache: 0, ..settings("t:") };
    let store = store(&cluster_url(&cluster), settings, Clock::real()).await;
    // Enough users that their slots lie on every node.
    for user in 0..30 {
        let (user, ip) = (format!("u{user}"), format!("i{user}"));
        let both = [("user", user.as_str()), ("ip", ip.as_str())];
        assert_eq!(ask(&store, &rules, &both, 1).await.refusal, None);
        for _ in 0..3 {
            let decision = ask(&store, &rules, &both, 1).await;
            assert_eq!(decision.refusal.unwrap().counter, 0);
            assert_eq!(decision.standings[1].remaining, 99, "the address has what it had");
        }
        assert_eq!(ask(&store, &rules, &both[1..], 99).await.refusal, None);
    }
}

#[tokio::test]
async fn a_redis_that_comes_back_empty_is_used_again_and_knows_the_script() {
    let Some(mut redis) = there(Redis::start(&[])) else { return };
    let rules = RuleSet::parse("test", RULES).unwrap();
    let settings = Settings { deny_cache: 0, timeout: Duration::from_millis(100), ..settings("t:") };
    let store = store(&redis.url(), settings, Clock::real()).await;
    assert!(!ask(&store, &rules, &[("ip", "i")], 60).await.degraded);
    redis.server.kill();
    assert!(ask(&store, &rules, &[("ip", "i")], 60).await.degraded);
    redis.server.restart().unwrap();
    assert!(store.available_within(PATIENT).await);
    let decision = ask(&store, &rules, &[("ip", "i")], 60).await;
    assert!(!decision.degraded && decision.refusal.is_none(), "its counters are gone with it: {decision:?}");
}

#[tokio::test]
async fn replicas_are_counted_while_they_live() {
    let Some(redis) = there(Redis::start(&[])) else { return };
    let link = |_| Link::new(&ServerUrl::new(redis.url()), &Options::default(), None).unwrap();
    let counts: Vec<_> = (0..3).map(|number| replicas::watch(link(number), "t:")).collect();
    let settles = |count: Arc<AtomicU32>, wanted: u32| async move {
        let since = Instant::now();
        while count.load(Ordering::Relaxed) != wanted {
            assert!(since.elapsed() < Duration::from_secs(30), "never {wanted}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    for count in &counts {
        settles(Arc::clone(count), 3).await;
    }
    let first = Arc::clone(&counts[0]);
    drop(counts);
    settles(first, 1).await;
}
