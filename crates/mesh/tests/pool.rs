//! The stream pool against replicas over real sockets: growth, drain, death, slowness, silence, age.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // helpers of tests: a panic is a failed test, figures are of use

mod on_trial;
mod scripted;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use scripted::{Replica, TestLane, ask, cluster, pool, pool_with};
use sightline_mesh::{
    Deadline, RpcError,
    client::{Cluster, ClusterOptions, Fixed, PoolOptions, RetryBudgetOptions, StreamPool, StreamsSnapshot},
    reason,
};
use tokio::{
    task::JoinSet,
    time::{Instant, sleep},
};

const LONG: Duration = Duration::from_secs(20);

/// The outcome of one message, and how long it took.
type Outcome = (Result<(), RpcError>, Duration);

/// Asks a question and checks that the answer is its own.
async fn ask_one(pool: StreamPool<TestLane>, name: String) -> Outcome {
    let since = Instant::now();
    let answer = pool.call(Deadline::after(LONG), ask(name.clone())).await;
    (answer.map(|answer| assert_eq!(answer, name)), since.elapsed())
}

/// Asks so many questions, one every `pause`, and does `then` after half of them.
async fn ask_many(
    pool: &StreamPool<TestLane>,
    count: usize,
    pause: Duration,
    then: impl FnOnce(),
) -> Vec<Outcome> {
    let mut calls = JoinSet::new();
    let (mut then, start) = (Some(then), Instant::now());
    for n in 0..count {
        if n == count / 2 {
            then.take().into_iter().for_each(|then| then());
        }
        calls.spawn(ask_one(pool.clone(), format!("question-{n}")));
        tokio::time::sleep_until(start + pause * n as u32).await;
    }
    calls.join_all().await
}

fn all_answered(outcomes: &[Outcome]) {
    let failed: Vec<_> = outcomes.iter().filter_map(|(outcome, _)| outcome.as_ref().err()).collect();
    assert!(failed.is_empty(), "{} of {}: {failed:?}", failed.len(), outcomes.len());
}

fn slowest(outcomes: &[Outcome]) -> Duration {
    outcomes.iter().map(|(_, took)| *took).max().unwrap()
}

/// How often the message that was acted on most often was, over all replicas.
fn most_acted_on(replicas: &[&Replica]) -> usize {
    let mut times = std::collections::HashMap::new();
    for replica in replicas {
        for (name, count) in &*replica.script.acted.lock().unwrap() {
            *times.entry(name.clone()).or_insert(0) += count;
        }
    }
    times.into_values().max().unwrap_or(0)
}

/// The pool's streams to this replica.
fn streams(pool: &StreamPool<TestLane>, to: &Replica) -> StreamsSnapshot {
    let mut all = pool.snapshot().streams.into_iter();
    all.find(|streams| streams.address == to.address.to_string()).unwrap()
}

