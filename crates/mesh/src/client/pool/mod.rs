//! Long-lived bidi streams to the replicas of a service, and messages dispatched over them one by one.
//!
//! - [`dispatch`]: one message. It picks an endpoint by the cluster's policy, takes a credit of one of its streams, and
//!   waits for the answer. What is not answered goes to another endpoint: at once when its stream breaks, after a while
//!   when it stalls, and in both cases only if the [`Lane`] says that it may be repeated and the budget allows it.
//!   [`flight`] is one attempt.
//! - [`book`]: credits, unanswered messages, and those who wait for a credit, first come first served.
//! - [`keeper`] and [`upkeep`]: how many streams an endpoint has; [`line`]: one of them, to its end.
//! - [`stall`]: how long an answer may take. [`meters`]: what is counted.
//!
//! The first answer wins; later ones find nobody. A server that drains answers or refuses what it was sent; nothing new
//! goes there. The protocol is described in `proto/sightline/stream/v1`; any other with ids and credits will do.

mod book;
mod dispatch;
mod flight;
mod keeper;
mod lane;
mod line;
mod meters;
mod options;
mod stall;
mod upkeep;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use serde::Serialize;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;
use tonic::Code;

use self::{
    book::{Book, LineId},
    dispatch::Dispatch,
    keeper::Post,
    line::Line,
    meters::Meters,
    stall::Stall,
};
pub use self::{
    lane::{Answered, Lane, Message, Refused},
    options::{PoolOptions, StallOptions},
};
use super::{
    Cluster, ClusterSnapshot, EndpointId,
    call::{RetryBudget, Throttle},
    dice::Dice,
    meters::Pickup,
};
use crate::{Deadline, RpcError, reason};

/// What is asked of a pool.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    /// Until when the caller waits.
    pub deadline: Deadline,
    /// What messages that belong on the same replica have in common, for the policy `ring_hash`.
    pub key: Option<u64>,
}

impl From<Deadline> for Ask {
    fn from(deadline: Deadline) -> Self {
        Self { deadline, key: None }
    }
}

/// Streams to the replicas of one service. Cheap to clone; the streams close when the last clone is dropped.
pub struct StreamPool<L: Lane> {
    shared: Arc<Shared<L>>,
    _keeper: Arc<AbortOnDropHandle<()>>,
}

/// An answer as the book holds it: how it counts, and what the caller gets.
type Settled<L> = (Code, <L as Lane>::Answer);

struct Shared<L: Lane> {
    lane: L,
    cluster: Cluster,
    options: PoolOptions,
    book: Mutex<Book<Settled<L>, Arc<Line<L>>>>,
    posts: Mutex<HashMap<EndpointId, Arc<Post>>>,
    stall: Mutex<Stall>,
    budget: Mutex<RetryBudget>,
    throttle: Mutex<Throttle>,
    dice: Dice,
    meters: Meters,
    /// Why a stream broke or could not be opened last. Addresses and codes, nothing that a caller sent.
    problem: Mutex<String>,
}

impl<L: Lane> Clone for StreamPool<L> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), _keeper: Arc::clone(&self._keeper) }
    }
}

impl<L: Lane> std::fmt::Debug for StreamPool<L> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StreamPool({}, {} open)", self.shared.cluster.service(), self.open_streams())
    }
}

impl<L: Lane> StreamPool<L> {
    /// Begins to open streams to every endpoint of `cluster`, on the current tokio runtime.
    pub fn start(lane: L, cluster: Cluster, options: PoolOptions) -> Self {
        let shared = Arc::new(Shared {
            lane,
            meters: Meters::new(cluster.service()),
            cluster,
            options,
            book: Mutex::new(Book::new(options.min_streams, options.max_waiting)),
            posts: Mutex::default(),
            stall: Mutex::new(Stall::new(options.stall)),
            budget: Mutex::new(RetryBudget::new(options.budget, Instant::now())),
            throttle: Mutex::new(Throttle::new(options.throttle, Instant::now())),
            dice: Dice::new(options.seed),
            problem: Mutex::default(),
        });
        let keeper = tokio::spawn(keeper::follow(Arc::clone(&shared)));
        Self { shared, _keeper: Arc::new(AbortOnDropHandle::new(keeper)) }
    }

