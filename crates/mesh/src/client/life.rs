//! What drives one endpoint: it connects, follows the server's health, connects again, and ends.

use std::{convert::Infallible, sync::Arc};

use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::{
    Endpoint, State, Transport,
    backoff::Backoff,
    cluster::Shared,
    health,
    transport::{Connection, Ended},
};

/// Keepalive pings are not spread further apart than 2⁸ times the configured interval.
const CALMEST: u32 = 8;

/// Keeps `endpoint` connected until discovery drops it (`removed`), then lets its calls end within their bound.
pub(super) async fn drive(shared: Arc<Shared>, endpoint: Arc<Endpoint>, removed: CancellationToken) {
    // All that are open: one that the server wants closed finishes its calls beside the one that took its place.
    let mut open = Vec::new();
    removed.run_until_cancelled(connect_forever(&shared, &endpoint, &mut open)).await;
    endpoint.remove();
    let finished = async {
        while endpoint.in_flight() > 0 {
            endpoint.woken().await;
        }
        // Streams that nobody counts may go on: the connection closes with the last of them.
        endpoint.release();
        for connection in &open {
            connection.gone().await;
        }
    };
    let bound = shared.options.mesh.removal_timeout;
    if timeout(bound, finished).await.is_err() {
        let (service, address) = (shared.options.service, &endpoint.address().authority);
        warn!(service, address, "calls on a removed replica are cut after {bound:?}");
        open.iter().for_each(Connection::cut);
    }
}

async fn connect_forever(shared: &Shared, endpoint: &Endpoint, open: &mut Vec<Connection>) -> Infallible {
    let (service, address) = (shared.options.service, endpoint.address().authority.as_str());
    let mut backoff = Backoff::new(shared.options.mesh.reconnect.clone());
    let mut options = shared.options.mesh.transport.clone();
    let longest = options.keepalive_interval * (1 << CALMEST);
    loop {
        endpoint.connecting();
        let connecting = Transport::connect(&*shared.options.connect, endpoint.address(), &options);
        let pause = match connecting.await {
            Err(status) => {
                debug!(service, address, "cannot connect: {}", status.message());
                shared.failed(endpoint, format!("cannot connect: {}", status.message()));
                backoff.failed(&endpoint.dice)
            }
            Ok(transport) => {
                let since = Instant::now();
                debug!(service, address, "connected");
                open.retain(|connection| !connection.is_gone());
                open.push(transport.connection());
                let counted = shared.meters.connected();
                let ended = use_up(shared, endpoint, &transport).await;
                drop(counted);
                shared.meters.disconnected(&ended);
                info!(service, address, "{ended}");
                if ended.asks_for_calm() {
                    options.keepalive_interval = (options.keepalive_interval * 2).min(longest);
                }
                shared.failed(endpoint, ended.to_string());
                backoff.broke(since.elapsed(), &endpoint.dice)
            }
        };
        sleep(pause).await;
    }
}

/// One connection's time.
async fn use_up(shared: &Shared, endpoint: &Endpoint, transport: &Transport) -> Ended {
    let options = &shared.options.mesh.health;
    endpoint.connected(transport.clone());
    let watched = health::watch(transport, options, &endpoint.dice, |said| {
        if let Err(problem) = &said {
            shared.problem(endpoint, problem);
        }
        endpoint.heard(said);
        if endpoint.state() == State::NotServing {
            shared.options.discover.hurry();
        }
    });
    tokio::select! {
        ended = transport.ended() => ended,
        never = watched => match never {},
        never = probation(shared, endpoint, transport) => match never {},
    }
}

/// When an ejection's time is over, the server's health decides whether a call may try it.
async fn probation(shared: &Shared, endpoint: &Endpoint, transport: &Transport) -> Infallible {
    let options = &shared.options.mesh.health;
    loop {
        let Some(until) = endpoint.ejected_until() else {
            endpoint.woken().await;
            continue;
        };
        sleep_until(until).await;
        endpoint.probation(health::check(transport, options).await);
    }
}
