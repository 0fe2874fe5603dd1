//! Long-lived bidi streams to every replica, and messages dispatched over them one by one.
//!
//! Each (replica, stream) pair has a supervisor task that opens the stream, reads its answers and, when it ends, opens
//! it again after a jittered backoff. While it is open, its session is in the list that callers choose from. A caller
//! takes a credit of the session with the fewest unanswered messages, leaves a oneshot under its message id, sends,
//! and waits. A session that ends drops its oneshots: their callers move to another session while their deadline and
//! attempts last, so receivers must be idempotent by what the message says.

use std::{
    collections::HashMap,
    future::Future,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use rand::Rng;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::{Request, Response, Status, Streaming, transport::Channel};
use tracing::{debug, warn};

use super::{Endpoints, report::LastProblem};
use crate::{Deadline, RpcError};

/// What a message from the server means to the pool.
#[derive(Debug)]
pub enum Message<A> {
    /// The answer to the message with this id; it gives the message's credit back.
    Answer(u64, A),
    /// So many more messages may be unanswered at once.
    Credits(usize),
    /// The server is about to stop: answers still come, new messages go elsewhere.
    Drain,
}

/// One kind of stream: how it is opened, and what its messages mean.
pub trait Lane: Send + Sync + 'static {
    /// What the client sends.
    type Outbound: Send + 'static;
    /// What the server sends.
    type Inbound: Send + 'static;
    /// What a caller gets.
    type Answer: Send + 'static;

    /// Opens the stream.
    fn open(
        &self,
        channel: Channel,
        outbound: Request<ReceiverStream<Self::Outbound>>,
    ) -> impl Future<Output = Result<Response<Streaming<Self::Inbound>>, Status>> + Send;

    /// Reads a message of the server.
    fn read(&self, inbound: Self::Inbound) -> Result<Message<Self::Answer>, RpcError>;

    /// How many messages may be unanswered before the server granted any: 0 where it grants them all itself.
    fn initial_credits(&self) -> usize;

    /// The message that says nobody waits for `id` any more, where the protocol has one.
    fn cancel(&self, id: u64) -> Option<Self::Outbound> {
        let _ = id;
        None
    }
}

/// How a pool behaves.
#[derive(Debug, Clone, Copy)]
pub struct PoolOptions {
    /// Streams to each replica.
    pub streams_per_endpoint: usize,
    /// How many times one message may be sent, the first time included. 1 where a repetition would count twice: then
    /// only a message that never left moves to another stream.
    pub max_attempts: usize,
    /// How long a caller waits for a stream when none is open, deadline permitting.
    pub patience: Duration,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self { streams_per_endpoint: 1, max_attempts: 3, patience: Duration::from_secs(2) }
    }
}

/// Messages waiting for the network on one stream; credits bound them first.
const OUTBOUND_BUFFER: usize = 256;
/// Streams that a message may find closed before it was sent; then the caller is told. Each is a race with a stream's
/// end, so several in a row mean that the service is going away.
const UNSENT_ATTEMPTS: usize = 8;
/// The first and the longest pause before a broken stream is opened again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));

type Pending<A> = Mutex<Option<HashMap<u64, oneshot::Sender<A>>>>;

struct Session<L: Lane> {
    outbound: mpsc::Sender<L::Outbound>,
    /// `None` once the session has ended: a message that comes later is turned away instead of waiting for nothing.
    pending: Pending<L::Answer>,
    credits: Semaphore,
    in_flight: AtomicUsize,
    next_id: AtomicU64,
}

/// Streams to the replicas of one service. Cheap to clone; the streams close when the last clone is dropped.
pub struct StreamPool<L: Lane> {
    shared: Arc<Shared<L>>,
    _stop: Arc<DropGuard>,
}

struct Shared<L: Lane> {
    lane: L,
    endpoints: Endpoints,
    options: PoolOptions,
    sessions: watch::Sender<Vec<Arc<Session<L>>>>,
    problem: LastProblem,
}

impl<L: Lane> Clone for StreamPool<L> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared), _stop: Arc::clone(&self._stop) }
    }
}

impl<L: Lane> std::fmt::Debug for StreamPool<L> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "StreamPool({}, {} open)", self.shared.endpoints.service(), self.open_streams())
    }
}