/// Waits until this holds, at most ten seconds.
async fn until(what: &str, holds: impl Fn() -> bool) {
    let wait = async {
        while !holds() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(10), wait).await.is_ok(), "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_message_gets_its_own_answer_and_no_more_are_sent_than_credits_were_granted() {
    let (one, two) = (Replica::start(), Replica::start());
    for replica in [&one, &two] {
        replica.script.slow(Duration::from_millis(3));
    }
    one.script.credits.store(3, Ordering::SeqCst);
    let pool = pool(&[&one, &two]).await;
    all_answered(&ask_many(&pool, 1000, Duration::ZERO, || {}).await);
    assert_eq!(most_acted_on(&[&one, &two]), 1);
    assert_eq!(one.script.greedy.load(Ordering::SeqCst) + two.script.greedy.load(Ordering::SeqCst), 0);
    assert!(one.script.count() > 10, "{} of 1000", one.script.count());
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_wait_for_credits_bring_more_streams_up_to_the_bound() {
    let replica = Replica::start();
    replica.script.slow(Duration::from_millis(30));
    replica.script.credits.store(2, Ordering::SeqCst);
    let options = PoolOptions { max_streams: 3, idle: Duration::from_millis(300), ..PoolOptions::default() };
    let pool = pool_with(&[&replica], true, options).await;
    assert_eq!(pool.open_streams(), 1);
    all_answered(&ask_many(&pool, 200, Duration::ZERO, || {}).await);
    assert_eq!(pool.open_streams(), 3);
    until("streams that nobody needs are left", || pool.open_streams() == 1).await;
    until("they are ended", || replica.script.open.load(Ordering::SeqCst) == 1).await;
    assert_eq!(replica.script.opened.load(Ordering::SeqCst), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_server_is_not_asked_for_more_streams() {
    let replica = Replica::start();
    replica.script.slow(Duration::from_millis(10));
    replica.script.percent.store(100, Ordering::SeqCst);
    replica.script.credits.store(2, Ordering::SeqCst);
    let pool = pool(&[&replica]).await;
    all_answered(&[ask_one(pool.clone(), "first".into()).await]);
    all_answered(&ask_many(&pool, 50, Duration::ZERO, || {}).await);
    assert_eq!(replica.script.opened.load(Ordering::SeqCst), 1);
}

/// Not even one that must not be repeated: what was not read is refused, or left unread.
#[tokio::test(flavor = "multi_thread")]
async fn a_drain_costs_no_message() {
    drains(false).await;
    drains(true).await;
}

async fn drains(leaves: bool) {
    let (one, two) = (Replica::start(), Replica::start());
    for replica in [&one, &two] {
        replica.script.slow(Duration::from_millis(20));
        replica.script.leaves.store(leaves, Ordering::SeqCst);
    }
    let pool = pool_with(&[&one, &two], false, PoolOptions::default()).await;
    let mut late = 0;
    for round in 0..5 {
        let names = format!("round-{round}");
        let mut calls = JoinSet::new();
        for n in 0..100 {
            calls.spawn(ask_one(pool.clone(), format!("{names}-{n}")));
            if n == 50 {
                one.script.drain.notify_waiters();
            }
            tokio::task::yield_now().await;
        }
        all_answered(&calls.join_all().await);
        late += one.script.late.swap(0, Ordering::SeqCst);
        until("another stream is opened", || streams(&pool, &one).credits > 0).await;
    }
    assert_eq!(most_acted_on(&[&one, &two]), 1);
    let open = || streams(&pool, &one).open;
    until("streams that drain are ended", || one.script.open.load(Ordering::SeqCst) == open()).await;
    println!("{late} messages crossed a notice");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_replica_costs_no_message_that_may_be_repeated() {
    let (mut one, two, three) = (Replica::start(), Replica::start(), Replica::start());
    for replica in [&one, &two, &three] {
        replica.script.slow(Duration::from_millis(20));
    }
    let pool = pool(&[&one, &two, &three]).await;
    let asked = tokio::spawn({
        let pool = pool.clone();
        async move { ask_many(&pool, 1000, Duration::from_millis(1), || {}).await }
    });
    sleep(Duration::from_millis(500)).await;
    tokio::task::spawn_blocking(move || one.kill()).await.unwrap();
    let outcomes = asked.await.unwrap();
    all_answered(&outcomes);
    assert!(slowest(&outcomes) < Duration::from_secs(2), "{:?}", slowest(&outcomes));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_must_not_be_repeated_is_sent_once_when_its_stream_breaks() {
    let replica = Replica::start();
    replica.script.breaks.store(true, Ordering::SeqCst);
    let pool = pool_with(&[&replica], false, PoolOptions::default()).await;
    for n in 0..5 {
        let (outcome, _) = ask_one(pool.clone(), n.to_string()).await;
        assert_eq!(outcome.unwrap_err().reason, reason::SERVICE_UNAVAILABLE);
    }
    assert_eq!((replica.script.count(), most_acted_on(&[&replica])), (5, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_is_sent_no_more_often_than_it_may_be() {
    let replica = Replica::start();
    replica.script.breaks.store(true, Ordering::SeqCst);
    let pool = pool(&[&replica]).await;
    let (outcome, _) = ask_one(pool, "x".into()).await;
    assert_eq!(outcome.unwrap_err().reason, reason::SERVICE_UNAVAILABLE);
    assert_eq!(most_acted_on(&[&replica]), PoolOptions::default().max_attempts);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_bounds_what_is_sent_again() {
    let (one, two) = (Replica::start(), Replica::start());
    for replica in [&one, &two] {
        replica.script.breaks.store(true, Ordering::SeqCst);
    }
    let budget = RetryBudgetOptions { ratio: 0.0, min_per_second: 0.3, burst: 100.0 };
    let options = PoolOptions { budget, ..PoolOptions::default() };
    let pool = pool_with(&[&one, &two], true, options).await;
    let mut calls = JoinSet::new();
    for n in 0..50 {
        let pool = pool.clone();
        let soon = Deadline::after(Duration::from_millis(500));
        calls.spawn(async move { pool.call(soon, ask(n.to_string())).await });
        sleep(Duration::from_millis(5)).await;
    }
    assert!(calls.join_all().await.iter().all(Result::is_err));
    let acted = |replica: &Replica| replica.script.acted.lock().unwrap().values().sum::<usize>();
    let sent = acted(&one) + acted(&two);
    assert!(sent <= 54, "50 and ten seconds' worth of the budget: {sent}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_replica_gets_few_messages() {
    let replicas = [Replica::start(), Replica::start(), Replica::start()];
    for (replica, delay) in replicas.iter().zip([50, 50, 500]) {
        replica.script.slow(Duration::from_millis(delay));
    }
    let [one, two, slow] = &replicas;
    let pool = pool(&[one, two, slow]).await;
    let mut callers = JoinSet::new();
    for caller in 0..40 {
        let pool = pool.clone();
        callers.spawn(async move {
            for n in 0..50 {
                all_answered(&[ask_one(pool.clone(), format!("{caller}-{n}")).await]);
            }
        });
    }
    callers.join_all().await;
    let share = slow.script.count() as f64 / 2000.0;
    println!("share of the slow one: {share}");
    assert!(share < 0.08, "{share}");
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_a_replica_that_stands_still_are_answered_by_others() {
    let (one, two, three) = (Replica::start(), Replica::start(), Replica::start());
    for replica in [&one, &two, &three] {
        replica.script.slow(Duration::from_millis(20));
    }
    let pool = pool(&[&one, &two, &three]).await;
    let outcomes = ask_many(&pool, 1000, Duration::from_millis(1), || one.stop()).await;
    all_answered(&outcomes);
    // Long before its connection fails, which takes 4 s.
    assert!(slowest(&outcomes) < Duration::from_secs(3), "{:?}", slowest(&outcomes));
    println!("slowest: {:?}", slowest(&outcomes));
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_replaced_at_their_age_and_lose_nothing() {
    let replica = Replica::start();
    replica.script.slow(Duration::from_millis(15));
    let max_age = Duration::from_millis(100);
    let options = PoolOptions { max_age, max_streams: 1, ..PoolOptions::default() };
    let pool = pool_with(&[&replica], false, options).await;
    all_answered(&ask_many(&pool, 1000, Duration::from_millis(1), || {}).await);
    assert_eq!((replica.script.count(), most_acted_on(&[&replica])), (1000, 1));
    let opened = replica.script.opened.load(Ordering::SeqCst);
    assert!((5..=20).contains(&opened), "{opened} streams in a second");
    until("old ones are ended", || replica.script.open.load(Ordering::SeqCst) <= 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_refused_for_lack_of_room_goes_to_a_replica_that_has_some() {
    let (one, two) = (Replica::start(), Replica::start());
    one.script.full.store(true, Ordering::SeqCst);
    let pool = pool(&[&one, &two]).await;
    for n in 0..9 {
        all_answered(&[ask_one(pool.clone(), n.to_string()).await]);
    }
    two.script.full.store(true, Ordering::SeqCst);
    let (outcome, _) = ask_one(pool, "none has room".into()).await;
    assert_eq!(outcome.unwrap_err().reason, "FULL");
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_that_wait_are_told_at_once() {
    let replica = Replica::start();
    replica.script.slow(Duration::from_millis(300));
    replica.script.credits.store(1, Ordering::SeqCst);
    let options = PoolOptions { max_streams: 1, max_waiting: 4, ..PoolOptions::default() };
    let pool = pool_with(&[&replica], true, options).await;
    let outcomes = ask_many(&pool, 10, Duration::from_millis(2), || {}).await;
    let refused: Vec<_> =
        outcomes.iter().filter_map(|(outcome, took)| Some((outcome.as_ref().err()?, took))).collect();
    assert_eq!(refused.len(), 5);
    assert!(
        refused
            .iter()
            .all(|(error, took)| error.reason == reason::CLIENT_OVERLOADED && took.as_millis() < 200)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_sheds_is_asked_little_and_as_before_when_it_has_room() {
    let replica = Replica::start();
    replica.script.full.store(true, Ordering::SeqCst);
    let mut options = PoolOptions::default();
    options.throttle.window = Duration::from_millis(500);
    let pool = pool_with(&[&replica], true, options).await;
    let mut held_back = 0;
    for n in 0..200 {
        let (outcome, _) = ask_one(pool.clone(), n.to_string()).await;
        let error = outcome.unwrap_err();
        assert!(error.retry_after.is_some() || error.reason == "FULL", "{error:?}");
        held_back += usize::from(error.reason == reason::THROTTLED);
    }
    assert!(held_back > 150, "{held_back} of 200 messages were held back");
    let admitted = pool.admit(Deadline::after(Duration::from_secs(1)));
    assert_eq!(admitted.unwrap_err().reason, reason::THROTTLED, "before there is a message");
    replica.script.full.store(false, Ordering::SeqCst);
    until("everything is sent again", || pool.admit(Deadline::after(Duration::from_secs(1))).is_ok()).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    for n in 0..50 {
        all_answered(&[ask_one(pool.clone(), n.to_string()).await]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_leaves_the_line_takes_no_credit_with_it() {
    let replica = Replica::start();
    replica.script.slow(Duration::from_millis(100));
    replica.script.credits.store(1, Ordering::SeqCst);
    let options = PoolOptions { max_streams: 1, ..PoolOptions::default() };
    let pool = pool_with(&[&replica], true, options).await;
    let soon = Deadline::after(Duration::from_millis(150));
    let mut calls = JoinSet::new();
    for n in 0..10 {
        let pool = pool.clone();
        calls.spawn(async move { pool.call(soon, ask(n.to_string())).await });
    }
    let outcomes = calls.join_all().await;
    let late = |outcome: &Result<String, RpcError>| matches!(outcome, Err(error) if error.reason == reason::DEADLINE_EXCEEDED);
    assert!(outcomes.iter().filter(|outcome| late(outcome)).count() >= 8, "{outcomes:?}");
    all_answered(&[ask_one(pool.clone(), "next".into()).await]);
    until("every credit is back", || pool.snapshot().streams[0].credits == 1).await;
    assert_eq!(replica.script.greedy.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_no_replica_the_caller_hears_so_within_its_patience() {
    let fixed = Fixed::from_uris("scripted", &["127.0.0.1:9".into()]).unwrap();
    let cluster = Cluster::start(ClusterOptions::new("scripted", fixed));
    let pool = StreamPool::start(TestLane { repeatable: true }, cluster, PoolOptions::default());
    let (outcome, took) = ask_one(pool, "x".into()).await;
    assert_eq!(outcome.unwrap_err().reason, reason::SERVICE_UNAVAILABLE);
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_comes_back_is_found_again() {
    let mut first = Replica::start();
    let (address, script) = (first.address, Arc::clone(&first.script));
    let pool = StreamPool::start(TestLane { repeatable: true }, cluster(&[&first]), PoolOptions::default());
    all_answered(&[ask_one(pool.clone(), "before".into()).await]);
    let again = tokio::task::spawn_blocking(move || {
        first.kill();
        Replica::start_on(address, script)
    });
    let _again = again.await.unwrap();
    until("a stream is open again", || pool.snapshot().streams[0].credits > 0).await;
    all_answered(&[ask_one(pool, "after".into()).await]);
}
