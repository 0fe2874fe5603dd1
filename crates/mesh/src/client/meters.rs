//! What a cluster counts. No address is a label: replicas come and go without end, series of them would too. Who wants one
//! replica's figures takes a [`super::ClusterSnapshot`].

use metrics::{Counter, Gauge, counter, describe_counter, describe_gauge, gauge};

use super::{Endpoint, State, transport::Ended};

/// How a pick ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pickup {
    /// An endpoint was there.
    AtOnce,
    /// One was waited for.
    Waited,
    /// The call tries a half-open endpoint.
    Probe,
    /// Too few endpoints were usable; any connected one was taken.
    Panic,
    /// The gate was shut.
    FailFast,
    /// None came in time.
    TimedOut,
    /// All were full, or too many waited.
    Full,
}

const PICKUPS: [(Pickup, &str); 7] = [
    (Pickup::AtOnce, "at_once"),
    (Pickup::Waited, "waited"),
    (Pickup::Probe, "probe"),
    (Pickup::Panic, "panic"),
    (Pickup::FailFast, "failfast"),
    (Pickup::TimedOut, "timed_out"),
    (Pickup::Full, "full"),
];

/// A cluster's metrics.
pub(super) struct Meters {
    picks: [Counter; PICKUPS.len()],
    endpoints: [Gauge; State::ALL.len()],
    ejections: Counter,
    discovery_errors: Counter,
    connects: Counter,
    connections: Gauge,
    ended: [Counter; 2],
}

impl Meters {
    pub(super) fn new(service: &'static str) -> Self {
        describe();
        Self {
            picks: PICKUPS.map(|(_, how)| counter!("mesh_picks_total", "service" => service, "how" => how)),
            endpoints: State::ALL
                .map(|state| gauge!("mesh_endpoints", "service" => service, "state" => state.name())),
            ejections: counter!("mesh_ejections_total", "service" => service),
            discovery_errors: counter!("mesh_discovery_errors_total", "service" => service),
            connects: counter!("mesh_connects_total", "service" => service),
            connections: gauge!("mesh_connections", "service" => service),
            ended: ["goaway", "broken"]
                .map(|why| counter!("mesh_connections_ended_total", "service" => service, "why" => why)),
        }
    }

    pub(super) fn picked(&self, how: Pickup) {
        self.picks[how as usize].increment(1);
    }

    pub(super) fn ejected(&self) {
        self.ejections.increment(1);
    }

    pub(super) fn discovery_failed(&self) {
        self.discovery_errors.increment(1);
    }

    /// A connection was made. It is counted as one that takes calls until what this returns is dropped.
    pub(super) fn connected(&self) -> Connected<'_> {
        self.connects.increment(1);
        self.connections.increment(1);
        Connected(&self.connections)
    }

    /// The peer closed a connection, or it broke.
    pub(super) fn disconnected(&self, ended: &Ended) {
        self.ended[usize::from(matches!(ended, Ended::Closed(_)))].increment(1);
    }

    /// How many endpoints are in which state.
    pub(super) fn states<'a>(&self, endpoints: impl Iterator<Item = &'a Endpoint>) {
        let mut counts = [0_u32; State::ALL.len()];
        for endpoint in endpoints {
            counts[endpoint.state() as usize] += 1;
        }
        for (gauge, count) in self.endpoints.iter().zip(counts) {
            gauge.set(count);
        }
    }
}

/// A connection that is counted, also where whoever uses it is dropped with it.
#[derive(Debug)]
pub(super) struct Connected<'a>(&'a Gauge);

impl Drop for Connected<'_> {
    fn drop(&mut self) {
        self.0.decrement(1);
    }
}

fn describe() {
    describe_counter!("mesh_picks_total", "Choices of a replica for a call, by how they ended");
    describe_gauge!("mesh_endpoints", "Replicas of a called service, by state");
    describe_counter!("mesh_ejections_total", "Replicas that were turned away for a while");
    describe_counter!("mesh_discovery_errors_total", "Answers of discovery that failed or named nobody");
    describe_counter!("mesh_connects_total", "Connections to replicas that were made");
    describe_gauge!("mesh_connections", "Connections to replicas that take calls");
    describe_counter!(
        "mesh_connections_ended_total",
        "Connections that the peer closed (goaway) or that broke"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_in_the_order_of_their_enums() {
        assert!(State::ALL.iter().enumerate().all(|(n, state)| *state as usize == n));
        assert!(PICKUPS.iter().enumerate().all(|(n, (how, _))| *how as usize == n));
    }
}
