//! Keeps the endpoints in step with discovery, and says how they are.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use sightline_telemetry::dependencies::{Condition, Dependency};
use tokio::time::{Instant, timeout_at};
use tokio_stream::StreamExt;
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::{debug, info, warn};

use super::shared::Shared;
use crate::client::{Address, Endpoint, State, Without, life};

/// How long a process that starts may connect before that is worth saying.
const START: Duration = Duration::from_secs(3);

/// Authority and zone: a weight may change without a new connection.
type Name = (String, Option<String>);

/// Endpoints and what ends each. In order, so that a simulation repeats itself.
type Running = BTreeMap<Name, (Arc<Endpoint>, DropGuard)>;

/// Follows discovery until the cluster is dropped.
pub(super) async fn follow(shared: Arc<Shared>, stop: CancellationToken) {
    let mut sets = shared.options.discover.watch();
    let mut running = Running::new();
    let service = shared.options.service;
    while let Some(Some(answer)) = stop.run_until_cancelled(sets.next()).await {
        match answer {
            Ok(set) if set.is_empty() => {
                warn!(service, "discovery found nobody; the last replicas stay");
                shared.set_problem(format!("{} found nobody", shared.options.discover.describe()));
                shared.meters.discovery_failed();
            }
            Ok(set) => adopt(&shared, &mut running, set, &stop),
            Err(error) => {
                debug!(service, "discovery failed: {error}");
                shared.set_problem(error.to_string());
                shared.meters.discovery_failed();
            }
        }
    }
    // A list that has ended stays as it is. Dropping the guards ends the endpoints.
    stop.cancelled().await;
}

fn adopt(shared: &Arc<Shared>, running: &mut Running, set: Vec<Address>, stop: &CancellationToken) {
    let (service, most) = (shared.options.service, shared.options.mesh.max_endpoints);
    let mut wanted: BTreeMap<Name, Address> =
        set.into_iter().map(|address| ((address.authority.clone(), address.zone.clone()), address)).collect();
    while wanted.len() > most {
        wanted.pop_last();
        if wanted.len() == most {
            warn!(service, "discovery found more than {most} replicas; the last by address are not used");
        }
    }
    let before = running.len();
    running.retain(|name, _| wanted.contains_key(name));
    let gone = before - running.len();
    let mut list = Vec::with_capacity(wanted.len());
    let mut news = gone > 0;
    for (name, address) in wanted {
        let weight = address.weight;
        let (endpoint, _) = running.entry(name).or_insert_with(|| {
            news = true;
            start(shared, address, stop)
        });
        news |= endpoint.set_weight(weight);
        list.push(Arc::clone(endpoint));
    }
    // Most answers of a discovery that asks again and again say nothing new.
    if news {
        info!(service, replicas = list.len(), gone, "replicas found");
        shared.replace(list.into());
    }
}

fn start(shared: &Arc<Shared>, address: Address, stop: &CancellationToken) -> (Arc<Endpoint>, DropGuard) {
    let (dice, owner) = (Arc::clone(&shared.dice), Arc::downgrade(shared));
    let endpoint = Arc::new(Endpoint::new(address, &shared.options.mesh, dice, owner));
    let removed = stop.child_token();
    tokio::spawn(life::drive(Arc::clone(shared), Arc::clone(&endpoint), removed.clone()));
    (endpoint, removed.drop_guard())
}

/// Says how many endpoints are usable whenever that changes.
pub(super) async fn report(shared: Arc<Shared>, dependency: Dependency, without: Without) {
    let mut changed = shared.changed.subscribe();
    let patient_until = Instant::now() + START;
    loop {
        let endpoints = shared.endpoints.borrow().clone();
        // A half-open one takes the next call.
        let usable = |state| matches!(state, State::Ready | State::HalfOpen);
        let ready = endpoints.iter().filter(|endpoint| usable(endpoint.state())).count();
        let all = ready == endpoints.len() && ready > 0;
        if all || Instant::now() >= patient_until {
            dependency.report(condition(ready, endpoints.len(), without, &shared.last_problem()));
            if changed.changed().await.is_err() {
                return;
            }
        } else {
            timeout_at(patient_until, changed.changed()).await.ok();
        }
    }
}

fn condition(ready: usize, of: usize, without: Without, problem: &str) -> Condition {
    match (ready, without) {
        (0, Without::Fails) => Condition::Down(format!("no replica can be used: {problem}")),
        (0, Without::GoesOn) => Condition::Degraded(format!("no replica can be used: {problem}")),
        (ready, _) if ready >= of => Condition::Healthy,
        _ => Condition::Degraded(format!("{ready} of {of} replicas can be used: {problem}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_without_replicas_is_down_or_missed() {
        assert_eq!(condition(2, 2, Without::Fails, ""), Condition::Healthy);
        let some = Condition::Degraded("1 of 2 replicas can be used: refused".into());
        assert_eq!(condition(1, 2, Without::Fails, "refused"), some);
        let down = Condition::Down("no replica can be used: refused".into());
        assert_eq!(condition(0, 2, Without::Fails, "refused"), down);
        let missed = Condition::Degraded("no replica can be used: refused".into());
        assert_eq!(condition(0, 0, Without::GoesOn, "refused"), missed);
    }
}
