//! Who may be chosen now. Built anew whenever an endpoint's state changes, read by every pick without a lock.

use std::sync::{Arc, atomic::AtomicU64};

use super::Pick;
use crate::client::{
    Balance, Endpoint, EndpointId, MeshOptions, Picked, State,
    balance::{Candidates, least_loaded, ring_hash::Ring, round_robin},
    dice::Dice,
    meters::Pickup,
};

/// Draws of an endpoint before all are looked through: a call that failed on one of several seldom draws it again.
const DRAWS: usize = 4;

/// Endpoints that may be chosen.
#[derive(Debug, Default)]
pub(super) struct View {
    /// Chosen from first: those of the own zone while enough of them are usable, else all.
    preferred: Candidates,
    /// All that may be chosen.
    all: Candidates,
    /// Half-open ones.
    trying: Vec<Arc<Endpoint>>,
    ring: Arc<Ring>,
    /// Too few were ready: `all` has those of last resort too.
    pub(super) panic: bool,
}

/// Who takes a call that is not counted yet.
#[derive(Debug)]
pub(in crate::client) struct Choice {
    endpoint: Arc<Endpoint>,
    /// The call tries it.
    probe: bool,
    panic: bool,
}

impl Choice {
    pub(in crate::client) fn id(&self) -> EndpointId {
        self.endpoint.id()
    }

    /// Counts the call. `None`: the connection just went, or somebody else tries the endpoint.
    pub(super) fn begin(&self) -> Option<Picked> {
        match self.probe {
            true => self.endpoint.begin_probe(),
            false => Some(self.endpoint.begin()).filter(Picked::is_connected),
        }
    }

    /// How a pick ended with it that would have ended so on a ready endpoint.
    pub(super) fn pickup(&self, ready: Pickup) -> Pickup {
        match (self.probe, self.panic) {
            (true, _) => Pickup::Probe,
            (false, true) => Pickup::Panic,
            (false, false) => ready,
        }
    }
}

/// Why nobody was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Nobody is usable.
    Nobody,
    /// Everybody usable has as many calls as it may.
    Full,
}

impl View {
    pub(super) fn new(endpoints: &[Arc<Endpoint>], ring: Arc<Ring>, options: &MeshOptions) -> Self {
        let ready: Vec<Arc<Endpoint>> =
            endpoints.iter().filter(|endpoint| endpoint.state() == State::Ready).cloned().collect();
        let trying =
            endpoints.iter().filter(|endpoint| endpoint.state() == State::HalfOpen).cloned().collect();
        let mut view = Self { ring, trying, ..Self::default() };
        if (ready.len() as f64) < options.panic_below * endpoints.len() as f64 {
            let resort: Vec<Arc<Endpoint>> =
                endpoints.iter().filter(|endpoint| endpoint.is_last_resort()).cloned().collect();
            if resort.len() > ready.len() {
                view.panic = true;
                view.all = Candidates::new(resort.clone());
                view.preferred = Candidates::new(resort);
                return view;
            }
        }
        let own = own_zone(endpoints, &ready, options);
        view.preferred = Candidates::new(own.unwrap_or_else(|| ready.clone()));
        view.all = Candidates::new(ready);
        view
    }

    /// Whether anybody may be chosen.
    pub(super) fn is_usable(&self) -> bool {
        !self.all.is_empty() || !self.trying.is_empty()
    }

    /// Whether the endpoint may still be chosen: its state may have changed since the view was built.
    fn admits(&self, endpoint: &Endpoint) -> bool {
        if self.panic { endpoint.is_last_resort() } else { endpoint.state() == State::Ready }
    }

    /// Chooses, and counts nothing yet: that is for [`Choice::begin`].
    pub(super) fn choose(
        &self,
        pick: Pick<'_>,
        options: &MeshOptions,
        dice: &Dice,
        turn: &AtomicU64,
    ) -> Result<Choice, Refusal> {
        let avoided = |id: EndpointId| pick.avoid.contains(&id);
        let mut trying = self.trying.iter().filter(|endpoint| !avoided(endpoint.id()));
        if let Some(endpoint) = trying.find(|endpoint| endpoint.may_be_tried()) {
            return Ok(Choice { endpoint: Arc::clone(endpoint), probe: true, panic: self.panic });
        }
        let chosen = |endpoint: &Arc<Endpoint>| {
            let choice = || Choice { endpoint: Arc::clone(endpoint), probe: false, panic: self.panic };
            endpoint.is_connected().then(choice)
        };
        let mut full = false;
        let mut fits = |endpoint: &Endpoint| {
            let room = endpoint.in_flight() < options.max_in_flight;
            let admitted = self.admits(endpoint);
            full |= admitted && !room;
            admitted && room
        };
        if options.balance == Balance::RingHash {
            let key = pick.key.unwrap_or_else(|| dice.next());
            let usable =
                |endpoint: &Endpoint| self.admits(endpoint) && endpoint.in_flight() < options.max_in_flight;
            let owner = self
                .ring
                .choose(key, |endpoint| usable(endpoint) && !avoided(endpoint.id()))
                .or_else(|| self.ring.choose(key, usable));
            if let Some(choice) = owner.and_then(chosen) {
                return Ok(choice);
            }
        }
        for _ in 0..DRAWS {
            let drawn = match options.balance {
                Balance::RoundRobin => round_robin::choose(&self.preferred, turn),
                Balance::LeastLoaded | Balance::RingHash => least_loaded::choose(&self.preferred, dice),
            };
            let drawn = drawn.filter(|endpoint| !avoided(endpoint.id()) && fits(endpoint));
            if let Some(choice) = drawn.and_then(chosen) {
                return Ok(choice);
            }
        }
        // Seldom needed: whoever did not fail this call, own zone first, the cheapest first.
        let own = self.preferred.endpoints().iter().map(|endpoint| (false, endpoint));
        let any = self.all.endpoints().iter().map(|endpoint| (true, endpoint));
        let fitting = own.chain(any).filter(|(_, endpoint)| fits(endpoint));
        // Read once: costs change while they are compared.
        let mut rest: Vec<(bool, bool, f64, &Arc<Endpoint>)> =
            fitting.map(|(far, endpoint)| (avoided(endpoint.id()), far, endpoint.load(), endpoint)).collect();
        rest.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)).then(a.2.total_cmp(&b.2)));
        let found = rest.into_iter().find_map(|(.., endpoint)| chosen(endpoint));
        found.ok_or(if full { Refusal::Full } else { Refusal::Nobody })
    }
}

/// The ready endpoints of the own zone, if they are enough of it.
fn own_zone(
    endpoints: &[Arc<Endpoint>],
    ready: &[Arc<Endpoint>],
    options: &MeshOptions,
) -> Option<Vec<Arc<Endpoint>>> {
    let own = options.zone.own.as_ref()?;
    let local = |endpoint: &&Arc<Endpoint>| endpoint.address().zone.as_ref() == Some(own);
    let weight = |of: &[Arc<Endpoint>]| -> u64 {
        of.iter().filter(local).map(|endpoint| u64::from(endpoint.weight())).sum()
    };
    let (usable, whole) = (weight(ready), weight(endpoints));
    let enough = usable > 0 && usable as f64 >= options.zone.stay_above * whole as f64;
    enough.then(|| ready.iter().filter(local).cloned().collect())
}
