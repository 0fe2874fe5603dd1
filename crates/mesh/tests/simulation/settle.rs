//! What is looked at all the time, and whether everything is as before when the trouble is over.

use std::{
    collections::BTreeSet,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use sightline_mesh::client::{EndpointSnapshot, PoolSnapshot, State, StreamsSnapshot};
use tokio::time::{Instant, sleep};

use crate::{
    client::Client,
    ledger::{Kind, Ledger},
    network::SimConnect,
    plan::{MS, Plan},
    replica::Host,
};

/// Everything is healthy and every credit is back this long after the trouble: a dead connection is found (4 s), a restart
/// waits (2 s), an ejection that was doubled is over (3 s), a stream is opened (3 s).
const SETTLED: Duration = Duration::from_secs(20);
/// Connections are closed this long after nobody uses them.
const CLOSED: Duration = Duration::from_secs(8);
/// A server finds out that a client is gone without a word: its keepalive, twice 30 s.
const FOUND_OUT: Duration = Duration::from_secs(65);

/// Writes down the states of all endpoints when they change.
pub async fn watch_states(client: Client) {
    let mut changes = client.cluster.changes();
    loop {
        changes.borrow_and_update();
        let cluster = client.cluster.snapshot();
        for endpoint in &cluster.endpoints {
            client.ledger.state(&endpoint.address, endpoint.state);
        }
        client.ledger.panic(cluster.panic);
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// Looks at both pools' books at every step of the network.
pub async fn watch_books(client: Client, granted: usize, step: Duration) {
    let mut before = Vec::new();
    loop {
        let pools = client.pools.each_ref().map(|pool| pool.snapshot());
        for pool in &pools {
            look(&client.ledger, pool, granted);
        }
        let [first, _] = pools;
        look_at_ejections(&client.ledger, &before, &first.cluster.endpoints);
        before = first.cluster.endpoints;
        sleep(step).await;
    }
}

fn look(ledger: &Ledger, pool: &PoolSnapshot, granted: usize) {
    for streams in &pool.streams {
        let most = granted * (streams.open + streams.leaving);
        if streams.credits > granted * streams.open || streams.credits + streams.unanswered > most {
            ledger.broken(format_args!("more credits than were granted: {streams:?}"));
        }
    }
}

/// Where one was ejected since the last look, no more than half of all are out, or one. Discovery that forgets a healthy
/// one makes the share of the others larger: that is no ejection.
fn look_at_ejections(ledger: &Ledger, before: &[EndpointSnapshot], now: &[EndpointSnapshot]) {
    let is_out = |endpoint: &EndpointSnapshot| endpoint.ejected_for_ms.is_some();
    let same = before.len() == now.len();
    let news = |(before, now): (&EndpointSnapshot, &EndpointSnapshot)| {
        before.address == now.address && before.state == State::Ready && is_out(now)
    };
    let (of, out) = (now.len(), now.iter().filter(|endpoint| is_out(endpoint)).count());
    if same && before.iter().zip(now).any(news) && out > (of / 2).max(1) {
        ledger.broken(format_args!("{out} of {of} replicas are ejected"));
    }
}

/// The endpoints that are healthy, and every credit of every stream to them is back. Not all are so at one moment where
/// connections and streams are replaced all the time.
fn whole(pool: &PoolSnapshot, granted: usize) -> impl Iterator<Item = String> {
    let is_whole = move |(endpoint, streams): &(&EndpointSnapshot, &StreamsSnapshot)| {
        (endpoint.state, endpoint.in_flight) == (State::Ready, 0)
            && (streams.unanswered, streams.leaving) == (0, 0)
            && streams.open > 0
            && streams.credits == streams.open * granted
    };
    let both = pool.cluster.endpoints.iter().zip(&pool.streams).filter(|_| pool.waiting == 0);
    both.filter(is_whole).map(|(endpoint, _)| endpoint.address.clone())
}

/// After the trouble: everything is healthy again within a bound, and then every message is answered.
pub async fn settles(plan: &Plan, client: &Client) {
    let (since, mut seen) = (Instant::now(), BTreeSet::new());
    for round in 0.. {
        // Who was ejected waits for a message that tries it.
        let [first, second] = [Kind::Repeatable, Kind::Once]
            .map(|kind| client.send(format!("after-{round}-{kind:?}"), kind, 1000 * MS, None));
        tokio::join!(first, second);
        sleep(10 * MS).await;
        let pools = client.pools.each_ref().map(|pool| pool.snapshot());
        for (number, pool) in pools.iter().enumerate() {
            seen.extend(whole(pool, plan.credits as usize).map(|address| (number, address)));
        }
        if seen.len() == pools.len() * plan.replicas.len() {
            break;
        }
        if since.elapsed() > SETTLED {
            let how = format!("it is not whole again after {SETTLED:?}, only {seen:?}: {pools:#?}");
            return client.ledger.broken(format_args!("{how}"));
        }
    }
    for n in 0..5 {
        for kind in Kind::ALL {
            if !client.send(format!("last-{n}-{kind:?}"), kind, 5000 * MS, None).await {
                client.ledger.broken(format_args!("last-{n}-{kind:?} failed without any trouble"));
            }
        }
    }
}

/// The client has let go of everything.
pub async fn nothing_is_left(plan: &Plan, connect: &SimConnect, hosts: &[Arc<Host>], ledger: &Ledger) {
    let since = Instant::now();
    while turmoil::established_tcp_stream_count() > connect.failed() {
        if since.elapsed() > CLOSED {
            let open = turmoil::established_tcp_stream_count() - connect.failed();
            return ledger.broken(format_args!("{open} connections are left"));
        }
        sleep(10 * MS).await;
    }
    if !plan.patient {
        return;
    }
    sleep(FOUND_OUT).await;
    for host in hosts {
        let (streams, sockets) = (
            host.script.open.load(Ordering::SeqCst),
            turmoil::established_tcp_stream_count_on(host.name.as_str()),
        );
        if (streams, sockets) != (0, 0) {
            ledger
                .broken(format_args!("{}: {streams} streams and {sockets} connections are left", host.name));
        }
    }
}
