//! Every replica of every service is started anew, one after another, while clients go on.

use std::time::Duration;

use sightline_servers::cluster::{Replicas, Role};
use sightline_testkit::models::Small;
use tokio::{task::block_in_place, time::Instant};

use crate::{
    load::Load,
    support::{ALONE, Shape, addresses, charged, counted, number, start},
};

#[tokio::test(flavor = "multi_thread")]
async fn a_rolling_restart_of_all_services_loses_nothing_and_does_nothing_twice() {
    let _alone = ALONE.lock().await;
    let rounds = number("SIGHTLINE_CHAOS_ROUNDS", 1);
    let folder = tempfile::tempdir().unwrap();
    // A check that is not answered is an error here, not a frame that passes uncharged: then charges can be counted.
    let settings = ["ingest.ratelimiter_away=closed", "ingest.ratelimiter_timeout=9s"];
    let shape =
        Shape { replicas: Replicas::each(3), model: Small::default(), settings: &settings, reach: &[] };
    let Some(mut cluster) = start(&folder, &shape) else { return };
    let names: Vec<String> = cluster.members.iter().map(|member| member.name.clone()).collect();
    let load = Load::start(&cluster);
    load.settle("before", Duration::from_secs(2)).await;
    for round in 1..=rounds {
        let since = Instant::now();
        for name in &names {
            let server = &mut cluster.member(name).unwrap().server;
            let status = block_in_place(|| server.stop().unwrap());
            assert!(status.success(), "{name} ended with {status}");
            block_in_place(|| server.restart().unwrap());
        }
        let (rate, median, high) = load.book.pace(since);
        println!(
            "round {round}: {} restarts in {:.1?}, {rate:.0} answers/s, p50 {median:.1?}, p99 {high:.1?}, {} frames moved",
            names.len(),
            since.elapsed(),
            load.book.moves()
        );
    }
    let begun = load.begun;
    let frames = load.finish().await;
    counted(addresses(&cluster, Role::Stats)[0], frames).await;
    assert_eq!(charged(addresses(&cluster, Role::Ratelimiter)[0], begun).await, frames, "charges");
    println!("{frames} frames, each answered, counted and charged once");
    block_in_place(|| cluster.stop().unwrap());
}
