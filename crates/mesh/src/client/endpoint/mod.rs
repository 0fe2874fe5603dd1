//! One replica: its connection, its state and its load.

mod snapshot;
mod state;

pub use snapshot::EndpointSnapshot;
pub use state::State;
use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::Instant,
};

use super::{
    Address, EndpointId, MeshOptions, Picked, Transport,
    breaker::{Breaker, Phase},
    cluster::Shared,
    dice::Dice,
    load::Load,
};

/// What a server says of itself on its answers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ServerLoad {
    /// How long what has just been answered waited in its queue.
    pub queue_delay: Duration,
    /// How much of what it can do at once it does: 0 idle, 1 full.
    pub occupancy: f32,
}

/// One replica.
#[derive(Debug)]
pub struct Endpoint {
    id: EndpointId,
    address: Address,
    weight: AtomicU32,
    in_flight: AtomicUsize,
    load: Mutex<Load>,
    inner: Mutex<Inner>,
    /// What `inner` amounts to.
    state: watch::Sender<State>,
    /// Wakes who drives the endpoint: its breaker opened, or the last call of a removed one ended.
    wake: Notify,
    pub(in crate::client) dice: Arc<Dice>,
    owner: Weak<Shared>,
}

/// What only changes now and then.
#[derive(Debug)]
struct Inner {
    link: Link,
    /// What the server said last on this connection.
    serving: Serving,
    breaker: Breaker,
    removed: bool,
    connects: u64,
    problem: Option<String>,
}

#[derive(Debug)]
enum Link {
    Idle,
    Connecting,
    Up(Transport),
    Backoff,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Serving {
    Unsaid,
    Yes,
    /// It did serve on this connection, and is about to stop: a lame duck.
    NoLonger,
    No,
}

impl Inner {
    fn state(&self) -> State {
        if self.removed {
            return State::Draining;
        }
        match (&self.link, self.serving, self.breaker.phase()) {
            (Link::Idle, ..) => State::Idle,
            (Link::Connecting, ..) | (Link::Up(_), Serving::Unsaid, _) => State::Connecting,
            (Link::Backoff, ..) => State::Backoff,
            (Link::Up(_), Serving::No | Serving::NoLonger, _) => State::NotServing,
            (Link::Up(_), Serving::Yes, Phase::Open { .. }) => State::Ejected,
            (Link::Up(_), Serving::Yes, Phase::HalfOpen { .. }) => State::HalfOpen,
            (Link::Up(_), Serving::Yes, Phase::Closed) => State::Ready,
        }
    }
}

impl Endpoint {
    pub(in crate::client) fn new(
        address: Address,
        options: &MeshOptions,
        dice: Arc<Dice>,
        owner: Weak<Shared>,
    ) -> Self {
        let now = Instant::now();
        Self {
            id: EndpointId::next(),
            weight: AtomicU32::new(address.weight.max(1)),
            address,
            in_flight: AtomicUsize::new(0),
            load: Mutex::new(Load::new(options.load.clone(), now)),
            inner: Mutex::new(Inner {
                link: Link::Idle,
                serving: Serving::Unsaid,
                breaker: Breaker::new(options.breaker.clone(), now),
                removed: false,
                connects: 0,
                problem: None,
            }),
            state: watch::Sender::new(State::Idle),
            wake: Notify::new(),
            dice,
            owner,
        }
    }

    /// Which one.
    pub fn id(&self) -> EndpointId {
        self.id
    }

    /// Where it is, as it was first discovered.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Its weight now.
    pub fn weight(&self) -> u32 {
        self.weight.load(Ordering::Relaxed)
    }

    /// Its state now.
    pub fn state(&self) -> State {
        *self.state.borrow()
    }

