//! A cluster against real servers over real sockets, with real faults.

#![allow(clippy::unwrap_used)] // helpers of tests: a panic is a failed test

mod replica;

use std::{sync::atomic::Ordering, time::Duration};

use replica::{Asked, ByHand, Process, Replica, ask, be_a_replica, until};
use sightline_mesh::{
    Deadline,
    client::{
        Address, Balance, Cluster, ClusterOptions, DiscoverError, Fixed, MeshOptions, Outcome, Pick, State,
    },
    reason,
};
use sightline_proto::ratelimiter::{CheckRequest, rate_limiter_service_client::RateLimiterServiceClient};
use sightline_telemetry::metrics::{recorder, render};
use tokio::{task::JoinSet, time::Instant};

const S: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);
const LONG: Duration = Duration::from_secs(20);

fn cluster_with(uris: &[String], mesh: MeshOptions) -> Cluster {
    let discover = Fixed::from_uris("replicas", uris).unwrap();
    Cluster::start(ClusterOptions::new("replicas", discover).mesh(mesh))
}

fn cluster(uris: &[String]) -> Cluster {
    cluster_with(uris, MeshOptions::default())
}

fn states(cluster: &Cluster) -> Vec<State> {
    cluster.snapshot().endpoints.iter().map(|endpoint| endpoint.state).collect()
}

fn state(cluster: &Cluster, uri: &str) -> State {
    cluster.snapshot().endpoints.iter().find(|endpoint| endpoint.address == uri).unwrap().state
}

async fn ready(cluster: &Cluster, count: usize) -> Duration {
    until(&format!("{count} ready"), LONG, || {
        states(cluster).iter().filter(|state| **state == State::Ready).count() == count
    })
    .await
}

/// `callers` call one after another for a while, with a breath between: tests beside this one need the processor too.
async fn load(cluster: &Cluster, callers: usize, length: Duration) -> Vec<Asked> {
    let mut tasks = JoinSet::new();
    for _ in 0..callers {
        let cluster = cluster.clone();
        tasks.spawn(async move {
            let (mut all, end) = (Vec::new(), Instant::now() + length);
            while Instant::now() < end {
                all.push(ask(&cluster, S).await);
                tokio::time::sleep(8 * MS).await;
            }
            all
        });
    }
    tasks.join_all().await.into_iter().flatten().collect()
}

