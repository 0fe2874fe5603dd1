//! Against a real Redis.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use sightline_config::ServerUrl;
use sightline_mesh::RpcError;
use sightline_redis::Options;
use sightline_servers::{Redis, there};

use super::*;

const LONG: Duration = Duration::from_secs(30);
const TIMES: Times = Times {
    lease: Duration::from_millis(400),
    safe: Duration::from_secs(300),
    unsafe_: Duration::from_secs(3600),
};

/// A Redis, or a visible skip.
async fn redis() -> Option<Redis> {
    there(tokio::task::spawn_blocking(|| Redis::start(&[])).await.unwrap())
}

/// A replica: a connection of its own. It waits longer than in production, because a machine of tests is busy.
async fn replica(redis: &Redis) -> Shared {
    let options = Options { timeout: Duration::from_secs(2), ..Options::default() };
    let link = Link::new(&ServerUrl::new(redis.url()), &options, None).unwrap();
    assert!(link.available_within(LONG).await);
    Shared::new(link, TIMES)
}

fn scored(score: f32) -> Scored {
    Scored { anchor: Uuid::now_v7(), scores: Arc::new([score, 1.0 - score]) }
}

fn key(image: &[u8]) -> Key {
    Key::new("acme", "model@1", "digest", image)
}

fn is_unsafe(scored: &Scored) -> bool {
    scored.scores[0] > 0.5
}

/// Asks as one frame would; counts inferences, which take 20 ms.
async fn ask(shared: &Shared, image: &[u8], runs: &AtomicUsize) -> Result<(Scored, Found), IngestError> {
    let classify = async {
        runs.fetch_add(1, Ordering::SeqCst);
        sleep(Duration::from_millis(20)).await;
        Ok(scored(0.25))
    };
    shared.get_or_classify(key(image), Deadline::after(LONG), is_unsafe, classify).await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_image_at_five_replicas_at_once_is_one_inference() {
    let Some(redis) = redis().await else { return };
    let mut replicas = Vec::new();
    for _ in 0..5 {
        replicas.push(replica(&redis).await);
    }
    for round in 0_u32..20 {
        let runs = Arc::new(AtomicUsize::new(0));
        let asks: Vec<_> = replicas
            .iter()
            .map(|replica| {
                let (replica, runs) = (replica.clone(), Arc::clone(&runs));
                tokio::spawn(async move { ask(&replica, &round.to_le_bytes(), &runs).await.unwrap() })
            })
            .collect();
        let mut answers = Vec::new();
        for ask in asks {
            answers.push(ask.await.unwrap());
        }
        assert_eq!(runs.load(Ordering::SeqCst), 1);
        assert_eq!(answers.iter().filter(|(_, found)| *found == Found::Made).count(), 1);
        assert!(answers.iter().all(|(scored, _)| scored.anchor == answers[0].0.anchor));
    }
    // The image itself is not there: nothing in Redis is longer than a few numbers.
    let longest = redis.command(&["--bigkeys"]).unwrap();
    assert!(longest.contains("20 strings with 500 bytes"), "{longest}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_dies_costs_the_others_its_lease_and_one_more_inference() {
    let Some(redis) = redis().await else { return };
    let (dying, living) = (replica(&redis).await, replica(&redis).await);
    let runs = Arc::new(AtomicUsize::new(0));
    let holder = {
        let runs = Arc::clone(&runs);
        tokio::spawn(async move {
            let never = async {
                runs.fetch_add(1, Ordering::SeqCst);
                std::future::pending().await
            };
            dying.get_or_classify(key(b"x"), Deadline::after(LONG), is_unsafe, never).await
        })
    };
    while runs.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let since = Instant::now();
    let asks = (0..5).map(|_| {
        let (living, runs) = (living.clone(), Arc::clone(&runs));
        tokio::spawn(async move { ask(&living, b"x", &runs).await.unwrap() })
    });
    for ask in asks.collect::<Vec<_>>() {
        ask.await.unwrap();
    }
    assert_eq!(runs.load(Ordering::SeqCst), 2);
    assert!(since.elapsed() >= Duration::from_millis(300), "somebody did not wait: {:?}", since.elapsed());
    assert!(since.elapsed() < TIMES.lease + Duration::from_secs(2), "{:?}", since.elapsed());
    holder.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_fails_gives_its_lease_back() {
    let Some(redis) = redis().await else { return };
    let slow = Times { lease: Duration::from_secs(20), ..TIMES };
    let shared = Shared { times: slow, ..replica(&redis).await };
    let fails = async { Err(RpcError::deadline("test").into()) };
    let failed = shared.get_or_classify(key(b"x"), Deadline::after(LONG), is_unsafe, fails).await;
    assert!(failed.is_err());
    let runs = AtomicUsize::new(0);
    let since = Instant::now();
    assert_eq!(ask(&shared, b"x", &runs).await.unwrap().1, Found::Made);
    assert!(since.elapsed() < Duration::from_secs(10), "{:?}", since.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn scores_are_kept_as_long_as_their_kind_is() {
    let Some(redis) = redis().await else { return };
    let shared = replica(&redis).await;
    for (image, score, time) in [(b"safe", 0.1, TIMES.safe), (b"evil", 0.9, TIMES.unsafe_)] {
        let made = async move { Ok(scored(score)) };
        shared.get_or_classify(key(image), Deadline::after(LONG), is_unsafe, made).await.unwrap();
        let mut ttl = cmd("PTTL");
        ttl.arg(name(key(image)));
        let left = loop {
            match shared.link.command(&ttl).await.unwrap() {
                // Still the lease: the scores are on their way.
                Value::Int(left) if left <= 400 => tokio::task::yield_now().await,
                Value::Int(left) => break Duration::from_millis(left.unsigned_abs()),
                other => panic!("{other:?}"),
            }
        };
        assert!(left <= time && left > time - LONG, "{left:?} of {time:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_slow_or_away_is_bypassed_and_used_again_when_it_is_back() {
    let Some(mut redis) = redis().await else { return };
    let link = Link::new(&ServerUrl::new(redis.url()), &Options::default(), None).unwrap();
    assert!(link.available_within(LONG).await);
    let shared = Shared::new(link.clone(), TIMES);
    let runs = AtomicUsize::new(0);
    redis.server.pause();
    let mut took = Vec::new();
    for number in 0_u32..50 {
        let since = Instant::now();
        let made = async { Ok(scored(0.1)) };
        let image = number.to_le_bytes();
        shared.get_or_classify(key(&image), Deadline::after(LONG), is_unsafe, made).await.unwrap();
        took.push(since.elapsed());
    }
    took.sort();
    // The median frame meets an open breaker; the slowest waits for the link's 5 ms, and for a busy machine.
    assert!(took[25] < Duration::from_millis(5), "{took:?}");
    assert!(took[49] < Duration::from_millis(100), "{took:?}");
    redis.server.resume();
    assert!(link.available_within(LONG).await);
    redis.server.kill();
    assert_eq!(ask(&shared, b"down", &runs).await.unwrap().1, Found::Made);
    let redis = tokio::task::spawn_blocking(move || redis.server.restart().map(|()| redis)).await.unwrap();
    let _redis = redis.unwrap();
    assert!(link.available_within(LONG).await);
    // It came back empty and without our script; what was made goes there again.
    while ask(&shared, b"back", &runs).await.unwrap().1 != Found::There {
        sleep(Duration::from_millis(20)).await;
    }
}