impl<L: Lane> StreamPool<L> {
    /// Starts opening streams to every endpoint, on the current tokio runtime.
    pub fn start(lane: L, endpoints: Endpoints, options: PoolOptions) -> Self {
        let sessions = watch::Sender::new(Vec::new());
        let problem = LastProblem::default();
        let shared = Arc::new(Shared { lane, endpoints, options, sessions, problem });
        let stop = CancellationToken::new();
        for (uri, channel) in shared.endpoints.channels() {
            for _ in 0..options.streams_per_endpoint {
                let task = supervise(Arc::clone(&shared), uri.to_owned(), channel.clone());
                let stop = stop.clone();
                tokio::spawn(async move { stop.run_until_cancelled(task).await });
            }
        }
        if let Some(report) = shared.endpoints.report.clone() {
            let (shared, stop) = (Arc::clone(&shared), stop.clone());
            let of = shared.endpoints.channels().count() * options.streams_per_endpoint;
            tokio::spawn(async move {
                let keep = report.keep(|| shared.sessions.borrow().len(), of, &shared.problem);
                stop.run_until_cancelled(keep).await;
            });
        }
        Self { shared, _stop: Arc::new(stop.drop_guard()) }
    }

    /// How many streams are open now.
    pub fn open_streams(&self) -> usize {
        self.shared.sessions.borrow().len()
    }

    /// Sends the message `build` makes for an id, and waits for its answer.
    ///
    /// # Errors
    /// `DEADLINE_EXCEEDED`, or `UNAVAILABLE` when no stream could be had or every attempt's stream broke.
    pub async fn call(
        &self,
        deadline: Deadline,
        build: impl Fn(u64) -> L::Outbound + Send,
    ) -> Result<L::Answer, RpcError> {
        let service = self.shared.endpoints.service();
        let (mut sent, mut unsent) = (0, 0);
        while sent < self.shared.options.max_attempts && unsent < UNSENT_ATTEMPTS {
            let session = self.session(deadline).await?;
            match self.attempt(&session, deadline, &build).await? {
                Attempt::Answered(answer) => return Ok(answer),
                Attempt::Lost => sent += 1,
                Attempt::Unsent => {
                    unsent += 1;
                    // The session's reader takes it out of the list.
                    tokio::task::yield_now().await;
                }
            }
            metrics::counter!("mesh_retries_total", "service" => service).increment(1);
        }
        Err(RpcError::unavailable(format!("{service}: every attempt's stream broke")))
    }

    /// The open session with the fewest unanswered messages, ended ones left out.
    async fn session(&self, deadline: Deadline) -> Result<Arc<Session<L>>, RpcError> {
        let service = self.shared.endpoints.service();
        let mut sessions = self.shared.sessions.subscribe();
        let open = Deadline::after(self.shared.options.patience)
            .min(deadline)
            .bound("connecting", sessions.wait_for(|sessions| !sessions.is_empty()))
            .await;
        match open {
            Ok(Ok(sessions)) => {
                let least = sessions.iter().min_by_key(|session| session.in_flight.load(Ordering::Relaxed));
                Ok(Arc::clone(least.expect("waited until the list was not empty")))
            }
            _ if deadline.passed() => Err(RpcError::deadline(&format!("connecting to {service}"))),
            _ => Err(RpcError::unavailable(format!("no replica of {service} can be reached"))),
        }
    }

    /// One message on one session.
    async fn attempt(
        &self,
        session: &Session<L>,
        deadline: Deadline,
        build: &(impl Fn(u64) -> L::Outbound + Send),
    ) -> Result<Attempt<L::Answer>, RpcError> {
        let service = self.shared.endpoints.service();
        let mut waiting = Waiting::new(session, &self.shared.lane);
        // Until the message is certain to leave, whoever gives up here drops the credit and so gives it back.
        let Ok(credit) = deadline.bound(service, session.credits.acquire()).await? else {
            return Ok(Attempt::Unsent);
        };
        let Ok(place) = deadline.bound(service, session.outbound.reserve()).await? else {
            return Ok(Attempt::Unsent);
        };
        let (reply, answer) = oneshot::channel();
        let id = session.next_id.fetch_add(1, Ordering::Relaxed);
        match session.pending.lock().expect("no holder panics").as_mut() {
            Some(pending) => pending.insert(id, reply),
            None => return Ok(Attempt::Unsent),
        };
        // From here to the sending nothing waits. The answer gives the credit back, whether or not somebody still
        // waits for it.
        waiting.id = Some(id);
        credit.forget();
        place.send(build(id));
        let answer = deadline.bound(service, answer).await?;
        waiting.id = None;
        Ok(answer.map_or(Attempt::Lost, Attempt::Answered))
    }
}

/// What became of a message on one session.
enum Attempt<A> {
    /// Its answer.
    Answered(A),
    /// The session ended before the message was sent: nobody has read it.
    Unsent,
    /// The session ended before it was answered: the server may have acted on it.
    Lost,
}

