//! What the parts of a cluster have in common.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, AtomicUsize},
};

use arc_swap::ArcSwap;
use tokio::{sync::watch, time::Instant};
use tracing::warn;

use super::{EndpointList, view::View};
use crate::client::{
    ClusterOptions, Endpoint, State, balance::ring_hash::Ring, dice::Dice, gate::Gate, meters::Meters,
};

/// The state of one cluster.
pub(in crate::client) struct Shared {
    pub(in crate::client) options: ClusterOptions,
    pub(in crate::client) meters: Meters,
    pub(super) dice: Arc<Dice>,
    pub(super) endpoints: watch::Sender<EndpointList>,
    pub(super) view: ArcSwap<View>,
    /// Changes with the view.
    pub(super) changed: watch::Sender<u64>,
    /// Round robin's.
    pub(super) turn: AtomicU64,
    /// Picks that wait.
    pub(super) waiting: AtomicUsize,
    members: Mutex<Members>,
    /// What went wrong last, with the address.
    problem: Mutex<String>,
}

/// What a view is made of.
struct Members {
    list: EndpointList,
    ring: Arc<Ring>,
    gate: Gate,
}

impl Shared {
    pub(super) fn new(options: ClusterOptions) -> Self {
        let list = EndpointList::from([]);
        let gate = Gate::new(options.mesh.failfast_after, Instant::now());
        Self {
            meters: Meters::new(options.service),
            dice: Arc::new(Dice::new(options.seed)),
            endpoints: watch::Sender::new(Arc::clone(&list)),
            view: ArcSwap::default(),
            changed: watch::Sender::new(0),
            turn: AtomicU64::new(0),
            waiting: AtomicUsize::new(0),
            members: Mutex::new(Members { list, ring: Arc::default(), gate }),
            problem: Mutex::new(String::new()),
            options,
        }
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another set of endpoints.
    pub(super) fn replace(&self, list: EndpointList) {
        {
            let members = &mut *self.members();
            members.ring = Arc::new(Ring::new(&list));
            members.list = Arc::clone(&list);
            self.rebuild(members);
        }
        self.endpoints.send_replace(list);
    }

    /// An endpoint's state is another.
    pub(in crate::client) fn refresh(&self) {
        self.rebuild(&mut self.members());
    }

    fn rebuild(&self, members: &mut Members) {
        let view = View::new(&members.list, Arc::clone(&members.ring), &self.options.mesh);
        members.gate.set(view.is_usable(), Instant::now());
        self.view.store(Arc::new(view));
        self.changed.send_modify(|version| *version += 1);
        self.meters.states(members.list.iter().map(|endpoint| &**endpoint));
    }

    /// When picks stop waiting.
    pub(super) fn gate_shuts(&self) -> Option<Instant> {
        self.members().gate.shuts()
    }

    /// Turns an endpoint away if enough others are left.
    pub(in crate::client) fn eject(&self, endpoint: &Endpoint, why: &str) {
        let members = &mut *self.members();
        let of = members.list.len();
        let out = members.list.iter().filter(|other| other.is_ejected()).count();
        let most = ((self.options.mesh.breaker.max_ejected * of as f64) as usize).clamp(1, of.max(2) - 1);
        let left =
            members.list.iter().any(|other| other.id() != endpoint.id() && other.state() == State::Ready);
        if of < 2 || out >= most || !left || !endpoint.eject(why) {
            return;
        }
        self.meters.ejected();
        let (service, address) = (self.options.service, &endpoint.address().authority);
        warn!(service, address, "replica ejected: {why}");
        self.problem(endpoint, &format!("ejected: {why}"));
        self.rebuild(members);
    }

    /// An endpoint's connection could not be made or has ended.
    pub(in crate::client) fn failed(&self, endpoint: &Endpoint, problem: String) {
        self.problem(endpoint, &problem);
        endpoint.disconnected(problem);
        self.options.discover.hurry();
    }

    /// Something went wrong with an endpoint.
    pub(in crate::client) fn problem(&self, endpoint: &Endpoint, problem: &str) {
        self.set_problem(format!("{}: {problem}", endpoint.address().authority));
    }

    pub(super) fn set_problem(&self, problem: String) {
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }

    /// What went wrong last.
    pub(super) fn last_problem(&self) -> String {
        let problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if problem.is_empty() { "none was found yet".to_owned() } else { problem }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Shared({})", self.options.service)
    }
}
