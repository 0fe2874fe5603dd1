//! The stream pool against a scripted server over real sockets.

#![allow(clippy::unwrap_used)] // helpers of tests: a panic is a failed test

mod scripted;

use std::{
    collections::HashMap,
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};

use scripted::{Script, Scripted, TestLane, ask, pool, pool_with, serve};
use sightline_mesh::{
    Deadline, RpcError,
    client::{Endpoints, PoolOptions, StreamPool},
    reason,
    server::{Lifecycle, Server, bind},
};
use sightline_proto::ratelimiter::rate_limiter_service_server::RateLimiterServiceServer;
use tonic::service::Routes;

const LONG: Duration = Duration::from_secs(20);

async fn ask_many(pool: &StreamPool<TestLane>, count: usize) -> Vec<Result<bool, RpcError>> {
    let calls: Vec<_> = (0..count)
        .map(|n| {
            let pool = pool.clone();
            tokio::spawn(async move {
                let name = format!("question-{n}");
                let answer = pool.call(Deadline::after(LONG), ask(name.clone())).await?;
                Ok(answer == name)
            })
        })
        .collect();
    let mut outcomes = Vec::new();
    for call in calls {
        outcomes.push(call.await.unwrap());
    }
    outcomes
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_find_their_callers_in_any_order() {
    let (uri, _) = serve(Script::Backwards).await;
    let outcomes = ask_many(&pool(&[uri], 64), 400).await;
    assert!(outcomes.into_iter().all(|outcome| outcome == Ok(true)));
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_of_a_broken_stream_move_to_another_replica() {
    let (bad, broken) = serve(Script::BreakAfter(10)).await;
    let (good, healthy) = serve(Script::BreakAfter(usize::MAX)).await;
    let pool = pool(&[bad, good], 4);
    while pool.open_streams() < 2 {
        tokio::task::yield_now().await;
    }
    let outcomes = ask_many(&pool, 200).await;
    // A message may meet the broken replica on each of its attempts; it then fails as UNAVAILABLE, never silently.
    let failed: Vec<_> = outcomes.iter().filter(|outcome| **outcome != Ok(true)).collect();
    assert!(
        failed
            .iter()
            .all(|outcome| matches!(outcome, Err(error) if error.reason == reason::SERVICE_UNAVAILABLE))
    );
    assert!(failed.len() <= 20, "{failed:?}");
    assert!(broken.answered.load(Ordering::SeqCst) >= 10);
    assert!(healthy.answered.load(Ordering::SeqCst) >= 160);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_messages_are_unanswered_than_there_are_credits() {
    let (uri, server) = serve(Script::Silent).await;
    let pool = pool(&[uri], 3);
    let calls: Vec<_> = (0..10)
        .map(|n| {
            let pool = pool.clone();
            let soon = Deadline::after(Duration::from_millis(300));
            tokio::spawn(async move { pool.call(soon, ask(n.to_string())).await })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap_err().reason, reason::DEADLINE_EXCEEDED);
    }
    assert_eq!(server.read.load(Ordering::SeqCst), 3, "credits come back with answers, not with impatience");
}

/// Waits until `count` is `expected`, at most five seconds.
async fn reaches(count: &AtomicUsize, expected: usize) {
    let wait = async {
        while count.load(Ordering::SeqCst) != expected {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    if tokio::time::timeout(Duration::from_secs(5), wait).await.is_err() {
        assert_eq!(count.load(Ordering::SeqCst), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_that_passes_before_the_message_is_sent_costs_no_credit() {
    const CREDITS: usize = 400;
    let (uri, server) = serve(Script::Gated).await;
    let pool = pool(&[uri], CREDITS);
    // More than the connection's window and the pool's buffer hold: the last ones have a credit and cannot be sent.
    let large = "x".repeat(64 << 10);
    let calls: Vec<_> = (0..CREDITS)
        .map(|_| {
            let (pool, large) = (pool.clone(), large.clone());
            let soon = Deadline::after(Duration::from_millis(500));
            tokio::spawn(async move { pool.call(soon, ask(large)).await })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap_err().reason, reason::DEADLINE_EXCEEDED);
    }
    server.gate.cancel();
    let _held: Vec<_> = (0..CREDITS)
        .map(|_| {
            let pool = pool.clone();
            tokio::spawn(async move { pool.call(Deadline::after(LONG), ask("held".into())).await })
        })
        .collect();
    reaches(&server.held, CREDITS).await;
    assert!(server.read.load(Ordering::SeqCst) < 2 * CREDITS, "every message was sent: this showed nothing");
}

#[tokio::test]
async fn a_stream_that_drains_is_left_with_its_last_answer() {
    let (uri, server) = serve(Script::Drain(Duration::ZERO)).await;
    let pool = pool(&[uri], 4);
    let answer = pool.call(Deadline::after(LONG), ask("last".into())).await.unwrap();
    assert_eq!(answer, "last");
    reaches(&server.ended, 1).await;
}

#[tokio::test]
async fn who_waits_for_a_credit_of_a_stream_that_drains_moves_to_another() {
    let (uri, server) = serve(Script::Drain(Duration::from_millis(200))).await;
    // One attempt: a message that was never sent needs no second one.
    let options = PoolOptions { max_attempts: 1, streams_per_endpoint: 2, ..PoolOptions::default() };
    let pool = pool_with(&[uri], 1, options);
    while pool.open_streams() < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let slow = tokio::spawn({
        let pool = pool.clone();
        async move { pool.call(Deadline::after(LONG), ask("slow".into())).await }
    });
    reaches(&server.read, 1).await;
    let outcomes = ask_many(&pool, 6).await;
    assert!(outcomes.iter().all(|outcome| *outcome == Ok(true)), "{outcomes:?}");
    assert!(!slow.is_finished(), "they waited for the stream that drains");
    assert_eq!(slow.await.unwrap(), Ok("slow".to_owned()));
    reaches(&server.ended, 1).await;
    assert_eq!(server.late.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_one_attempt_a_message_is_sent_once() {
    let (uri, server) = serve(Script::BreakAfter(0)).await;
    let pool = pool_with(&[uri], 4, PoolOptions { max_attempts: 1, ..PoolOptions::default() });
    for _ in 0..5 {
        let error = pool.call(Deadline::after(LONG), ask("x".into())).await.unwrap_err();
        assert_eq!(error.reason, reason::SERVICE_UNAVAILABLE);
    }
    assert_eq!(server.read.load(Ordering::SeqCst), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn with_no_replica_the_caller_hears_so_within_its_patience() {
    let endpoints = Endpoints::new("scripted", &["127.0.0.1:9".into()], &HashMap::new()).unwrap();
    let options = PoolOptions { patience: Duration::from_millis(50), ..PoolOptions::default() };
    let pool = StreamPool::start(TestLane { credits: 1 }, endpoints, options);
    let error = pool.call(Deadline::after(LONG), ask("x".into())).await.unwrap_err();
    assert_eq!(
        (error.reason.as_str(), error.message.as_str()),
        (reason::SERVICE_UNAVAILABLE, "no replica of scripted can be reached")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_comes_back_is_found_again() {
    let (uri, first) = serve(Script::BreakAfter(usize::MAX)).await;
    let pool = pool(std::slice::from_ref(&uri), 8);
    assert!(ask_many(&pool, 8).await.into_iter().all(|outcome| outcome == Ok(true)));
    first.lifecycle.drain();
    // Its listener closes and its streams end; then the same address serves again.
    let address = uri.trim_start_matches("http://").parse().unwrap();
    let listener = loop {
        match bind("test", address).await {
            Ok(listener) => break listener,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let service = Scripted::new(Script::BreakAfter(usize::MAX));
    let server = Server {
        name: "scripted",
        listener,
        routes: Routes::new(RateLimiterServiceServer::new(service.clone())),
        service_names: vec![],
        web: None,
        drain_timeout: LONG,
    };
    tokio::spawn(server.run(Lifecycle::default()));
    while service.answered.load(Ordering::SeqCst) == 0 {
        pool.call(Deadline::after(Duration::from_secs(5)), ask("again".into())).await.ok();
    }
}