    /// The replicas that it sends to.
    pub fn cluster(&self) -> &Cluster {
        &self.shared.cluster
    }

    /// How many streams take messages now.
    pub fn open_streams(&self) -> usize {
        self.shared.book().open_lines()
    }

    /// Sends the message that `build` makes for an id, and waits for its answer. `build` is called again for each further
    /// attempt. A caller that drops this no longer waits: the server is told where the protocol can say so.
    ///
    /// # Errors
    /// Those of [`StreamPool::admit`]; `DEADLINE_EXCEEDED`; `UNAVAILABLE` when no stream could be had, or the streams of all
    /// attempts broke; what a server that had no room said.
    pub async fn call(
        &self,
        ask: impl Into<Ask>,
        build: impl Fn(u64) -> L::Outbound + Send,
    ) -> Result<L::Answer, RpcError> {
        let ask = ask.into();
        let admitted = self.admit(ask.deadline)?;
        self.send(admitted, ask, build).await
    }

    /// Whether a message would be sent now: for who has work to do before there is one, and would do it for nothing.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED`: the service sheds messages and this one is held back, or so many wait for a credit that one
    /// would come when more than half of the time until `deadline` is over.
    pub fn admit(&self, deadline: Deadline) -> Result<Admitted, RpcError> {
        let shared = &self.shared;
        let error = if shared.holds_back() {
            shared.meters.throttled.increment(1);
            shared.throttled()
        } else if shared.book().is_crowded(deadline.remaining() / 2) {
            shared.cluster.count(Pickup::Full);
            shared.too_many_wait()
        } else {
            return Ok(Admitted(()));
        };
        shared.meters.message().end(error.code);
        Err(error)
    }

    /// [`StreamPool::call`] for who asked before.
    ///
    /// # Errors
    /// As there.
    pub async fn send(
        &self,
        _: Admitted,
        ask: impl Into<Ask>,
        build: impl Fn(u64) -> L::Outbound + Send,
    ) -> Result<L::Answer, RpcError> {
        let timing = self.shared.meters.message();
        let answer = Dispatch::new(&self.shared, ask.into(), build).run().await;
        timing.end(answer.as_ref().map_or_else(|error| error.code, |(code, _)| *code));
        match &answer {
            Ok(_) => self.shared.answered(false),
            Err(error)
                if error.code == Code::ResourceExhausted && error.reason != reason::CLIENT_OVERLOADED =>
            {
                self.shared.answered(true);
            }
            // Nobody answered it.
            Err(_) => {}
        }
        answer.map(|(_, answer)| answer)
    }

    /// The streams as they are now, for `mesh top`.
    pub fn snapshot(&self) -> PoolSnapshot {
        let endpoints = self.shared.cluster.endpoints().borrow().clone();
        let book = self.shared.book();
        let describe = |endpoint: &Arc<super::Endpoint>| {
            let lines = book.of(endpoint.id());
            StreamsSnapshot {
                address: endpoint.address().authority.clone(),
                open: lines.iter().filter(|line| !line.leaving).count(),
                leaving: lines.iter().filter(|line| line.leaving).count(),
                credits: lines.iter().filter(|line| !line.leaving).map(|line| line.credits).sum(),
                unanswered: lines.iter().map(|line| line.unanswered).sum(),
            }
        };
        PoolSnapshot {
            waiting: book.waiting(),
            streams: endpoints.iter().map(describe).collect(),
            cluster: self.shared.cluster.snapshot(),
        }
    }
}

