//! What every cache must do, wherever its verdicts lie: in memory, in Redis, in a Redis Cluster, or in memory with one of
//! them behind it. Replicas are caches that have in common what the store makes common.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use sightline_config::ServerUrl;
use sightline_redis::{Link, Options};
use sightline_servers::{Redis, RedisCluster, there};
use tokio::{task::JoinSet, time::sleep};
use uuid::Uuid;

use super::*;
use crate::shared::Times;

const LONG: Duration = Duration::from_secs(30);
/// How long an inference takes here.
const INFERENCE: Duration = Duration::from_millis(20);
/// How long scores are kept where a test waits for their end.
const SHORT: Duration = Duration::from_millis(900);

/// Makes the replicas of one mesh; each call makes another mesh.
trait Fixture {
    async fn replicas(&self, count: usize, ttl: Duration) -> Vec<Cache>;
}

/// One process: its replicas are one cache.
struct Memory;

impl Fixture for Memory {
    async fn replicas(&self, count: usize, ttl: Duration) -> Vec<Cache> {
        vec![Cache::new(1000, ttl, None); count]
    }
}

/// Replicas that share a Redis or a Cluster, each with a memory of its own or none.
struct Behind {
    url: String,
    memory: u64,
}

impl Fixture for Behind {
    async fn replicas(&self, count: usize, ttl: Duration) -> Vec<Cache> {
        let mut replicas = Vec::new();
        for _ in 0..count {
            // It waits longer than in production, because a machine of tests is busy.
            let options = Options { timeout: Duration::from_secs(2), ..Options::default() };
            let link = Link::new(&ServerUrl::new(self.url.clone()), &options, None).unwrap();
            assert!(link.available_within(LONG).await);
            let times = Times { lease: Duration::from_secs(5), safe: ttl, unsafe_: ttl };
            replicas.push(Cache::new(self.memory, ttl, Some(Shared::new(link, times))));
        }
        replicas
    }
}

/// An image that no other test has.
fn image() -> Key {
    Key::new("acme", "model@1", "digest", Uuid::now_v7().as_bytes())
}

fn scored(score: f32) -> Scored {
    Scored { anchor: Uuid::now_v7(), scores: Arc::new([score, 1.0 - score]) }
}

/// Asks as one frame would, and counts inferences.
async fn ask(cache: &Cache, key: Key, runs: &AtomicUsize) -> Result<(Scored, Origin), IngestError> {
    let classify = || async {
        runs.fetch_add(1, Ordering::SeqCst);
        sleep(INFERENCE).await;
        Ok(scored(0.123_456_79))
    };
    cache.get_or_classify(key, Deadline::after(LONG), |_| false, classify).await
}

/// Until what was made has reached the store: a frame does not wait for that.
async fn settled(cache: &Cache, key: Key) {
    while ask(cache, key, &AtomicUsize::new(0)).await.unwrap().1 == Origin::Fresh {
        sleep(INFERENCE).await;
    }
}

async fn conforms(fixture: impl Fixture) {
    a_repeat_gets_the_firsts_scores_wherever_it_arrives(&fixture).await;
    other_images_are_not_confused(&fixture).await;
    twins_share_one_inference(&fixture).await;
    a_failure_is_not_kept(&fixture).await;
    a_caller_that_goes_away_does_not_fail_its_twin(&fixture).await;
    a_twin_waits_no_longer_than_its_deadline(&fixture).await;
    what_is_too_old_is_classified_again(&fixture).await;
}