/// A message that somebody waits for. Dropped with an id, the waiting ended early: the server is told.
struct Waiting<'a, L: Lane> {
    session: &'a Session<L>,
    lane: &'a L,
    id: Option<u64>,
}

impl<'a, L: Lane> Waiting<'a, L> {
    fn new(session: &'a Session<L>, lane: &'a L) -> Self {
        session.in_flight.fetch_add(1, Ordering::Relaxed);
        Self { session, lane, id: None }
    }
}

impl<L: Lane> Drop for Waiting<'_, L> {
    fn drop(&mut self) {
        self.session.in_flight.fetch_sub(1, Ordering::Relaxed);
        let Some(id) = self.id else { return };
        let abandoned = match self.session.pending.lock().expect("no holder panics").as_mut() {
            Some(pending) => pending.remove(&id).is_some(),
            None => false,
        };
        if abandoned && let Some(message) = self.lane.cancel(id) {
            // Best effort: a full buffer means the server is behind, and it checks deadlines itself.
            self.session.outbound.try_send(message).ok();
        }
    }
}

async fn supervise<L: Lane>(shared: Arc<Shared<L>>, uri: String, channel: Channel) {
    let service = shared.endpoints.service();
    let mut backoff = BACKOFF.0;
    loop {
        let (outbound, receiver) = mpsc::channel(OUTBOUND_BUFFER);
        let request = shared.endpoints.request(ReceiverStream::new(receiver));
        match shared.lane.open(channel.clone(), request).await {
            Ok(response) => {
                backoff = BACKOFF.0;
                let session = Arc::new(Session {
                    outbound,
                    pending: Mutex::new(Some(HashMap::new())),
                    credits: Semaphore::new(shared.lane.initial_credits()),
                    in_flight: AtomicUsize::new(0),
                    next_id: AtomicU64::new(1),
                });
                shared.sessions.send_modify(|sessions| sessions.push(Arc::clone(&session)));
                let ended = read(&shared, &session, response.into_inner()).await;
                leave(&shared, &session);
                // Callers whose oneshot is dropped here move on.
                session.pending.lock().expect("no holder panics").take();
                session.credits.close();
                match ended {
                    Ok(()) => debug!(service, uri, "stream ended"),
                    Err(error) => {
                        warn!(service, uri, reason = error.reason, "stream broke: {error}");
                        shared.problem.set(format!("{uri}: {} ({error})", error.reason));
                    }
                }
            }
            Err(status) => {
                debug!(service, uri, code = ?status.code(), "cannot open a stream");
                let error = RpcError::from_status(&status);
                shared.problem.set(format!("{uri}: {} ({error})", error.reason));
            }
        }
        let pause = backoff.mul_f64(rand::rng().random_range(0.5..1.5));
        tokio::time::sleep(pause).await;
        backoff = (backoff * 2).min(BACKOFF.1);
    }
}

/// Takes the session out of the list callers choose from.
fn leave<L: Lane>(shared: &Shared<L>, session: &Arc<Session<L>>) {
    shared.sessions.send_modify(|sessions| sessions.retain(|other| !Arc::ptr_eq(other, session)));
}

/// Hands answers to their callers until the stream ends.
async fn read<L: Lane>(
    shared: &Shared<L>,
    session: &Arc<Session<L>>,
    mut inbound: Streaming<L::Inbound>,
) -> Result<(), RpcError> {
    let mut draining = false;
    while let Some(message) = inbound.message().await.map_err(|status| RpcError::from_status(&status))? {
        match shared.lane.read(message)? {
            Message::Credits(count) => session.credits.add_permits(count),
            Message::Drain => {
                draining = true;
                leave(shared, session);
                // Who still waits for a credit moves to another session now.
                session.credits.close();
            }
            Message::Answer(id, answer) => {
                let waiting = session
                    .pending
                    .lock()
                    .expect("no holder panics")
                    .as_mut()
                    .and_then(|pending| pending.remove(&id));
                session.credits.add_permits(1);
                // Nobody waits any more when the caller's deadline passed meanwhile.
                if let Some(waiting) = waiting {
                    waiting.send(answer).ok();
                }
            }
        }
        // The server waits for our end of the stream.
        if draining && finished(session) {
            break;
        }
    }
    Ok(())
}

/// Whether no message is unanswered. If so the session takes no more: a caller that is about to send moves to another.
fn finished<L: Lane>(session: &Session<L>) -> bool {
    let pending = &mut *session.pending.lock().expect("no holder panics");
    let finished = pending.as_ref().is_none_or(HashMap::is_empty);
    if finished {
        *pending = None;
    }
    finished
}
