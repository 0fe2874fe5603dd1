//! Certificates that end.
//!
//! TLS looks at a certificate when a connection begins. What is promised of one that ends later: the connection is asked to
//! end at `server.max_connection_age`, a tenth more or less, is cut `server.max_connection_age_grace` after that, and no
//! connection after it is made with the old certificate. With renewal in time nobody notices.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use sightline_testkit::eventually;
use tokio::task::JoinSet;

use crate::{
    certs::{Authority, DAY},
    client::{Client, Seen},
    mesh::Mesh,
};

/// How long a service's certificate lives.
const LIFE: Duration = Duration::from_secs(10);
/// A pause between two renewals.
const PAUSE: Duration = Duration::from_secs(3);
/// How old connections get, a tenth more or less: just more than a client takes for a connection that works (2 s), before
/// which it is slow to connect again.
const AGE: Duration = Duration::from_secs(3);
/// What is left of an old connection is cut after this.
const GRACE: Duration = Duration::from_secs(2);

#[tokio::test(flavor = "multi_thread")]
async fn certificates_that_end_in_use_cost_nothing_when_renewed_and_calls_when_not() {
    let authority = Authority::new("mesh");
    let settings = ["server.max_connection_age=3s", "server.max_connection_age_grace=2s"];
    let Some(mut mesh) = Mesh::start(&authority, DAY, &settings).await else { return };
    let client = Client::new(&mesh.edge_address(), &mesh.bundle("ca.pem", &[&authority]));
    let seen = Arc::<Seen>::default();
    let mut clients = JoinSet::new();
    for _ in 0..2 {
        clients.spawn(client.clone().stream(Arc::clone(&seen)));
        clients.spawn(client.clone().call(Arc::clone(&seen)));
    }
    let begun = Instant::now();
    // Renewed in time, over the end of the first certificates and of connections made with them.
    while begun.elapsed() < LIFE + AGE + GRACE {
        mesh.rotate(&authority, &[&authority], LIFE).await;
        tokio::time::sleep(PAUSE).await;
        let failed = clients.try_join_next();
        assert!(failed.is_none(), "{failed:?}");
    }
    let verdicts = seen.verdicts();
    eventually!(seen.verdicts() > verdicts + 5);
    seen.stop.store(true, Ordering::SeqCst);
    assert_eq!(clients.join_all().await, vec![Ok(()); 4]);
    // Connections did move on: clients' streams, and those between services.
    assert!(seen.drained.load(Ordering::SeqCst) >= 4);
    let ingest = mesh.service("ingest");
    let connects = || ingest.view("classifier")["endpoints"][0]["connects"].as_u64().unwrap();
    assert!(connects() >= 4, "{}", connects());

    // Not renewed: ingest's own certificate ends, and within the bound nobody takes it any more.
    let ending = Duration::from_secs(5);
    mesh.rotate(&authority, &[&authority], ending).await;
    let since = Instant::now();
    let transport = client.connect().await.unwrap();
    client.classify(&transport, u64::MAX).await.unwrap();
    let stats = mesh.service("stats");
    let refused = || stats.metric("mesh_handshakes_total", &[r#"outcome="certificate""#]);
    eventually!(refused() > 0.0 || stats_is_expired(&mesh));
    let bound = ending + AGE.mul_f64(1.1) + GRACE + Duration::from_secs(4);
    assert!(since.elapsed() < bound, "after {:?} it was still taken", since.elapsed());
    eventually!(problem(&mesh).contains("expired"));
    let health = sightline_servers::request(mesh.service("ingest").admin, "GET", "/healthz", "").unwrap();
    assert!(health.body.contains("the mesh certificate has expired and peers refuse it"), "{}", health.body);

    // Renewed at last, all is well again without a restart.
    mesh.rotate(&authority, &[&authority], DAY).await;
    let mut transport = client.connect().await.unwrap();
    let mut number = u64::MAX;
    eventually!({
        number -= 1;
        if !transport.is_open() {
            transport = client.connect().await.unwrap();
        }
        client.classify(&transport, number).await.is_ok()
    });
}

/// What ingest last met at the statistics.
fn problem(mesh: &Mesh) -> String {
    let view = mesh.service("ingest").view("stats");
    view["endpoints"][0]["last_problem"].as_str().unwrap_or_default().to_owned()
}

fn stats_is_expired(mesh: &Mesh) -> bool {
    problem(mesh).contains("expired")
}