/// Not a test by itself: see [`Process::start`].
#[tokio::test]
async fn replica_process() {
    be_a_replica().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_replica_is_left_at_once_and_joined_again_when_it_is_back() {
    let (mut one, two) = (Replica::start().await, Replica::start().await);
    let cluster = cluster(&[one.uri(), two.uri()]);
    ready(&cluster, 2).await;
    // Calls are on their way when it dies: those may fail, as nobody here repeats them.
    let running = tokio::spawn({
        let cluster = cluster.clone();
        async move { load(&cluster, 10, 1500 * MS).await }
    });
    tokio::time::sleep(500 * MS).await;
    one.kill();
    until("it is left", S, || state(&cluster, &one.uri()) != State::Ready).await;
    let after = load(&cluster, 10, 500 * MS).await;
    assert!(after.iter().all(Asked::is_answered), "{:?}", after.iter().find(|asked| !asked.is_answered()));
    let all = running.await.unwrap();
    let failed = all.iter().filter(|asked| !asked.is_answered()).count();
    assert!(failed <= 10, "no more than were in flight: {failed} of {}", all.len());

    let one = Replica::at(one.address).await;
    let back = ready(&cluster, 2).await;
    assert!(back < 3 * S, "{back:?}");
    load(&cluster, 10, 200 * MS).await;
    assert!(one.calls() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_replica_finishes_its_calls_and_gets_no_new_ones() {
    let (one, two) = (Replica::start().await, Replica::start().await);
    let cluster = cluster(&[one.uri(), two.uri()]);
    ready(&cluster, 2).await;
    one.mode.latency_ms.store(800, Ordering::SeqCst);
    two.mode.latency_ms.store(5, Ordering::SeqCst);
    let running = tokio::spawn({
        let cluster = cluster.clone();
        async move { load(&cluster, 8, 2 * S).await }
    });
    until("a call is on it", S, || one.calls() > 0).await;
    one.lifecycle.drain();
    // No call is needed to notice: the server's health or its GOAWAY tell.
    until("it is left", 500 * MS, || state(&cluster, &one.uri()) != State::Ready).await;
    let calls = one.calls();
    let all = running.await.unwrap();
    let failed: Vec<_> = all.iter().filter(|asked| !asked.is_answered()).collect();
    assert!(failed.is_empty(), "{} of {}: {:?}", failed.len(), all.len(), failed[0]);
    assert_eq!(one.calls(), calls, "none after it said so");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_replica_gets_few_calls() {
    let replicas = [Replica::start().await, Replica::start().await, Replica::start().await];
    for (replica, latency) in replicas.iter().zip([20, 20, 200]) {
        replica.mode.latency_ms.store(latency, Ordering::SeqCst);
    }
    let cluster = cluster(&replicas.each_ref().map(Replica::uri));
    ready(&cluster, 3).await;
    let all = load(&cluster, 16, 4 * S).await;
    assert!(all.iter().all(Asked::is_answered));
    let share = replicas[2].calls() as f64 / all.len() as f64;
    println!("share of the slow one: {:.2} % of {}", share * 100.0, all.len());
    assert!(share < 0.08, "{share}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_of_two_that_fails_is_ejected_and_comes_back_when_it_works() {
    let (bad, good) = (Replica::start().await, Replica::start().await);
    bad.mode.failing.store(true, Ordering::SeqCst);
    // In turns: by load alone the failing one gets so few calls that the breaker has little to do.
    let mesh = MeshOptions { balance: Balance::RoundRobin, ..MeshOptions::default() };
    let cluster = cluster_with(&[bad.uri(), good.uri()], mesh);
    ready(&cluster, 2).await;
    let first = load(&cluster, 4, 400 * MS).await;
    let failed = first.iter().filter(|asked| !asked.is_answered()).count();
    assert!((5..=12).contains(&failed), "{failed} of {}", first.len());
    assert_eq!(state(&cluster, &bad.uri()), State::Ejected);
    // While it fails, one call at a time tries it, less and less often.
    let tried = bad.calls();
    let while_bad = load(&cluster, 4, 3 * S).await;
    assert!(while_bad.iter().filter(|asked| !asked.is_answered()).count() <= 3);
    assert!(bad.calls() - tried <= 3, "{} probes", bad.calls() - tried);
    bad.mode.failing.store(false, Ordering::SeqCst);
    let running = tokio::spawn({
        let cluster = cluster.clone();
        async move { load(&cluster, 4, 10 * S).await }
    });
    ready(&cluster, 2).await;
    assert!(running.await.unwrap().iter().all(Asked::is_answered));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_process_is_found_within_five_seconds_and_used_again_when_it_goes_on() {
    let (stopped, other) = (Process::start("replica_process").await, Process::start("replica_process").await);
    let cluster = cluster(&[stopped.uri.clone(), other.uri.clone()]);
    ready(&cluster, 2).await;
    let running = tokio::spawn({
        let cluster = cluster.clone();
        async move { load(&cluster, 20, 8 * S).await }
    });
    tokio::time::sleep(S).await;
    stopped.signal("-STOP");
    let found = until("found", 5 * S, || state(&cluster, &stopped.uri) != State::Ready).await;
    println!("found after {found:?}: {:?}", cluster.snapshot().endpoints[0].last_problem);
    // The kernel of a stopped process goes on accepting connections: no reason to send calls there.
    tokio::time::sleep(S).await;
    assert_ne!(state(&cluster, &stopped.uri), State::Ready);
    let all = running.await.unwrap();
    let failed = all.iter().filter(|asked| !asked.is_answered()).count();
    println!("{failed} of {} calls failed", all.len());
    assert!(failed <= 60, "each caller meets it a few times at most: {failed} of {}", all.len());
    stopped.signal("-CONT");
    // It was ejected: a call has to try it.
    let since = Instant::now();
    while state(&cluster, &stopped.uri) != State::Ready {
        assert!(since.elapsed() < LONG, "not used again: {:?}", cluster.snapshot());
        load(&cluster, 4, 100 * MS).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_process_is_found_without_any_call() {
    let stopped = Process::start("replica_process").await;
    let cluster = cluster(std::slice::from_ref(&stopped.uri));
    ready(&cluster, 1).await;
    stopped.signal("-STOP");
    let found = until("found", 5 * S, || state(&cluster, &stopped.uri) != State::Ready).await;
    let problem = cluster.snapshot().endpoints[0].last_problem.clone().unwrap();
    println!("found after {found:?}: {problem}");
    assert!(problem.contains("no sign of life"), "{problem}");
    stopped.signal("-CONT");
    ready(&cluster, 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_any_replica_calls_fail_fast_until_one_is_there() {
    let mut replica = Replica::start().await;
    replica.kill();
    let cluster = cluster(&[replica.uri()]);
    let since = Instant::now();
    let Asked::Refused(error) = ask(&cluster, LONG).await else { panic!("picked") };
    assert!((1900 * MS..2600 * MS).contains(&since.elapsed()), "patience: {:?}", since.elapsed());
    assert_eq!(error.reason, reason::SERVICE_UNAVAILABLE);
    assert!(error.message.contains("replicas") && error.message.contains(&replica.uri()), "{error}");
    until("the gate shuts", 3 * S, || cluster.snapshot().failing_fast).await;
    let since = Instant::now();
    assert!(matches!(ask(&cluster, LONG).await, Asked::Refused(_)));
    assert!(since.elapsed() < 100 * MS, "{:?}", since.elapsed());
    let _replica = Replica::at(replica.address).await;
    until("the gate opens", 4 * S, || !cluster.snapshot().failing_fast).await;
    assert!(ask(&cluster, LONG).await.is_answered());
}

#[tokio::test(flavor = "multi_thread")]
async fn in_panic_ejected_replicas_are_used() {
    let (bad, good) = (Replica::start().await, Replica::start().await);
    bad.mode.failing.store(true, Ordering::SeqCst);
    let mesh = MeshOptions { panic_below: 0.6, balance: Balance::RoundRobin, ..MeshOptions::default() };
    let cluster = cluster_with(&[bad.uri(), good.uri()], mesh);
    ready(&cluster, 2).await;
    load(&cluster, 4, 500 * MS).await;
    assert_eq!(state(&cluster, &bad.uri()), State::Ejected);
    assert!(cluster.snapshot().panic);
    bad.mode.failing.store(false, Ordering::SeqCst);
    let calls = bad.calls();
    load(&cluster, 8, 300 * MS).await;
    assert!(bad.calls() > calls + 3, "not only probes: {}", bad.calls() - calls);
}

#[tokio::test(flavor = "multi_thread")]
async fn discovery_that_fails_or_finds_nobody_changes_nothing() {
    let (one, two) = (Replica::start().await, Replica::start().await);
    let (found, discover) = ByHand::new();
    let cluster = Cluster::start(ClusterOptions::new("replicas", discover));
    let address = |replica: &Replica| Address::new(&replica.uri()).unwrap();
    found.send(Ok(vec![address(&one), address(&two)])).await.unwrap();
    ready(&cluster, 2).await;
    let ids = |cluster: &Cluster| {
        let endpoints = cluster.endpoints().borrow().clone();
        endpoints.iter().map(|endpoint| endpoint.id()).collect::<Vec<_>>()
    };
    let before = ids(&cluster);
    found.send(Ok(Vec::new())).await.unwrap();
    found.send(Err(DiscoverError { source_name: "hand".into(), problem: "empty".into() })).await.unwrap();
    found.send(Ok(vec![address(&two), address(&one).weighing(3)])).await.unwrap();
    until("the weight is known", S, || cluster.snapshot().endpoints.iter().any(|e| e.weight == 3)).await;
    assert_eq!(ids(&cluster), before, "the same endpoints, still connected");
    assert_eq!(states(&cluster), [State::Ready, State::Ready]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_replica_finishes_its_calls_within_the_bound() {
    let (one, two) = (Replica::start().await, Replica::start().await);
    let (found, discover) = ByHand::new();
    let mesh = MeshOptions { removal_timeout: S, ..MeshOptions::default() };
    // Counted by a name of its own, and from the start.
    recorder();
    let cluster = Cluster::start(ClusterOptions::new("removed", discover).mesh(mesh));
    let address = |replica: &Replica| Address::new(&replica.uri()).unwrap();
    found.send(Ok(vec![address(&one)])).await.unwrap();
    ready(&cluster, 1).await;
    let asked = |latency| {
        one.mode.latency_ms.store(latency, Ordering::SeqCst);
        let (cluster, calls) = (cluster.clone(), one.calls());
        let task = tokio::spawn(async move { ask(&cluster, LONG).await });
        (task, calls)
    };
    let (short, before) = asked(400);
    until("the call is there", S, || one.calls() > before).await;
    let (endless, before) = asked(15_000);
    until("the call is there", S, || one.calls() > before).await;
    let removed = cluster.endpoints().borrow()[0].clone();
    let since = Instant::now();
    found.send(Ok(vec![address(&two)])).await.unwrap();
    until("the other is ready", S, || {
        removed.state() == State::Draining && states(&cluster) == [State::Ready]
    })
    .await;
    assert!(short.await.unwrap().is_answered());
    let endless = endless.await.unwrap();
    assert!(matches!(endless, Asked::Failed(tonic::Code::Unavailable, false)), "{endless:?}");
    assert!((900 * MS..2 * S).contains(&since.elapsed()), "{:?}", since.elapsed());
    let calls = one.calls();
    assert!(load(&cluster, 4, 200 * MS).await.iter().all(Asked::is_answered));
    assert_eq!(one.calls(), calls);
    assert!(render().contains("mesh_connections{service=\"removed\"} 1\n"), "{}", render());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_said_goodbye_before_it_was_removed_is_cut_within_the_bound_too() {
    let (one, two) = (Replica::start().await, Replica::start().await);
    let (found, discover) = ByHand::new();
    let mesh = MeshOptions { removal_timeout: S, ..MeshOptions::default() };
    let cluster = Cluster::start(ClusterOptions::new("replicas", discover).mesh(mesh));
    let address = |replica: &Replica| Address::new(&replica.uri()).unwrap();
    found.send(Ok(vec![address(&one)])).await.unwrap();
    ready(&cluster, 1).await;
    one.mode.latency_ms.store(15_000, Ordering::SeqCst);
    let endless = tokio::spawn({
        let cluster = cluster.clone();
        async move { ask(&cluster, LONG).await }
    });
    until("the call is there", S, || one.calls() > 0).await;
    // It waits for its calls for 5 s.
    one.lifecycle.drain();
    until("it says goodbye", S, || matches!(states(&cluster)[0], State::Backoff | State::Connecting)).await;
    let since = Instant::now();
    found.send(Ok(vec![address(&two)])).await.unwrap();
    let endless = endless.await.unwrap();
    assert!(matches!(endless, Asked::Failed(tonic::Code::Unavailable, false)), "{endless:?}");
    assert!((900 * MS..2 * S).contains(&since.elapsed()), "{:?}", since.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listener_that_never_speaks_is_never_ready() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = listener.local_addr().unwrap().to_string();
    let good = Replica::start().await;
    let cluster = cluster(&[silent.clone(), good.uri()]);
    ready(&cluster, 1).await;
    assert!(load(&cluster, 8, 2500 * MS).await.iter().all(Asked::is_answered));
    assert!(matches!(state(&cluster, &silent), State::Connecting | State::Backoff));
    let snapshot = serde_json::to_value(cluster.snapshot()).unwrap();
    let problem = snapshot["last_problem"].as_str().unwrap();
    assert!(problem.contains("no connection within"), "{problem}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_on_a_connection_that_is_closing_is_known_as_unsent() {
    let one = Replica::start().await;
    let cluster = cluster(&[one.uri()]);
    ready(&cluster, 1).await;
    let picked = cluster.pick(Pick::until(Deadline::after(LONG))).await.unwrap();
    let transport = picked.transport().unwrap();
    one.lifecycle.drain();
    transport.ended().await;
    let status = RateLimiterServiceClient::new(transport).check(CheckRequest::default()).await.unwrap_err();
    let error = sightline_mesh::client::TransportError::of(&status).unwrap();
    assert!(error.is_unsent() && status.code() == tonic::Code::Unavailable, "{status:?}");
    picked.done(Outcome::Cancelled);
}
