//! Which replica and which stream a message goes to when some of them fail.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use sightline_mesh::{
    Deadline,
    client::{Cluster, ClusterOptions, Fixed, PoolOptions, State, StreamPool},
};
use sightline_telemetry::metrics::{recorder, render};
use tokio::{task::JoinSet, time::sleep};

use crate::{
    LONG,
    scripted::{DeafAtFirst, Replica, TestLane, ask, cluster, pool_with},
    until,
};

/// However fast it fails. Many wait all the time, so that all of its credits could be used when it is tried again.
#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_fails_is_ejected_and_tried_by_one_message_at_a_time() {
    let (bad, good) = (Replica::start(), Replica::start());
    bad.script.fails.store(true, Ordering::SeqCst);
    good.script.slow(Duration::from_millis(50));
    good.script.credits.store(4, Ordering::SeqCst);
    let pool =
        pool_with(&[&bad, &good], true, PoolOptions { max_streams: 1, ..PoolOptions::default() }).await;
    let mut callers = JoinSet::new();
    for caller in 0..30 {
        let pool = pool.clone();
        callers.spawn(async move {
            for n in 0.. {
                pool.call(Deadline::after(LONG), ask(format!("{caller}-{n}"))).await.unwrap();
            }
        });
    }
    let state = || {
        let endpoints = pool.snapshot().cluster.endpoints;
        endpoints.iter().find(|endpoint| endpoint.address == bad.address.to_string()).unwrap().state
    };
    until("it is ejected", || state() == State::Ejected).await;
    sleep(Duration::from_millis(100)).await;
    let before = bad.script.count();
    sleep(Duration::from_secs(4)).await;
    let tried = bad.script.count() - before;
    // Ejections of 1, 2 and 4 s, less a half at most.
    assert!((1..=3).contains(&tried), "{tried}");
    bad.script.fails.store(false, Ordering::SeqCst);
    until("it is used again", || state() == State::Ready).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_takes_nothing_costs_no_message() {
    let replica = Replica::start();
    let lane = DeafAtFirst { lane: TestLane { repeatable: false }, opened: AtomicBool::default() };
    let pool = StreamPool::start(lane, cluster(&[&replica]), PoolOptions::default());
    until("credits are granted", || pool.snapshot().streams.iter().any(|to| to.credits > 0)).await;
    let asked = (0..5).map(|n| pool.call(Deadline::after(LONG), ask(n.to_string())));
    let answers = futures_util::future::try_join_all(asked).await.unwrap();
    assert_eq!(answers, ["0", "1", "2", "3", "4"]);
    assert_eq!(replica.script.opened.load(Ordering::SeqCst), 2);
}

/// Those who wait look again and again, which chooses nobody.
#[tokio::test(flavor = "multi_thread")]
async fn every_message_counts_as_one_choice_however_long_it_waits() {
    recorder();
    let replica = Replica::start();
    replica.script.slow(Duration::from_millis(400));
    replica.script.credits.store(1, Ordering::SeqCst);
    let fixed = Fixed::from_uris("picked", &[replica.address.to_string()]).unwrap();
    let cluster = Cluster::start(ClusterOptions::new("picked", fixed));
    let options = PoolOptions { max_streams: 1, ..PoolOptions::default() };
    let pool = StreamPool::start(TestLane { repeatable: false }, cluster, options);
    until("credits are granted", || pool.snapshot().streams.iter().any(|to| to.credits > 0)).await;
    let asked = (0..4).map(|n| pool.call(Deadline::after(LONG), ask(n.to_string())));
    futures_util::future::try_join_all(asked).await.unwrap();
    let page = render();
    for (how, picks) in [("at_once", 1), ("waited", 3)] {
        let line = format!("mesh_picks_total{{service=\"picked\",how=\"{how}\"}} {picks}\n");
        assert!(page.contains(&line), "{line}{page}");
    }
}
