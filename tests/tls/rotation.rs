//! Certificates that change under load.

use std::{
    env,
    sync::{Arc, atomic::Ordering},
};

use sightline_testkit::eventually;
use tokio::task::JoinSet;

use crate::{
    certs::{Authority, DAY},
    client::{Client, Seen},
    mesh::{Mesh, SERVICES, id},
    refused::ask,
};

fn rotations() -> u32 {
    env::var("SIGHTLINE_ROTATIONS").map_or(10, |number| number.parse().unwrap())
}

/// Waits until every kind of client has so many verdicts more; none may have ended.
async fn progress(clients: &mut JoinSet<Result<(), String>>, loads: &[Arc<Seen>], more: u64) {
    for seen in loads {
        let wanted = seen.verdicts() + more;
        eventually!({
            let ended = clients.try_join_next();
            assert!(ended.is_none(), "{ended:?}");
            seen.verdicts() >= wanted
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn rotations_under_load_cost_no_call_and_end_no_stream() {
    let (first, second) = (Authority::new("first"), Authority::new("second"));
    let Some(mut mesh) = Mesh::start(&first, DAY, &[]).await else { return };
    let both = mesh.bundle("both.pem", &[&first, &second]);
    let client = Client::new(&mesh.edge_address(), &both);
    // Each kind of client counts for itself: one that stands still is seen.
    let loads: [Arc<Seen>; 3] = Default::default();
    let [streams, kept, anew] = &loads;
    let mut clients = JoinSet::new();
    for _ in 0..3 {
        clients.spawn(client.clone().stream(Arc::clone(streams)));
    }
    clients.spawn(client.clone().call(Arc::clone(kept)));
    clients.spawn(client.clone().call_anew(Arc::clone(anew)));
    progress(&mut clients, &loads, 5).await;

    let rounds = rotations();
    for round in 1..=rounds {
        // Half-way the authority changes too, in the order in which that works: first everybody trusts both.
        let signer = if round <= rounds / 2 { &first } else { &second };
        mesh.rotate(signer, &[&first, &second], DAY).await;
        progress(&mut clients, &loads, 3).await;
    }
    // At last the old authority goes.
    mesh.rotate(&second, &[&second], DAY).await;
    progress(&mut clients, &loads, 3).await;
    loads.iter().for_each(|seen| seen.stop.store(true, Ordering::SeqCst));
    let ended: Vec<Result<(), String>> = clients.join_all().await;
    assert_eq!(ended, vec![Ok(()); 5]);

    // Every stream stayed on the connection that it began on, those between services too.
    assert_eq!(streams.connections.load(Ordering::SeqCst), 3);
    for service in SERVICES.iter().filter(|service| **service != "ingest") {
        let view = mesh.service("ingest").view(service);
        assert_eq!(view["endpoints"][0]["connects"], 1, "{service}: {view}");
    }
    // New connections show the new certificates, and trust nothing else.
    let old = Client::new(&mesh.edge_address(), &mesh.bundle("first.pem", &[&first]));
    let said = old.connect().await.unwrap_err();
    assert!(said.contains("an authority that --ca") && said.contains("first.pem does not hold"), "{said}");
    let new = Client::new(&mesh.edge_address(), &mesh.bundle("second.pem", &[&second]));
    new.connect().await.unwrap();
    let ingest = id("ingest");
    for (signer, expected) in
        [(&second, Ok("SERVING".to_owned())), (&first, Err("the server does not hold our authority"))]
    {
        let said = ask(&mesh, "stats", Some(signer.issue(&[&ingest], DAY)), &[&second]);
        match expected {
            Ok(status) => assert_eq!(said, Ok(status)),
            Err(words) => assert!(said.as_ref().is_err_and(|said| said.contains(words)), "{said:?}"),
        }
    }
    tell(&loads, rounds);
}

#[allow(clippy::print_stdout)] // figures for whoever runs the long form
fn tell([streams, kept, anew]: &[Arc<Seen>; 3], rounds: u32) {
    let connections = anew.connections.load(Ordering::SeqCst);
    println!(
        "{} rotations: {} verdicts on 3 streams, {} on one connection, {} over {connections} new ones; 0 errors",
        rounds + 1,
        streams.verdicts(),
        kept.verdicts(),
        anew.verdicts()
    );
}