async fn a_repeat_gets_the_firsts_scores_wherever_it_arrives(fixture: &impl Fixture) {
    let replicas = fixture.replicas(3, LONG).await;
    let (key, runs) = (image(), AtomicUsize::new(0));
    let (first, origin) = ask(&replicas[0], key, &runs).await.unwrap();
    assert_eq!(origin, Origin::Fresh);
    settled(&replicas[0], key).await;
    for replica in &replicas {
        for _ in 0..3 {
            let (repeat, origin) = ask(replica, key, &runs).await.unwrap();
            assert_eq!((origin, repeat.anchor), (Origin::Repeat, first.anchor));
            assert_eq!(repeat.scores, first.scores, "bit by bit");
        }
    }
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

async fn other_images_are_not_confused(fixture: &impl Fixture) {
    let replicas = fixture.replicas(2, LONG).await;
    let runs = AtomicUsize::new(0);
    let keys: Vec<Key> = (0..50).map(|_| image()).collect();
    let mut anchors = Vec::new();
    for key in &keys {
        anchors.push(ask(&replicas[0], *key, &runs).await.unwrap().0.anchor);
        settled(&replicas[0], *key).await;
    }
    for (key, anchor) in keys.iter().zip(anchors) {
        assert_eq!(ask(&replicas[1], *key, &runs).await.unwrap().0.anchor, anchor);
    }
    assert_eq!(runs.load(Ordering::SeqCst), 50);
}

async fn twins_share_one_inference(fixture: &impl Fixture) {
    let replicas = fixture.replicas(5, LONG).await;
    for _ in 0..10 {
        let (key, runs) = (image(), Arc::new(AtomicUsize::new(0)));
        let mut asks = JoinSet::new();
        for replica in replicas.iter().cycle().take(20) {
            let (replica, runs) = (replica.clone(), Arc::clone(&runs));
            asks.spawn(async move { ask(&replica, key, &runs).await.unwrap() });
        }
        let answers = asks.join_all().await;
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        assert_eq!(answers.iter().filter(|(_, origin)| *origin == Origin::Fresh).count(), 1);
        assert!(answers.iter().all(|(scored, _)| scored.anchor == answers[0].0.anchor));
    }
}

async fn a_failure_is_not_kept(fixture: &impl Fixture) {
    let replicas = fixture.replicas(2, LONG).await;
    let (key, runs) = (image(), AtomicUsize::new(0));
    let fails = || async { Err(RpcError::unavailable("test").into()) };
    let failed = replicas[0].get_or_classify(key, Deadline::after(LONG), |_| false, fails).await;
    assert!(failed.is_err());
    assert_eq!(ask(&replicas[1], key, &runs).await.unwrap().1, Origin::Fresh);
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

async fn a_caller_that_goes_away_does_not_fail_its_twin(fixture: &impl Fixture) {
    let replicas = fixture.replicas(2, LONG).await;
    let (key, runs) = (image(), Arc::new(AtomicUsize::new(0)));
    let first = {
        let (replica, runs) = (replicas[0].clone(), Arc::clone(&runs));
        tokio::spawn(async move {
            let never = || async {
                runs.fetch_add(1, Ordering::SeqCst);
                std::future::pending().await
            };
            replica.get_or_classify(key, Deadline::after(LONG), |_| false, never).await
        })
    };
    while runs.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let twin = {
        let (replica, runs) = (replicas[1].clone(), Arc::clone(&runs));
        tokio::spawn(async move { ask(&replica, key, &runs).await })
    };
    sleep(INFERENCE).await;
    let gone = Instant::now();
    first.abort();
    assert_eq!(twin.await.unwrap().unwrap().1, Origin::Fresh);
    assert_eq!(runs.load(Ordering::SeqCst), 2);
    assert!(gone.elapsed() < Duration::from_secs(4), "before the lease ended: {:?}", gone.elapsed());
}

async fn a_twin_waits_no_longer_than_its_deadline(fixture: &impl Fixture) {
    let replicas = fixture.replicas(2, LONG).await;
    let (key, runs) = (image(), Arc::new(AtomicUsize::new(0)));
    let slow = {
        let (replica, runs) = (replicas[0].clone(), Arc::clone(&runs));
        tokio::spawn(async move {
            let slow = || async {
                runs.fetch_add(1, Ordering::SeqCst);
                sleep(Duration::from_secs(2)).await;
                Ok(scored(0.5))
            };
            replica.get_or_classify(key, Deadline::after(LONG), |_| false, slow).await
        })
    };
    while runs.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let since = Instant::now();
    let hurried = Deadline::after(Duration::from_millis(200));
    let classify = || async { Ok(scored(0.5)) };
    let error = replicas[1].get_or_classify(key, hurried, |_| false, classify).await.unwrap_err();
    assert!(
        matches!(error, IngestError::Rpc(RpcError { reason, .. }) if reason == reason::DEADLINE_EXCEEDED)
    );
    assert!(since.elapsed() < Duration::from_millis(1500), "{:?}", since.elapsed());
    assert_eq!(slow.await.unwrap().unwrap().1, Origin::Fresh);
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

async fn what_is_too_old_is_classified_again(fixture: &impl Fixture) {
    let replicas = fixture.replicas(2, SHORT).await;
    let (key, runs) = (image(), AtomicUsize::new(0));
    ask(&replicas[0], key, &runs).await.unwrap();
    sleep(SHORT + Duration::from_millis(200)).await;
    assert_eq!(ask(&replicas[1], key, &runs).await.unwrap().1, Origin::Fresh);
    assert_eq!(runs.load(Ordering::SeqCst), 2);
}

/// A Redis, or a visible skip.
async fn redis() -> Option<Redis> {
    there(tokio::task::spawn_blocking(|| Redis::start(&[])).await.unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_conforms() {
    conforms(Memory).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_conforms() {
    let Some(redis) = redis().await else { return };
    conforms(Behind { url: redis.url(), memory: 0 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_before_redis_conforms() {
    let Some(redis) = redis().await else { return };
    conforms(Behind { url: redis.url(), memory: 1000 }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_three_conforms() {
    let cluster = tokio::task::spawn_blocking(|| RedisCluster::start(3)).await.unwrap();
    let Some(cluster) = there(cluster) else { return };
    let nodes: Vec<_> = cluster.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
    conforms(Behind { url: format!("redis+cluster://{}", nodes.join(",")), memory: 0 }).await;
}