/// That a message may be sent, once.
#[derive(Debug)]
#[must_use = "it is there to send a message"]
pub struct Admitted(());

/// A pool at one moment.
#[derive(Debug, Clone, Serialize)]
pub struct PoolSnapshot {
    /// The service and its replicas.
    #[serde(flatten)]
    pub cluster: ClusterSnapshot,
    /// Callers who wait for a credit.
    pub waiting: usize,
    /// The streams to each replica, in the order of the cluster's endpoints.
    pub streams: Vec<StreamsSnapshot>,
}

/// The streams to one replica.
#[derive(Debug, Clone, Serialize)]
pub struct StreamsSnapshot {
    /// `host:port`.
    pub address: String,
    /// Streams that take messages.
    pub open: usize,
    /// Streams that only finish what they carry.
    pub leaving: usize,
    /// Messages that may be sent now.
    pub credits: usize,
    /// Messages sent and not answered.
    pub unanswered: usize,
}

impl<L: Lane> Shared<L> {
    fn book(&self) -> MutexGuard<'_, Book<Settled<L>, Arc<Line<L>>>> {
        lock(&self.book)
    }

    fn posts(&self) -> MutexGuard<'_, HashMap<EndpointId, Arc<Post>>> {
        lock(&self.posts)
    }

    fn stall(&self) -> MutexGuard<'_, Stall> {
        lock(&self.stall)
    }

    fn budget(&self) -> MutexGuard<'_, RetryBudget> {
        lock(&self.budget)
    }

    /// A server took a message, or had no room for it.
    fn answered(&self, shed: bool) {
        lock(&self.throttle).answered(shed, Instant::now());
    }

    /// Whether a message is not to be sent because the service sheds.
    fn holds_back(&self) -> bool {
        let (now, mut throttle) = (Instant::now(), lock(&self.throttle));
        let probability = throttle.probability(now);
        // The dice are thrown only where they decide.
        let held = probability > 0.0 && self.dice.fraction() < probability;
        if held {
            throttle.rejected(now);
        }
        held
    }

    /// Whether the service turned messages away lately.
    fn sheds(&self) -> bool {
        lock(&self.throttle).sheds(Instant::now())
    }

    fn throttled(&self) -> RpcError {
        let message =
            format!("{} sheds messages; this one was held back and not sent", self.cluster.service());
        RpcError::new(Code::ResourceExhausted, reason::THROTTLED, message).retry_after(WAITING_PAUSE)
    }

    fn set_problem(&self, problem: String) {
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) = problem;
    }

    /// The stream takes no more messages and ends when none is unanswered.
    fn leave(&self, line: LineId) {
        let handle = {
            let mut book = self.book();
            book.leave(line);
            book.handle(line)
        };
        if let Some(handle) = handle {
            handle.look();
        }
    }

    /// A message found no credit at this endpoint.
    fn press(&self, endpoint: EndpointId) {
        if let Some(post) = self.posts().get(&endpoint) {
            post.press();
        }
    }

    fn any_usable(&self) -> bool {
        self.cluster.endpoints().borrow().iter().any(|endpoint| endpoint.is_usable())
    }

    fn no_stream(&self) -> RpcError {
        let problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let separator = if problem.is_empty() { "" } else { ": " };
        RpcError::unavailable(format!("no stream to {} is open{separator}{problem}", self.cluster.service()))
    }

    fn too_many_wait(&self) -> RpcError {
        let message = format!("more messages wait for {} than it answers in time", self.cluster.service());
        RpcError::new(Code::ResourceExhausted, reason::CLIENT_OVERLOADED, message).retry_after(WAITING_PAUSE)
    }

    fn count_streams(&self) {
        self.meters.open.set(self.book().open_lines() as f64);
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().expect("no holder panics")
}

/// When a caller may come again that found too many waiting, or was held back.
const WAITING_PAUSE: Duration = Duration::from_millis(250);
