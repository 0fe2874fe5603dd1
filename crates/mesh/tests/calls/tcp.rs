//! Replicas on real sockets, one of which dies and comes back under load.

use std::{
    net::{SocketAddr, TcpListener},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use sightline_mesh::client::{CallOptions, Channel, Cluster, ClusterOptions, Fixed, MethodPolicy};
use tokio::{runtime::Runtime, time::Instant};
use tonic::transport::server::TcpIncoming;

use crate::echo::{SAFE, one, policies, router, unary, within};

/// A replica in a runtime of its own: shutting that down closes its sockets with whatever is in flight on them.
struct Replica {
    runtime: Runtime,
    calls: Arc<AtomicUsize>,
}

impl Replica {
    fn start(listener: TcpListener) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let (router, calls) = router(|_| async {
            tokio::time::sleep(Duration::from_millis(5)).await;
            one("done")
        });
        listener.set_nonblocking(true).unwrap();
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            router.serve_with_incoming(TcpIncoming::from(listener)).await.unwrap();
        });
        Self { runtime, calls }
    }

    fn kill(self) {
        self.runtime.shutdown_background();
    }
}

/// The same port again: the old socket may take a moment to go.
async fn bind(address: SocketAddr) -> TcpListener {
    loop {
        match TcpListener::bind(address) {
            Ok(listener) => return listener,
            Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn safe_calls_do_not_notice_that_a_replica_dies_and_comes_back() {
    let listeners: Vec<_> = (0..3).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    let addresses: Vec<SocketAddr> =
        listeners.iter().map(|listener| listener.local_addr().unwrap()).collect();
    let mut replicas: Vec<_> = listeners.into_iter().map(Replica::start).collect();
    let uris: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let cluster = Cluster::start(ClusterOptions::new("echo", Fixed::from_uris("echo", &uris).unwrap()));
    let channel = Channel::new(cluster, &policies(MethodPolicy::idempotent()), CallOptions::default());

    let end = Instant::now() + Duration::from_millis(2_500);
    let callers: Vec<_> = (0..20)
        .map(|_| {
            let channel = channel.clone();
            tokio::spawn(async move {
                let mut answers = Vec::new();
                while Instant::now() < end {
                    answers.push(unary(&channel, SAFE, within(Duration::from_secs(5))).await);
                }
                answers
            })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let dead = replicas.remove(0);
    let before = dead.calls.load(Ordering::Relaxed);
    dead.kill();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let back = Replica::start(bind(addresses[0]).await);

    let mut answers = Vec::new();
    for caller in callers {
        answers.extend(caller.await.unwrap());
    }
    let failed: Vec<_> = answers.iter().filter_map(|answer| answer.as_ref().err()).collect();
    assert!(failed.is_empty(), "{} of {}: {:?}", failed.len(), answers.len(), failed[0]);
    assert!(before > 10 && answers.len() > 500, "{before} calls at the first, {} in all", answers.len());
    assert!(back.calls.load(Ordering::Relaxed) > 10, "used again");
    replicas.into_iter().chain([back]).for_each(Replica::kill);
}
