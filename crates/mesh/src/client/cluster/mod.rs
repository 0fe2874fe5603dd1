//! The replicas of one service, and which of them takes the next call.

mod follow;
mod shared;
#[cfg(test)]
mod tests;
mod view;

use std::{
    fmt,
    sync::{Arc, atomic::Ordering},
};

use serde::Serialize;
pub(super) use shared::Shared;
use sightline_telemetry::trace::{TRACEPARENT, traceparent};
use tokio::{sync::watch, time::Instant};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Code, Request};
pub(super) use view::Choice;
use view::Refusal;

use super::{ClusterOptions, Endpoint, EndpointId, EndpointSnapshot, Picked, meters::Pickup};
use crate::{Deadline, RpcError, reason};

/// The endpoints of a cluster; a new list whenever discovery's set changes.
pub type EndpointList = Arc<[Arc<Endpoint>]>;

/// What is asked of [`Cluster::pick`].
#[derive(Debug, Clone, Copy)]
pub struct Pick<'a> {
    /// Until when somebody waits.
    pub deadline: Deadline,
    /// What calls that belong on the same replica have in common, for the policy `ring_hash`; without it any will do.
    pub key: Option<u64>,
    /// Endpoints that failed this call before: taken only if there is no other.
    pub avoid: &'a [EndpointId],
}

impl Pick<'_> {
    /// By deadline alone.
    pub fn until(deadline: Deadline) -> Self {
        Self { deadline, key: None, avoid: &[] }
    }
}

/// The replicas of one service. Cheap to clone. When the last clone is dropped, what is in flight ends and connections
/// close.
#[derive(Clone)]
pub struct Cluster {
    shared: Arc<Shared>,
    _stop: Arc<DropGuard>,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoints = self.shared.endpoints.borrow().len();
        write!(f, "Cluster({}, {endpoints} endpoints)", self.shared.options.service)
    }
}

impl Cluster {
    /// Begins to discover and to connect, on the current tokio runtime.
    pub fn start(options: ClusterOptions) -> Self {
        let stop = CancellationToken::new();
        let report = options.report.clone();
        let shared = Arc::new(Shared::new(options));
        tokio::spawn(follow::follow(Arc::clone(&shared), stop.clone()));
        if let Some((dependency, without)) = report {
            let reporting = follow::report(Arc::clone(&shared), dependency, without);
            let stop = stop.clone();
            tokio::spawn(async move { stop.run_until_cancelled(reporting).await });
        }
        Self { shared, _stop: Arc::new(stop.drop_guard()) }
    }

