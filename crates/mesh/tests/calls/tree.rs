//! Services that call each other through `Channel`s: what a call hands on to the calls it causes.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::echo::{Dropped, Net, SAFE, hello, one, policies, reaches, timeout_of, unary, within};
use sightline_mesh::client::{CallContext, CallOptions, Channel, MethodPolicy, RetryBudgetOptions};
use tonic::Status;

const MS: Duration = Duration::from_millis(1);

/// A budget per service that never is the limit.
fn generous() -> CallOptions {
    let budget = RetryBudgetOptions { ratio: 1.0, min_per_second: 1000.0, burst: 10_000.0 };
    CallOptions { budget, ..CallOptions::default() }
}

/// Starts a service that passes every call on.
fn relay(net: &Net, authority: &'static str, to: Channel) -> Arc<AtomicUsize> {
    net.serve(authority, move |_| {
        let to = to.clone();
        async move { one(unary(&to, SAFE, hello()).await?) }
    })
}

fn channel(net: &Net, authority: &str) -> Channel {
    net.channel(&[authority], &policies(MethodPolicy::idempotent()), generous())
}

/// Three services in a row whose last one fails; how often each was called for one call of the first.
async fn failing_tree() -> [usize; 3] {
    let net = Net::default();
    let last = net.serve("c:1", |_| async { Err(Status::unavailable("down")) });
    let middle = relay(&net, "b:1", channel(&net, "c:1"));
    let first = relay(&net, "a:1", channel(&net, "b:1"));
    unary(&channel(&net, "a:1"), SAFE, hello()).await.unwrap_err();
    [first, middle, last].map(|calls| calls.load(Ordering::Relaxed))
}

#[tokio::test(start_paused = true)]
async fn a_whole_tree_shares_its_extra_attempts() {
    let calls = failing_tree().await;
    // Each of the three hops may try three times: 27 calls at the last without a common budget. With it, every call
    // beyond the first at each of the hops that were reached is one of eight extra attempts, or caused by one.
    let [first, middle, last] = calls;
    let (extra_first, extra_middle, extra_last) = (first - 1, middle - first, last - middle);
    assert!(extra_first + extra_middle + extra_last <= 8, "{calls:?}");
    assert!(extra_first > 0 && extra_last > 0, "{calls:?}");
    assert!(last <= 9, "{calls:?}");
}

#[tokio::test(start_paused = true)]
async fn a_deadline_shrinks_from_hop_to_hop_without_being_handed_on_by_hand() {
    let net = Net::default();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&seen);
    net.serve("b:1", move |request| {
        told.lock().unwrap().push(timeout_of(&request));
        async { one("done") }
    });
    let to = channel(&net, "b:1");
    net.serve("a:1", move |_| {
        let to = to.clone();
        async move {
            tokio::time::sleep(200 * MS).await;
            let answer = unary(&to, SAFE, hello()).await?;
            // A task of its own inherits when it is told to.
            let context = CallContext::current().unwrap();
            tokio::spawn(context.scope(async move { unary(&to, SAFE, hello()).await })).await.unwrap()?;
            one(answer)
        }
    });
    unary(&channel(&net, "a:1"), SAFE, within(1_000 * MS)).await.unwrap();
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 2);
    assert!(seen.iter().all(|left| *left <= 800 * MS && *left > 740 * MS), "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_cancels_the_whole_tree() {
    let net = Net::default();
    let ended = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&ended);
    let last = net.serve("c:1", move |_| {
        let held = Dropped(Arc::clone(&counted));
        async move {
            std::future::pending::<()>().await;
            drop(held);
            one("never")
        }
    });
    relay(&net, "b:1", channel(&net, "c:1"));
    relay(&net, "a:1", channel(&net, "b:1"));
    let first = channel(&net, "a:1");
    let call = tokio::spawn(async move { unary(&first, SAFE, hello()).await });
    reaches(&last, 1).await;
    call.abort();
    reaches(&ended, 1).await;
    assert_eq!(last.load(Ordering::Relaxed), 1);
}
