//! An endpoint at one moment.

use serde::Serialize;
use tokio::time::Instant;

use super::{Endpoint, State};
use crate::client::breaker::Phase;

impl Endpoint {
    pub(in crate::client) fn snapshot(&self, now: Instant) -> EndpointSnapshot {
        let (rtt, reported, load) = {
            let meter = self.meter();
            let load = meter.cost(self.in_flight(), self.weight(), now);
            (meter.faded(now), meter.reported(now), load)
        };
        let inner = self.inner();
        EndpointSnapshot {
            address: self.address.authority.clone(),
            zone: self.address.zone.clone(),
            weight: self.weight(),
            state: inner.state(),
            in_flight: self.in_flight(),
            ewma_ms: rtt.map(|rtt| rtt * 1e3),
            cost: load,
            queue_delay_ms: reported.map(|load| load.queue_delay.as_secs_f64() * 1e3),
            occupancy: reported.map(|load| load.occupancy),
            ejections: inner.breaker.repeats(),
            ejected_for_ms: match inner.breaker.phase() {
                Phase::Open { until } => Some(until.saturating_duration_since(now).as_millis() as u64),
                _ => None,
            },
            connects: inner.connects,
            last_problem: inner.problem.clone(),
        }
    }
}

/// An endpoint at one moment.
#[derive(Debug, Clone, Serialize)]
pub struct EndpointSnapshot {
    /// `host:port`.
    pub address: String,
    /// Where it runs, if that is known.
    pub zone: Option<String>,
    /// Its share next to others.
    pub weight: u32,
    /// Where it is in its life.
    pub state: State,
    /// Calls and messages begun and not done.
    pub in_flight: usize,
    /// The estimated latency, faded; none before the first answer on this connection.
    pub ewma_ms: Option<f64>,
    /// What one more call is taken to cost.
    pub cost: f64,
    /// What the server last said of its queue, while it is fresh.
    pub queue_delay_ms: Option<f64>,
    /// What the server last said of how busy it is: 0 to 1.
    pub occupancy: Option<f32>,
    /// Ejections that are not forgiven yet.
    pub ejections: u32,
    /// How long it stays ejected.
    pub ejected_for_ms: Option<u64>,
    /// Connections made since discovery named it.
    pub connects: u64,
    /// What went wrong last: an address, a code or an error of the network, nothing that a caller sent.
    pub last_problem: Option<String>,
}