    /// The service's name, for messages and metrics.
    pub fn service(&self) -> &'static str {
        self.shared.options.service
    }

    /// Chooses an endpoint and counts a call on it. Waits for one within the patience where none is usable.
    ///
    /// # Errors
    /// `UNAVAILABLE` naming the service and the last problem: after the patience, or at once while the gate is shut.
    /// `RESOURCE_EXHAUSTED` when every usable endpoint has its most calls in flight. `DEADLINE_EXCEEDED`.
    pub async fn pick(&self, pick: Pick<'_>) -> Result<Picked, RpcError> {
        loop {
            let (choice, ready) = self.choose(pick).await?;
            // Who is gone meanwhile, or is tried by another, is not chosen again.
            if let Some(picked) = self.begin(&choice, ready) {
                return Ok(picked);
            }
        }
    }

    /// The same without waiting; `None` where none is usable or all are full.
    pub fn try_pick(&self, pick: Pick<'_>) -> Option<Picked> {
        loop {
            let choice = self.peek(pick)?;
            if let Some(picked) = self.begin(&choice, Pickup::AtOnce) {
                return Some(picked);
            }
        }
    }

    /// Chooses as [`Cluster::pick`] does, without counting a call: for who needs more than an endpoint before it begins.
    /// Says how that pick ends, if the endpoint is a ready one.
    ///
    /// # Errors
    /// As [`Cluster::pick`]; those are counted.
    pub(super) async fn choose(&self, pick: Pick<'_>) -> Result<(Choice, Pickup), RpcError> {
        match self.look(pick) {
            Ok(choice) => Ok((choice, Pickup::AtOnce)),
            Err(Refusal::Full) => Err(self.full()),
            Err(Refusal::Nobody) => Ok((self.wait(pick).await?, Pickup::Waited)),
        }
    }

    /// The same without waiting; counts nothing at all.
    pub(super) fn peek(&self, pick: Pick<'_>) -> Option<Choice> {
        self.look(pick).ok()
    }

    fn look(&self, pick: Pick<'_>) -> Result<Choice, Refusal> {
        let shared = &self.shared;
        shared.view.load().choose(pick, &shared.options.mesh, &shared.dice, &shared.turn)
    }

    /// Counts a call on who was chosen. `None`: the endpoint takes it no longer.
    pub(super) fn begin(&self, choice: &Choice, ready: Pickup) -> Option<Picked> {
        let picked = choice.begin()?;
        self.shared.meters.picked(choice.pickup(ready));
        Some(picked)
    }

    /// Counts how a choice ended that was made elsewhere: by the credits of a stream pool.
    pub(super) fn count(&self, how: Pickup) {
        self.shared.meters.picked(how);
    }

    async fn wait(&self, pick: Pick<'_>) -> Result<Choice, RpcError> {
        let shared = &self.shared;
        let Some(_place) = Place::take(shared) else { return Err(self.full()) };
        let mut changed = shared.changed.subscribe();
        let patient = Deadline::after(shared.options.mesh.patience).min(pick.deadline);
        loop {
            changed.borrow_and_update();
            match self.look(pick) {
                Ok(choice) => return Ok(choice),
                Err(Refusal::Full) => return Err(self.full()),
                Err(Refusal::Nobody) => {}
            }
            let shuts = shared.gate_shuts();
            let until = shuts.map_or(patient.instant(), |shuts| shuts.min(patient.instant()));
            if tokio::time::timeout_at(until, changed.changed()).await.is_err() {
                return Err(self.nobody(pick.deadline, shuts));
            }
        }
    }

    fn nobody(&self, deadline: Deadline, shuts: Option<Instant>) -> RpcError {
        let (service, shared) = (self.service(), &self.shared);
        let shut = shuts.is_some_and(|shuts| shuts <= Instant::now());
        if deadline.passed() && !shut {
            shared.meters.picked(Pickup::TimedOut);
            return RpcError::deadline(&format!("waiting for a replica of {service}"));
        }
        shared.meters.picked(if shut { Pickup::FailFast } else { Pickup::TimedOut });
        RpcError::unavailable(format!("no replica of {service} can be used: {}", shared.last_problem()))
    }

    fn full(&self) -> RpcError {
        self.shared.meters.picked(Pickup::Full);
        let (service, mesh) = (self.service(), &self.shared.options.mesh);
        let message = format!(
            "every usable replica of {service} has max_in_flight = {} calls, or max_waiting = {} wait for one",
            mesh.max_in_flight, mesh.max_waiting
        );
        RpcError::new(Code::ResourceExhausted, reason::CLIENT_OVERLOADED, message)
    }

    /// The endpoints, and each new list of them. An endpoint's own state is in [`Endpoint::states`].
    pub fn endpoints(&self) -> watch::Receiver<EndpointList> {
        self.shared.endpoints.subscribe()
    }

    /// Changes whenever an endpoint's state or the list does.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    /// How everything is now, for `mesh top`.
    pub fn snapshot(&self) -> ClusterSnapshot {
        let (endpoints, now) = (self.shared.endpoints.borrow().clone(), Instant::now());
        let view = self.shared.view.load();
        ClusterSnapshot {
            service: self.service(),
            discovery: self.shared.options.discover.describe(),
            usable: view.is_usable(),
            panic: view.panic,
            failing_fast: self.shared.gate_shuts().is_some_and(|shuts| shuts <= now),
            last_problem: self.shared.last_problem(),
            endpoints: endpoints.iter().map(|endpoint| endpoint.snapshot(now)).collect(),
        }
    }

    /// A request that carries this process's metadata, and the current trace where it is kept.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        for (key, value) in &self.shared.options.metadata {
            request.metadata_mut().insert(key.clone(), value.clone());
        }
        let trace = Some(traceparent()).filter(|text| !text.is_empty());
        if let Some(value) = trace.and_then(|text| text.parse().ok()) {
            request.metadata_mut().insert(TRACEPARENT, value);
        }
        request
    }
}

/// A place among those that wait.
struct Place<'a>(&'a Shared);

impl<'a> Place<'a> {
    fn take(shared: &'a Shared) -> Option<Self> {
        let place = Self(shared);
        let before = shared.waiting.fetch_add(1, Ordering::Relaxed);
        (before < shared.options.mesh.max_waiting).then_some(place)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A cluster at one moment.
#[derive(Debug, Clone, Serialize)]
pub struct ClusterSnapshot {
    /// The service's name.
    pub service: &'static str,
    /// Where its replicas are asked for.
    pub discovery: String,
    /// Whether a call would find a replica.
    pub usable: bool,
    /// Too few replicas are usable: those of last resort are used too.
    pub panic: bool,
    /// None was usable for so long that calls fail at once.
    pub failing_fast: bool,
    /// What went wrong last.
    pub last_problem: String,
    /// Each replica.
    pub endpoints: Vec<EndpointSnapshot>,
}