    /// Tells of each change of its state.
    pub fn states(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    /// Whether calls may be sent to it: it is ready, or half-open and nobody tries it yet.
    pub fn is_usable(&self) -> bool {
        self.state() == State::Ready || self.may_be_tried()
    }

    /// Calls and messages begun and not done.
    pub fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// What one more call would cost, in seconds: less is better (the formula is in `load.rs`).
    pub fn load(&self) -> f64 {
        self.cost(Instant::now())
    }

    pub(in crate::client) fn cost(&self, now: Instant) -> f64 {
        self.meter().cost(self.in_flight(), self.weight(), now)
    }

    /// Takes in what the server said of itself.
    pub fn report(&self, load: ServerLoad) {
        self.meter().report(load, Instant::now());
    }

    /// The connection, while there is one that takes calls.
    pub fn transport(&self) -> Option<Transport> {
        match &self.inner().link {
            Link::Up(transport) => Some(transport.clone()).filter(Transport::is_open),
            _ => None,
        }
    }

    /// Whether there is a connection that takes calls.
    pub(in crate::client) fn is_connected(&self) -> bool {
        matches!(&self.inner().link, Link::Up(transport) if transport.is_open())
    }

    /// Counts a call or a message in flight; for who has chosen the endpoint himself (a stream pool). On a half-open
    /// endpoint it is the one that tries, if none does yet.
    pub fn begin(self: &Arc<Self>) -> Picked {
        let (transport, probe) = {
            let inner = &mut *self.inner();
            let transport = match &inner.link {
                Link::Up(transport) => Some(transport.clone()),
                _ => None,
            };
            (transport, inner.breaker.begin_probe())
        };
        self.started();
        Picked::new(Arc::clone(self), transport, probe)
    }

    /// The same where it is usable: on a half-open endpoint for the one that tries it, on others for nobody.
    pub(in crate::client) fn begin_usable(self: &Arc<Self>) -> Option<Picked> {
        match self.state() {
            State::Ready => Some(self.begin()),
            State::HalfOpen => self.begin_probe(),
            _ => None,
        }
    }

    /// Whether a call may try it: it is half-open and nobody does yet.
    pub(in crate::client) fn may_be_tried(&self) -> bool {
        self.state() == State::HalfOpen
            && self.inner().breaker.phase() == (Phase::HalfOpen { probing: false })
    }

    /// The same for the one call that tries a half-open endpoint; `None` where there is nothing to try.
    pub(in crate::client) fn begin_probe(self: &Arc<Self>) -> Option<Picked> {
        let transport = {
            let inner = &mut *self.inner();
            let Link::Up(transport) = &inner.link else { return None };
            let transport = transport.clone();
            (inner.serving == Serving::Yes && inner.breaker.begin_probe()).then_some(transport)?
        };
        self.started();
        Some(Picked::new(Arc::clone(self), Some(transport), true))
    }

    fn started(&self) {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        self.meter().begin(Instant::now());
    }

    pub(in crate::client) fn meter(&self) -> MutexGuard<'_, Load> {
        self.load.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes something rare, and tells of the state if it is another.
    fn update<R>(&self, change: impl FnOnce(&mut Inner) -> R) -> R {
        let (result, changed) = {
            let inner = &mut *self.inner();
            let result = change(inner);
            let state = inner.state();
            (result, self.state.send_if_modified(|old| std::mem::replace(old, state) != state))
        };
        if changed && let Some(owner) = self.owner.upgrade() {
            owner.refresh();
        }
        result
    }
}

/// How calls end: for [`Picked`].
impl Endpoint {
    /// A call is no longer in flight. Its success, where it says something, goes to the breaker.
    pub(in crate::client) fn ended(self: &Arc<Self>, success: Option<bool>, probe: bool) {
        if self.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.wake_if_removed();
        }
        let now = Instant::now();
        if probe {
            self.tried(success, now);
        } else if let Some(success) = success {
            let why = self.inner().breaker.record(success, now);
            if let (Some(why), Some(owner)) = (why, self.owner.upgrade()) {
                owner.eject(self, &why);
            }
        }
    }

