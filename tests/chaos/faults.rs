//! One replica of three dies, hangs, or is cut off, under load.

use std::time::Duration;

use sightline_servers::{
    cluster::{Cluster, Reach, Replicas, Role},
    is_root,
};
use sightline_testkit::{models::Small, setup};
use tokio::{task::block_in_place, time::Instant};

use crate::{
    load::Load,
    support::{ALONE, Shape, addresses, charged, counted, start},
};

/// Until a process that is gone costs nothing any more: its connections break at once.
const GONE: Duration = Duration::from_secs(2);
/// The same of one that says nothing: that takes time to tell from one that is slow.
const SILENT: Duration = Duration::from_secs(5);
const CALM: Duration = Duration::from_secs(2);

const VICTIMS: [&str; 3] = ["classifier-1", "ratelimiter-1", "stats-1"];

fn shape<'a>(reach: &'a [(&'a str, Reach)]) -> Shape<'a> {
    Shape { replicas: Replicas::each(3), model: Small::default(), settings: &[], reach }
}

/// Nothing was lost, nothing counted twice, and no frame was charged twice: each was charged once, or passed because no rate
/// limiter answered, or because the one that did had lost its Redis, as its rule says (`open`).
async fn settle_up(cluster: Cluster, load: Load) {
    let (begun, book) = (load.begun, std::sync::Arc::clone(&load.book));
    let frames = load.finish().await;
    counted(addresses(&cluster, Role::Stats)[1], frames).await;
    let charged = charged(addresses(&cluster, Role::Ratelimiter)[1], begun).await;
    let unlimited = block_in_place(|| cluster.metric(Role::Ingest, "ingest_unlimited_frames_total").unwrap());
    let away = block_in_place(|| cluster.metric(Role::Ratelimiter, "ratelimiter_degraded_total").unwrap());
    println!(
        "{frames} frames: {charged} charged, {unlimited} passed without an answer of the rate limiter, {away} while \
         its Redis was away"
    );
    assert!(charged <= frames, "{charged} charges for {frames} frames");
    let accounted = charged + unlimited as u64 + away as u64;
    assert!(
        accounted >= frames,
        "{charged} charged, {unlimited} unlimited, {away} decided alone, of {frames}"
    );
    assert_eq!(book.moves(), 0, "no ingest replica was asked to stop");
    block_in_place(|| cluster.stop().unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_is_killed_or_stopped_costs_no_client_anything() {
    let _alone = ALONE.lock().await;
    let folder = tempfile::tempdir().unwrap();
    let Some(mut cluster) = start(&folder, &shape(&[])) else { return };
    let load = Load::start(&cluster);
    load.settle("before", CALM).await;
    for victim in VICTIMS {
        let fault = Instant::now();
        block_in_place(|| cluster.member(victim).unwrap().server.kill());
        load.recovers(fault, &format!("kill -9 {victim}"), GONE).await;
        block_in_place(|| cluster.member(victim).unwrap().server.restart().unwrap());
        load.settle("again", CALM).await;
    }
    for victim in VICTIMS {
        let fault = Instant::now();
        cluster.member(victim).unwrap().server.pause();
        load.recovers(fault, &format!("SIGSTOP {victim}"), SILENT).await;
        cluster.member(victim).unwrap().server.resume();
        load.settle("again", CALM).await;
    }
    settle_up(cluster, load).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_behind_a_network_that_swallows_packets_costs_no_client_anything() {
    let _alone = ALONE.lock().await;
    if !is_root() {
        return setup::skip("only root makes network namespaces; run the tests as root");
    }
    let folder = tempfile::tempdir().unwrap();
    let apart = ["classifier-3", "ratelimiter-3", "stats-3"];
    let mut reach = apart.map(|name| (name, Reach::Namespace)).to_vec();
    reach.push(("classifier-2", Reach::Proxy));
    let Some(mut cluster) = start(&folder, &shape(&reach)) else { return };
    let load = Load::start(&cluster);
    load.settle("before", CALM).await;
    for victim in apart {
        let fault = Instant::now();
        namespace(&mut cluster, victim, |namespace| namespace.black_hole());
        load.recovers(fault, &format!("black hole around {victim}"), SILENT).await;
        namespace(&mut cluster, victim, |namespace| namespace.heal());
        load.settle("again", CALM).await;
    }
    for victim in apart {
        namespace(&mut cluster, victim, |namespace| namespace.lose(5));
    }
    load.settle("5 % of the packets of three replicas lost", SILENT).await;
    for victim in apart {
        namespace(&mut cluster, victim, |namespace| namespace.heal());
    }
    let delay = |cluster: &mut Cluster, by| {
        let member = cluster.member("classifier-2").unwrap();
        block_in_place(|| member.proxy.as_ref().unwrap().delay(by).unwrap());
    };
    let fault = Instant::now();
    delay(&mut cluster, Duration::from_millis(300));
    load.recovers(fault, "answers of classifier-2 delayed by 300 ms", SILENT).await;
    delay(&mut cluster, Duration::ZERO);
    load.settle("again", CALM).await;
    settle_up(cluster, load).await;
}

fn namespace(
    cluster: &mut Cluster,
    member: &str,
    fault: impl FnOnce(&sightline_servers::Namespace) -> sightline_servers::Result<()>,
) {
    let member = cluster.member(member).unwrap();
    block_in_place(|| fault(member.namespace.as_ref().unwrap()).unwrap());
}
