//! Keeps streams open to every endpoint: the tasks around [`Upkeep`] and [`line`].

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
};

use rand::{SeedableRng, rngs::SmallRng};
use tokio::{sync::Notify, task::JoinSet, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    Lane, Shared,
    line::{self, End},
    upkeep::Upkeep,
};
use crate::client::{Endpoint, EndpointId, ServerLoad, State};

/// A server that is this full does nothing faster for having more streams.
const FULL: f32 = 0.9;

/// What an endpoint's keeper is told.
#[derive(Debug, Default)]
pub(super) struct Post {
    wake: Notify,
    pressed: AtomicBool,
    drained: AtomicBool,
    opening: AtomicUsize,
    /// The bits of the occupancy that the server reported last.
    occupancy: AtomicU32,
}

/// A stream that is being opened; counted until it is dropped.
pub(super) struct Opening(Arc<Post>);

impl Post {
    /// A message found no credit here.
    pub(super) fn press(&self) {
        if !self.pressed.swap(true, Ordering::Relaxed) {
            self.wake();
        }
    }

    /// The server asked its client to go.
    pub(super) fn drained(&self) {
        self.drained.store(true, Ordering::Relaxed);
        self.wake();
    }

    /// There is something to look at.
    pub(super) fn wake(&self) {
        self.wake.notify_one();
    }

    /// The server said how full it is.
    pub(super) fn report(&self, load: ServerLoad) {
        self.occupancy.store(load.occupancy.to_bits(), Ordering::Relaxed);
    }

    fn opening(self: &Arc<Self>) -> Opening {
        self.opening.fetch_add(1, Ordering::Relaxed);
        Opening(Arc::clone(self))
    }

    fn is_full(&self) -> bool {
        f32::from_bits(self.occupancy.load(Ordering::Relaxed)) >= FULL
    }
}

impl Opening {
    pub(super) fn post(&self) -> Arc<Post> {
        Arc::clone(&self.0)
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.0.opening.fetch_sub(1, Ordering::Relaxed);
        self.0.wake();
    }
}

/// Follows the cluster's endpoints until it is dropped.
pub(super) async fn follow<L: Lane>(shared: Arc<Shared<L>>) {
    let mut lists = shared.cluster.endpoints();
    let mut kept: BTreeMap<EndpointId, CancellationToken> = BTreeMap::new();
    let mut keepers = JoinSet::new();
    let mut seed = shared.options.seed.unwrap_or_else(rand::random);
    loop {
        let list = lists.borrow_and_update().clone();
        kept.retain(|id, gone| {
            let named = list.iter().any(|endpoint| endpoint.id() == *id);
            if !named {
                gone.cancel();
            }
            named
        });
        for endpoint in list.iter() {
            kept.entry(endpoint.id()).or_insert_with(|| {
                let gone = CancellationToken::new();
                seed = seed.wrapping_add(1);
                let rng = SmallRng::seed_from_u64(seed);
                keepers.spawn(keep(Arc::clone(&shared), Arc::clone(endpoint), gone.clone(), rng));
                gone
            });
        }
        tokio::select! {
            changed = lists.changed() => if changed.is_err() {
                std::future::pending::<()>().await;
            },
            Some(_) = keepers.join_next(), if !keepers.is_empty() => {}
        }
    }
}

/// Keeps the streams of one endpoint until it is `gone` and the last has finished.
async fn keep<L: Lane>(
    shared: Arc<Shared<L>>,
    endpoint: Arc<Endpoint>,
    gone: CancellationToken,
    rng: SmallRng,
) {
    let post = Arc::new(Post::default());
    shared.posts().insert(endpoint.id(), Arc::clone(&post));
    let mut upkeep = Upkeep::new(shared.options, rng, Instant::now());
    let mut states = endpoint.states();
    let mut lines = JoinSet::new();
    let (mut connected, mut leaving) = (false, false);
    while !(leaving && lines.is_empty()) {
        let state = *states.borrow_and_update();
        let transport = endpoint.transport();
        let now = Instant::now();
        if transport.is_some() && !connected {
            upkeep.reconnected(now);
        }
        connected = transport.is_some();
        if leaving {
            // Also what was being opened when it went.
            leave_all(&shared, endpoint.id());
        }
        let takes = !leaving && !matches!(state, State::NotServing | State::Draining);
        let next = look(&shared, &endpoint, &post, &mut upkeep, |count| {
            let Some(transport) = transport.as_ref().filter(|_| takes) else { return };
            for _ in 0..count {
                let (shared, endpoint) = (Arc::clone(&shared), Arc::clone(&endpoint));
                lines.spawn(line::run(shared, endpoint, transport.clone(), post.opening()));
            }
        });
        tokio::select! {
            Some(ended) = lines.join_next(), if !lines.is_empty() => {
                upkeep.ended(ended.unwrap_or(End::Unopened), Instant::now());
            }
            _ = states.changed() => {}
            () = post.wake.notified() => {}
            () = gone.cancelled(), if !leaving => leaving = true,
            () = tokio::time::sleep_until(next) => {}
        }
    }
    shared.posts().remove(&endpoint.id());
}

/// Does what there is to do; says when to look again.
fn look<L: Lane>(
    shared: &Shared<L>,
    endpoint: &Endpoint,
    post: &Post,
    upkeep: &mut Upkeep,
    open: impl FnOnce(usize),
) -> Instant {
    let now = Instant::now();
    let lines = {
        let mut book = shared.book();
        // It may be usable again.
        book.offer(now);
        book.of(endpoint.id())
    };
    if post.drained.swap(false, Ordering::Relaxed) {
        upkeep.drained(now);
    }
    let pressed = post.pressed.swap(false, Ordering::Relaxed) && !post.is_full();
    let todo = upkeep.look(now, &lines, post.opening.load(Ordering::Relaxed), pressed);
    for line in todo.leave {
        shared.leave(line);
    }
    open(todo.open);
    todo.next
}

/// Discovery no longer names the endpoint: its streams finish what they carry.
fn leave_all<L: Lane>(shared: &Shared<L>, endpoint: EndpointId) {
    let lines = shared.book().of(endpoint);
    lines.into_iter().for_each(|standing| shared.leave(standing.line));
}