    /// The call that tried it is done trying; its success, where it says something, decides.
    pub(in crate::client) fn tried(&self, success: Option<bool>, now: Instant) {
        self.update(|inner| inner.breaker.end_probe(success, now, &self.dice));
        self.wake.notify_one();
    }

    fn wake_if_removed(&self) {
        if self.state() == State::Draining {
            self.wake.notify_one();
        }
    }

    /// Turns it away. Who calls this has made sure that enough others are left.
    pub(in crate::client) fn eject(&self, why: &str) -> bool {
        let now = Instant::now();
        let ejected = {
            let inner = &mut *self.inner();
            let closed = inner.breaker.phase() == Phase::Closed;
            if closed {
                inner.breaker.eject(now, &self.dice);
                inner.problem = Some(format!("ejected: {why}"));
                let state = inner.state();
                self.state.send_replace(state);
            }
            closed
        };
        self.wake.notify_one();
        ejected
    }
}

/// What who drives the endpoint tells it, and asks.
impl Endpoint {
    pub(in crate::client) fn connecting(&self) {
        self.update(|inner| inner.link = Link::Connecting);
    }

    pub(in crate::client) fn connected(&self, transport: Transport) {
        self.meter().forget(Instant::now());
        self.update(|inner| {
            inner.link = Link::Up(transport);
            inner.serving = Serving::Unsaid;
            inner.connects += 1;
        });
    }

    pub(in crate::client) fn disconnected(&self, problem: String) {
        self.update(|inner| {
            inner.link = Link::Backoff;
            inner.serving = Serving::Unsaid;
            inner.problem = Some(problem);
        });
    }

    pub(in crate::client) fn heard(&self, serving: Result<(), String>) {
        self.update(|inner| match serving {
            Ok(()) => inner.serving = Serving::Yes,
            Err(problem) => {
                inner.problem = Some(problem);
                inner.serving = match inner.serving {
                    Serving::Yes | Serving::NoLonger => Serving::NoLonger,
                    Serving::Unsaid | Serving::No => Serving::No,
                };
            }
        });
    }

    /// Until when the breaker is open.
    pub(in crate::client) fn ejected_until(&self) -> Option<Instant> {
        match self.inner().breaker.phase() {
            Phase::Open { until } => Some(until),
            _ => None,
        }
    }

    /// The time of an ejection is over and the server says that it serves, or not.
    pub(in crate::client) fn probation(&self, healthy: Result<(), String>) {
        self.update(|inner| match healthy {
            Ok(()) => inner.breaker.half_open(),
            Err(problem) => {
                inner.problem = Some(problem);
                inner.breaker.eject(Instant::now(), &self.dice);
            }
        });
    }

    /// Waits for something to do: see `wake`.
    pub(in crate::client) async fn woken(&self) {
        self.wake.notified().await;
    }

    pub(in crate::client) fn remove(&self) {
        self.update(|inner| inner.removed = true);
    }

    /// Lets go of the connection: it closes when nobody uses it any more.
    pub(in crate::client) fn release(&self) {
        self.update(|inner| inner.link = Link::Idle);
    }

    /// Whether that is another.
    pub(in crate::client) fn set_weight(&self, weight: u32) -> bool {
        let weight = weight.max(1);
        self.weight.swap(weight, Ordering::Relaxed) != weight
    }

    /// Whether the breaker is not closed.
    pub(in crate::client) fn is_ejected(&self) -> bool {
        self.inner().breaker.phase() != Phase::Closed
    }

    /// Whether calls may go there when too few others are left: ejected, or a lame duck.
    pub(in crate::client) fn is_last_resort(&self) -> bool {
        let inner = self.inner();
        let connected = matches!(&inner.link, Link::Up(transport) if transport.is_open());
        connected && !inner.removed && matches!(inner.serving, Serving::Yes | Serving::NoLonger)
    }
}
