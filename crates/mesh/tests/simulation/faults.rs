//! What can go wrong, and how it is made to.

use std::{sync::Arc, sync::atomic::Ordering, time::Duration};

use turmoil::Sim;

use crate::replica::Host;

/// The client's host.
pub const CLIENT: &str = "client";

/// Something that happens at one moment. The number is a replica's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fault {
    Nothing,
    /// The process dies; its host closes its connections.
    Kill(usize),
    /// The host dies: nobody hears of it.
    PowerOff(usize),
    /// What died starts again.
    Start(usize),
    /// The process stops as it should, and another takes its place.
    Drain(usize),
    /// Its streams are told to go elsewhere, its connections stay.
    Notice(usize),
    /// An answer takes so many milliseconds.
    Slow(usize, u64),
    Fast(usize),
    /// It refuses everything for lack of room.
    Full(usize, bool),
    /// It ends streams instead of answering.
    Breaks(usize, bool),
    /// Its health says so.
    Healthy(usize, bool),
    /// Discovery finds it.
    Named(usize, bool),
    /// Nothing passes between it and the client.
    Partition(usize),
    /// The same in one direction: what the client sends.
    PartitionTo(usize),
    /// What the client is sent.
    PartitionFrom(usize),
    /// Everything passes again; what was lost stays lost.
    Mend(usize),
    /// Nothing arrives …
    Hold(usize),
    /// … and then all of it at once.
    Release(usize),
    /// A packet takes at most so long.
    Latency(usize, Duration),
    /// So large a share of all packets breaks its link, for a while.
    Loss(f64),
}

impl Fault {
    pub fn happen(self, sim: &mut Sim<'_>, hosts: &[Arc<Host>]) {
        let name = |host: usize| hosts[host].name.as_str();
        let script = |host: usize| &hosts[host].script;
        match self {
            Self::Nothing => {}
            Self::Kill(host) => sim.crash(name(host)),
            Self::PowerOff(host) => {
                sim.partition(CLIENT, name(host));
                sim.crash(name(host));
            }
            Self::Start(host) => {
                sim.repair(CLIENT, name(host));
                sim.bounce(name(host));
            }
            Self::Drain(host) => hosts[host].drain(),
            Self::Notice(host) => script(host).drain.notify_waiters(),
            Self::Slow(host, delay) => script(host).delay_ms.store(delay, Ordering::SeqCst),
            Self::Fast(host) => hosts[host].fast(),
            Self::Full(host, full) => script(host).full.store(full, Ordering::SeqCst),
            Self::Breaks(host, breaks) => script(host).breaks.store(breaks, Ordering::SeqCst),
            Self::Healthy(host, healthy) => hosts[host].healthy(healthy),
            Self::Named(host, named) => hosts[host].named(named),
            Self::Partition(host) => sim.partition(CLIENT, name(host)),
            Self::PartitionTo(host) => sim.partition_oneway(CLIENT, name(host)),
            Self::PartitionFrom(host) => sim.partition_oneway(name(host), CLIENT),
            Self::Mend(host) => sim.repair(CLIENT, name(host)),
            Self::Hold(host) => sim.hold(CLIENT, name(host)),
            Self::Release(host) => sim.release(CLIENT, name(host)),
            Self::Latency(host, longest) => sim.set_link_max_message_latency(CLIENT, name(host), longest),
            Self::Loss(rate) => sim.set_fail_rate(rate),
        }
    }
}

/// The trouble is over: everything runs, and everything passes.
pub fn end(sim: &mut Sim<'_>, hosts: &[Arc<Host>], latency: Duration) {
    sim.set_fail_rate(0.0);
    for (number, host) in hosts.iter().enumerate() {
        if !sim.is_host_running(host.name.as_str()) {
            Fault::Start(number).happen(sim, hosts);
        }
        for fault in [
            Fault::Mend(number),
            Fault::Release(number),
            Fault::Latency(number, latency),
            Fault::Fast(number),
            Fault::Full(number, false),
            Fault::Breaks(number, false),
            Fault::Healthy(number, true),
            Fault::Named(number, true),
        ] {
            fault.happen(sim, hosts);
        }
    }
}
