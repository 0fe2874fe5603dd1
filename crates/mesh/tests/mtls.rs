//! The mesh layer's own client and server over mutual TLS.

#![allow(clippy::unwrap_used)] // helpers of tests: a panic is a failed test

mod certs;
mod secret;

use std::{sync::Arc, time::Duration};

use certs::{Authority, DAY};
use secret::Secret;
use sightline_mesh::{
    Deadline,
    client::{Address, Cluster, ClusterOptions, Fixed, Pick},
    identity::{Acceptor, AllowList, Connector, HandshakeLimits, Identity},
    server::{Lifecycle, Options, Server, bind},
};
use tonic::service::Routes;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

const INGEST: &str = "spiffe://mesh.example/ns/prod/sa/ingest";
const STATS: &str = "spiffe://mesh.example/ns/prod/sa/stats";
const LIMITS: HandshakeLimits = HandshakeLimits { timeout: Duration::from_secs(5), at_once: 64 };

/// Calls the server at `authority` as whoever `caller` is.
async fn check(caller: &Arc<Identity>, authority: &str) -> Result<i32, String> {
    let expected = AllowList::new("tls.servers.stats", &[STATS]).unwrap();
    let connector = Connector::mutual(caller, Some(expected), LIMITS.timeout).unwrap();
    let mut options = ClusterOptions::new("stats", Fixed::new(vec![Address::new(authority).unwrap()]));
    options.connect = Arc::new(connector);
    let cluster = Cluster::start(options);
    let deadline = Deadline::after(Duration::from_secs(5));
    let pick = Pick { deadline, key: None, avoid: &[] };
    let picked = cluster.pick(pick).await.map_err(|error| error.to_string())?;
    let transport = picked.transport().ok_or("the connection is gone")?;
    let answer = HealthClient::new(transport).check(HealthCheckRequest::default()).await;
    answer.map(|answer| answer.into_inner().status).map_err(|status| status.to_string())
}

#[tokio::test]
async fn a_cluster_calls_a_server_that_knows_it_and_no_other() {
    let authority = Authority::new("mesh");
    let identity = |id: &str| {
        let secret = Secret::new(authority.issue(&[id], DAY), &[&authority]);
        Identity::load("mesh", secret.files()).unwrap()
    };
    let callers = AllowList::new("tls.callers.stats", &[INGEST]).unwrap();
    let acceptor = Acceptor::mutual("stats", &identity(STATS), callers, LIMITS).unwrap();
    let listener = bind("stats.listen", ([127, 0, 0, 1], 0).into()).await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let server = Server {
        name: "stats",
        listener,
        routes: Routes::default(),
        service_names: Vec::new(),
        web: None,
        drain_timeout: Duration::from_secs(1),
    };
    let lifecycle = Lifecycle::default();
    let options = Options { accept: Arc::new(acceptor), ..Options::default() };
    let serving = tokio::spawn(server.run_with(lifecycle.clone(), options));

    assert_eq!(check(&identity(INGEST), &address).await, Ok(1));
    assert!(check(&identity(STATS), &address).await.is_err());
    lifecycle.drain();
    serving.await.unwrap().unwrap();
}
