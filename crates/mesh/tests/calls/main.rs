//! Calls through a `Channel` to real servers: what is repeated, what is not, and how calls end.

#![allow(clippy::unwrap_used)] // a panic here is a failed test

mod echo;
mod tcp;
mod tree;
mod wire;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use echo::{
    Dropped, Net, SAFE, UNKNOWN, UNSAFE, header, hello, one, policies, previous, reaches, stream, timed,
    timeout_of, unary, within,
};
use sightline_mesh::{
    RpcError,
    client::{CallOptions, MethodPolicy, RetryBudgetOptions},
    reason,
};
use tokio_stream::StreamExt;
use tonic::{Code, Response, Status};

const MS: Duration = Duration::from_millis(1);
const TWO: [&str; 2] = ["a:1", "b:1"];

fn count(calls: &[Arc<AtomicUsize>]) -> usize {
    calls.iter().map(|calls| calls.load(Ordering::Relaxed)).sum()
}

/// `UNAVAILABLE` with a word on retries.
fn pushing_back(milliseconds: &'static str) -> Status {
    let mut status = Status::unavailable("later");
    status.metadata_mut().insert("grpc-retry-pushback-ms", milliseconds.parse().unwrap());
    status
}

#[tokio::test(start_paused = true)]
async fn a_safe_call_is_tried_again_elsewhere_and_says_so() {
    let net = Net::default();
    let calls = TWO.map(|authority| {
        net.serve(authority, |request| async move {
            match previous(&request) {
                0 => Err(Status::unavailable("restarting")),
                again => one(format!("{} {again}", request.into_inner())),
            }
        })
    });
    let channel = net.ordinary(&TWO);
    assert_eq!(unary(&channel, SAFE, hello()).await.unwrap(), "hello 1");
    assert!(calls.iter().all(|calls| calls.load(Ordering::Relaxed) == 1), "one attempt each: {calls:?}");
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_failed_a_call_is_not_asked_again_while_there_are_others() {
    let net = Net::default();
    let authorities = ["a:1", "b:1", "c:1", "d:1", "e:1"];
    let calls =
        authorities.map(|authority| net.serve(authority, |_| async { Err(Status::unavailable("no")) }));
    let policy = MethodPolicy::idempotent().max_attempts(5);
    let channel = net.channel(&authorities, &policies(policy), CallOptions::default());
    unary(&channel, SAFE, hello()).await.unwrap_err();
    assert!(calls.iter().all(|calls| calls.load(Ordering::Relaxed) == 1), "one attempt each: {calls:?}");
}

#[tokio::test(start_paused = true)]
async fn an_unsafe_call_is_sent_once() {
    let net = Net::default();
    let calls = TWO.map(|authority| net.serve(authority, |_| async { Err(Status::unavailable("no")) }));
    let channel = net.ordinary(&TWO);
    for path in [UNSAFE, UNKNOWN] {
        assert_eq!(unary(&channel, path, hello()).await.unwrap_err().code(), Code::Unavailable);
    }
    assert_eq!(count(&calls), 2);
    // An error that no second try would change.
    let calls = net.serve("c:1", |_| async { Err(Status::not_found("no")) });
    let channel = net.ordinary(&["c:1"]);
    assert_eq!(unary(&channel, SAFE, hello()).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(count(&[calls]), 1);
}

#[tokio::test(start_paused = true)]
async fn the_server_says_when_and_whether() {
    let net = Net::default();
    let calls = net.serve("a:1", |request| async move {
        match (request.get_ref().as_str(), previous(&request)) {
            ("never", _) => Err(pushing_back("-1")),
            (_, 0) => Err(pushing_back("700")),
            _ => one("now"),
        }
    });
    let channel = net.ordinary(&["a:1"]);
    let never = tonic::Request::new("never".to_owned());
    assert_eq!(unary(&channel, SAFE, never).await.unwrap_err().message(), "later");
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    let (answer, took) = timed(unary(&channel, SAFE, hello())).await;
    assert_eq!(answer.unwrap(), "now");
    assert!((700 * MS..750 * MS).contains(&took), "{took:?}");
    // Nobody waits for an answer that would come too late.
    let (answer, took) = timed(unary(&channel, SAFE, within(500 * MS))).await;
    assert_eq!(answer.unwrap_err().message(), "later");
    assert!(took < 10 * MS, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn when_all_calls_fail_the_budget_keeps_repeats_below_a_tenth() {
    let net = Net::default();
    let calls = TWO.map(|authority| net.serve(authority, |_| async { Err(Status::unavailable("down")) }));
    let channel = net.ordinary(&TWO);
    for _ in 0..2_000 {
        unary(&channel, SAFE, hello()).await.unwrap_err();
    }
    let sent = count(&calls);
    assert!((2_100..2_200).contains(&sent), "{sent} for 2000 calls");
}

#[tokio::test(start_paused = true)]
async fn a_hedge_wins_and_the_loser_is_cancelled_at_its_server() {
    let net = Net::default();
    let lost = Arc::new(AtomicUsize::new(0));
    let calls = TWO.map(|authority| {
        let lost = Arc::clone(&lost);
        net.serve(authority, move |request| {
            let held = Dropped(Arc::clone(&lost));
            async move {
                if previous(&request) == 0 {
                    tokio::time::sleep(Duration::from_secs(60)).await;
                }
                std::mem::forget(held);
                one(format!("attempt {}", previous(&request)))
            }
        })
    });
    let policy = MethodPolicy::idempotent().hedge_after(30 * MS);
    let channel = net.channel(&TWO, &policies(policy), CallOptions::default());
    let (answer, took) = timed(unary(&channel, SAFE, within(10_000 * MS))).await;
    assert_eq!(answer.unwrap(), "attempt 1");
    assert!((30 * MS..40 * MS).contains(&took), "{took:?}");
    assert!(calls.iter().all(|calls| calls.load(Ordering::Relaxed) == 1), "one attempt each: {calls:?}");
    reaches(&lost, 1).await;
    for endpoint in channel.cluster().endpoints().borrow().iter() {
        assert_eq!(endpoint.in_flight(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn hedges_come_out_of_the_same_budget() {
    let net = Net::default();
    let calls = net.serve("a:1", |_| async {
        tokio::time::sleep(50 * MS).await;
        one("slow")
    });
    let policy = MethodPolicy::idempotent().hedge_after(MS);
    let budget = RetryBudgetOptions { min_per_second: 0.0, ..RetryBudgetOptions::default() };
    let channel = net.channel(&["a:1"], &policies(policy), CallOptions { budget, ..CallOptions::default() });
    for _ in 0..500 {
        unary(&channel, SAFE, hello()).await.unwrap();
    }
    let sent = calls.load(Ordering::Relaxed);
    assert!((530..=540).contains(&sent), "{sent} for 500 calls");
}

#[tokio::test(start_paused = true)]
async fn each_attempt_is_told_how_long_the_caller_still_waits() {
    let net = Net::default();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&seen);
    net.serve("a:1", move |request| {
        told.lock().unwrap().push(timeout_of(&request));
        async move { if previous(&request) == 0 { Err(pushing_back("300")) } else { one("done") } }
    });
    let channel = net.ordinary(&["a:1"]);
    unary(&channel, SAFE, within(1_000 * MS)).await.unwrap();
    let seen = seen.lock().unwrap();
    assert!(seen[0] <= 1_000 * MS && seen[0] > 950 * MS, "{seen:?}");
    assert!(seen[1] <= 700 * MS && seen[1] > 650 * MS, "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn a_deadline_holds_to_the_end_of_the_stream() {
    let net = Net::default();
    let ended = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&ended);
    net.serve("a:1", move |_| {
        let held = Dropped(Arc::clone(&counted));
        let ticks = tokio_stream::iter(0..).then(move |n| {
            let _ = &held;
            async move {
                tokio::time::sleep(100 * MS).await;
                Ok(format!("{n}"))
            }
        });
        async move { Ok(Response::new(Box::pin(ticks) as echo::Messages)) }
    });
    let channel = net.ordinary(&["a:1"]);
    let mut answer = stream(&channel, SAFE, within(450 * MS)).await.unwrap();
    let endpoints = channel.cluster().endpoints().borrow().clone();
    assert_eq!(endpoints[0].in_flight(), 1, "until the stream ends");
    let (messages, took) = timed(async {
        let mut messages = Vec::new();
        while messages.len() < 20 && messages.last().is_none_or(Result::is_ok) {
            messages.push(answer.next().await.unwrap());
        }
        messages
    })
    .await;
    assert_eq!(messages.len(), 5, "{messages:?}");
    assert_eq!(messages[4].as_ref().unwrap_err().code(), Code::DeadlineExceeded);
    assert!((440 * MS..=451 * MS).contains(&took), "{took:?}");
    assert_eq!(endpoints[0].in_flight(), 0);
    reaches(&ended, 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_cancels_the_servers_call() {
    let net = Net::default();
    let ended = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&ended);
    let calls = net.serve("a:1", move |request| {
        let held = Dropped(Arc::clone(&counted));
        async move {
            let messages = tokio_stream::once(Ok("first".to_owned())).chain(tokio_stream::pending());
            let messages = messages.map(move |message| {
                let _ = &held;
                message
            });
            if request.get_ref() == "hello" {
                std::future::pending::<()>().await;
            }
            Ok(Response::new(Box::pin(messages) as echo::Messages))
        }
    });
    let channel = net.ordinary(&["a:1"]);
    // Before the answer has begun.
    tokio::time::timeout(50 * MS, unary(&channel, SAFE, hello())).await.unwrap_err();
    reaches(&ended, 1).await;
    // And after.
    let mut answer = stream(&channel, SAFE, tonic::Request::new("stream".into())).await.unwrap();
    assert_eq!(answer.next().await.unwrap().unwrap(), "first");
    drop(answer);
    reaches(&ended, 2).await;
    assert_eq!(calls.load(Ordering::Relaxed), 2);
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_takes_too_long_is_given_up_for_another() {
    let net = Net::default();
    let calls = TWO.map(|authority| {
        net.serve(authority, |request| async move {
            if previous(&request) == 0 {
                std::future::pending::<()>().await;
            }
            one("done")
        })
    });
    let policy = MethodPolicy::idempotent().attempt_timeout(200 * MS);
    let channel = net.channel(&TWO, &policies(policy), CallOptions::default());
    let (answer, took) = timed(unary(&channel, SAFE, hello())).await;
    assert_eq!(answer.unwrap(), "done");
    assert!((200 * MS..210 * MS).contains(&took), "{took:?}");
    assert_eq!(count(&calls), 2);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_repeated_once_the_answer_has_begun() {
    let net = Net::default();
    let calls = net.serve("a:1", |_| async {
        let broken = [Ok("first".to_owned()), Err(Status::unavailable("gone"))];
        Ok(Response::new(Box::pin(tokio_stream::iter(broken)) as echo::Messages))
    });
    let channel = net.ordinary(&["a:1"]);
    let mut answer = stream(&channel, SAFE, hello()).await.unwrap();
    assert_eq!(answer.next().await.unwrap().unwrap(), "first");
    assert_eq!(answer.next().await.unwrap().unwrap_err().code(), Code::Unavailable);
    assert_eq!(calls.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_stream_whose_connection_breaks_ends_with_unavailable() {
    let net = Net::default();
    let calls = net.serve("a:1", |_| async {
        let messages = tokio_stream::once(Ok("first".to_owned())).chain(tokio_stream::pending());
        Ok(Response::new(Box::pin(messages) as echo::Messages))
    });
    let channel = net.ordinary(&["a:1"]);
    let mut answer = stream(&channel, SAFE, hello()).await.unwrap();
    assert_eq!(answer.next().await.unwrap().unwrap(), "first");
    net.cut();
    assert_eq!(answer.next().await.unwrap().unwrap_err().code(), Code::Unavailable);
    assert_eq!(calls.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn calls_in_flight_on_a_connection_that_breaks_are_repeated_if_they_are_safe() {
    let net = Net::default();
    let calls = net.serve("a:1", |request| async move {
        if previous(&request) == 0 && request.get_ref() == "hello" {
            tokio::time::sleep(Duration::from_secs(60)).await;
        }
        one("done")
    });
    let channel = net.ordinary(&["a:1"]);
    let safe = tokio::spawn({
        let channel = channel.clone();
        async move { unary(&channel, SAFE, hello()).await }
    });
    let other = tokio::spawn({
        let channel = channel.clone();
        async move { unary(&channel, UNSAFE, hello()).await }
    });
    reaches(&calls, 2).await;
    net.cut();
    assert_eq!(safe.await.unwrap().unwrap(), "done");
    assert_eq!(other.await.unwrap().unwrap_err().code(), Code::Unavailable);
    assert_eq!(calls.load(Ordering::Relaxed), 3);
}

#[tokio::test(start_paused = true)]
async fn a_request_too_long_to_be_kept_is_sent_once() {
    let net = Net::default();
    let calls = net.serve("a:1", |_| async { Err(Status::unavailable("no")) });
    let policy = MethodPolicy { replay_bytes: 1024, ..MethodPolicy::idempotent() };
    let channel = net.channel(&["a:1"], &policies(policy), CallOptions::default());
    let long = tonic::Request::new("x".repeat(5_000));
    assert_eq!(unary(&channel, SAFE, long).await.unwrap_err().code(), Code::Unavailable);
    assert_eq!(calls.load(Ordering::Relaxed), 1);
    unary(&channel, SAFE, hello()).await.unwrap_err();
    assert_eq!(calls.load(Ordering::Relaxed), 4);
}

#[tokio::test(start_paused = true)]
async fn a_service_that_sheds_is_spared_and_one_that_is_broken_is_not() {
    let net = Net::default();
    let shed = || RpcError::new(Code::ResourceExhausted, "OVERLOADED", "full").retry_after(MS);
    let calls = net.serve("a:1", move |_| async move { Err(shed().into()) });
    let channel = net.ordinary(&["a:1"]);
    let mut held_back = 0;
    for _ in 0..1_000 {
        let error = RpcError::from_status(&unary(&channel, SAFE, hello()).await.unwrap_err());
        assert_eq!(error.code, Code::ResourceExhausted);
        if error.reason == reason::THROTTLED {
            held_back += 1;
            assert!(error.retry_after.is_some());
        }
    }
    assert_eq!(calls.load(Ordering::Relaxed) + held_back, 1_000);
    assert!(held_back > 950, "{held_back}");
    assert!(channel.snapshot().throttle_probability > 0.9);

    let calls = net.serve("b:1", |_| async { Err(Status::unavailable("broken")) });
    let channel = net.ordinary(&["b:1"]);
    for _ in 0..200 {
        unary(&channel, UNSAFE, hello()).await.unwrap_err();
    }
    assert_eq!(calls.load(Ordering::Relaxed), 200);
}

#[tokio::test(start_paused = true)]
async fn a_call_past_its_deadline_is_not_sent() {
    let net = Net::default();
    let calls = net.serve("a:1", |_| async { one("late") });
    let channel = net.ordinary(&["a:1"]);
    let error = unary(&channel, SAFE, within(Duration::ZERO)).await.unwrap_err();
    assert_eq!(error.code(), Code::DeadlineExceeded);
    assert_eq!(calls.load(Ordering::Relaxed), 0);
    // A default deadline is the policy's, and the caller's own goes before it.
    let policy = MethodPolicy::idempotent().timeout(2_000 * MS);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&seen);
    net.serve("b:1", move |request| {
        told.lock().unwrap().push(header(&request, "grpc-timeout").map(|_| timeout_of(&request)));
        async { one("x") }
    });
    let channel = net.channel(&["b:1"], &policies(policy), CallOptions::default());
    unary(&channel, SAFE, hello()).await.unwrap();
    unary(&channel, SAFE, within(5_000 * MS)).await.unwrap();
    unary(&channel, UNSAFE, hello()).await.unwrap();
    let seen = seen.lock().unwrap();
    assert!(seen[0].unwrap() <= 2_000 * MS && seen[1].unwrap() > 4_900 * MS && seen[2].is_none(), "{seen:?}");
}
