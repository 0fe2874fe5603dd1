//! A bound on the bytes of unfinished messages, over all connections.
//!
//! HTTP/2 bounds what a peer sends ahead of a reader, per stream and connection. What has been read of a message that is
//! not whole yet is held too, and that is bounded here: a message that does not end in the frame it began in reserves its
//! whole length before more of it is read, so that whoever has begun can finish, and gives it back when it is whole. From
//! there on it is the service's.
//!
//! Time is bounded too: for a message that has reserved bytes, and for all of a call that is no stream of messages, whose
//! place at work is taken from its head on.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Sleep, sleep, sleep_until, timeout},
};
use tonic::{Code, Status, body::Body};

use super::{ServerConfig, refuse::Refusals};
use crate::{RpcError, error::reason, io::BoxFuture};

/// Bytes are reserved in this unit, for the sake of tokio's 32-bit counts.
const UNIT: u64 = 1 << 10;

/// The bytes that unfinished messages share.
#[derive(Debug)]
pub(super) struct Budget {
    units: Arc<Semaphore>,
    total: u32,
    wait: Duration,
    timeout: Duration,
    discard: Discard,
    refusals: Refusals,
}

/// What a caller sends in one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sends {
    /// One message, and then nothing.
    One,
    /// Any number, whenever it likes.
    Many,
}

impl Budget {
    pub(super) fn new(config: &ServerConfig, discard: Discard, refusals: Refusals) -> Arc<Self> {
        let total = u32::try_from(config.max_receive_bytes.0 / UNIT).unwrap_or(u32::MAX).max(1);
        let units = Arc::new(Semaphore::new(total as usize));
        Arc::new(Self {
            units,
            total,
            wait: config.receive_wait.0,
            timeout: config.receive_timeout.0,
            discard,
            refusals,
        })
    }

    /// Whether a body that may hold long messages needs to be counted is known only when they come: all are.
    pub(super) fn meter(self: &Arc<Self>, body: Body, sends: Sends) -> Body {
        if body.is_end_stream() {
            return body;
        }
        let (framing, hold) = (Framing::default(), Hold::None);
        let due = (sends == Sends::One).then(|| Due { at: Instant::now() + self.timeout, timer: None });
        Body::new(Metered { body, budget: Arc::clone(self), framing, hold, due })
    }

    fn too_late(&self) -> Status {
        let message = format!("the message did not arrive within {:?}: send faster, or less", self.timeout);
        RpcError::new(Code::DeadlineExceeded, reason::RECEIVE_TIMEOUT, message).into()
    }

    fn reserve(self: &Arc<Self>, bytes: u64) -> Hold {
        // A message longer than all there is waits for all there is. Its service has taken its length already.
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX).min(self.total);
        match Arc::clone(&self.units).try_acquire_many_owned(units) {
            Ok(permit) => self.hold(permit),
            Err(_) => {
                let (all, wait) = (Arc::clone(&self.units), self.wait);
                Hold::Waiting(Box::pin(async move {
                    timeout(wait, all.acquire_many_owned(units)).await.ok()?.ok()
                }))
            }
        }
    }

    fn hold(&self, permit: OwnedSemaphorePermit) -> Hold {
        Hold::Held { _permit: permit, late: Box::pin(sleep(self.timeout)) }
    }
}

/// Reads what comes of a body that nobody wants, so that its stream ends by itself: a stream that is reset while its client
/// still sends makes of each late frame an error of the connection's, and 1,024 of those end it with all its calls.
#[derive(Debug, Clone)]
pub(super) struct Discard {
    /// Bodies read at once; others are reset.
    places: Arc<Semaphore>,
    /// What a client may have sent before it has seen its answer: one window.
    most: usize,
}

/// Bodies that are discarded at once: each costs a task of 1 KB.
const DISCARDED: usize = 1024;
/// How long a client may take to see its answer.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(1);

impl Discard {
    pub(super) fn new(window: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(DISCARDED)), most: window }
    }

    /// In a task of its own, bounded in bytes and time.
    pub(super) fn body(&self, mut body: Body) {
        if body.is_end_stream() {
            return;
        }
        // A body may be dropped with the runtime that it was read on.
        let Ok(runtime) = Handle::try_current() else { return };
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else { return };
        let mut left = self.most;
        runtime.spawn(timeout(DISCARD_TIMEOUT, async move {
            let _place = place;
            while left > 0 {
                let frame = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await;
                let Some(Ok(frame)) = frame else { return };
                left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len).max(1));
            }
        }));
    }
}

/// Where in a body of length-prefixed messages we are (gRPC over HTTP/2: a flag, four bytes of length, the message).
#[derive(Debug, Default)]
struct Framing {
    head: [u8; 5],
    head_bytes: usize,
    /// What the message still lacks.
    missing: u64,
    /// Its whole length.
    length: u64,
    /// Messages begun.
    messages: u64,
}

impl Framing {
    /// Whether the first message, or one that has begun, is not whole.
    fn is_within(&self) -> bool {
        self.messages == 0 || self.missing > 0 || self.head_bytes > 0
    }

    fn read(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            if self.missing > 0 {
                let taken = self.missing.min(data.len() as u64);
                self.missing -= taken;
                data = &data[taken as usize..];
                continue;
            }
            let taken = data.len().min(self.head.len() - self.head_bytes);
            self.head[self.head_bytes..self.head_bytes + taken].copy_from_slice(&data[..taken]);
            self.head_bytes += taken;
            data = &data[taken..];
            if self.head_bytes == self.head.len() {
                let [_, length @ ..] = self.head;
                self.length = u64::from(u32::from_be_bytes(length));
                self.missing = self.length;
                self.head_bytes = 0;
                self.messages += 1;
            }
        }
    }
}

/// What the message that is being received has reserved.
enum Hold {
    None,
    Waiting(BoxFuture<'static, Option<OwnedSemaphorePermit>>),
    Held {
        _permit: OwnedSemaphorePermit,
        late: Pin<Box<Sleep>>,
    },
    /// The body has failed.
    Failed,
}

/// When all of a body must have come.
struct Due {
    at: Instant,
    /// Most bodies are here before they are asked for, and need none.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Due {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        self.timer.get_or_insert_with(|| Box::pin(sleep_until(self.at))).as_mut().poll(context)
    }
}

struct Metered {
    body: Body,
    budget: Arc<Budget>,
    framing: Framing,
    hold: Hold,
    /// None for streams of messages.
    due: Option<Due>,
}

impl Metered {
    /// Reserves what the unfinished message needs; an error ends the body.
    fn poll_hold(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Status>> {
        if self.framing.missing == 0 {
            self.hold = Hold::None;
            return Poll::Ready(Ok(()));
        }
        if matches!(self.hold, Hold::None) {
            self.hold = self.budget.reserve(self.framing.length);
        }
        if let Hold::Waiting(permit) = &mut self.hold {
            let Poll::Ready(permit) = permit.as_mut().poll(context) else { return Poll::Pending };
            let Some(permit) = permit else {
                let total = (u64::from(self.budget.total) * UNIT) >> 20;
                let message =
                    format!("the server is receiving all it may hold of unfinished messages ({total} MiB)");
                return Poll::Ready(Err(self.budget.refusals.status(
                    "receiving",
                    reason::OVERLOADED,
                    message,
                )));
            };
            self.hold = self.budget.hold(permit);
        }
        if let Hold::Held { late, .. } = &mut self.hold
            && late.as_mut().poll(context).is_ready()
        {
            return Poll::Ready(Err(self.budget.too_late()));
        }
        Poll::Ready(Ok(()))
    }

    fn poll_data(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if let Err(status) = ready!(self.poll_hold(context)) {
            return Poll::Ready(Some(Err(status)));
        }
        let polled = Pin::new(&mut self.body).poll_frame(context);
        match &polled {
            Poll::Ready(Some(Ok(frame))) => self.read(frame),
            // There is nothing left that could be read after us.
            Poll::Ready(None | Some(Err(_))) => self.body = Body::empty(),
            Poll::Pending => {}
        }
        polled
    }

    fn read(&mut self, frame: &Frame<Bytes>) {
        let Some(data) = frame.data_ref() else { return };
        let messages = self.framing.messages;
        self.framing.read(data);
        // Another message has begun: the one before is the service's now.
        if self.framing.messages != messages {
            self.hold = Hold::None;
        }
    }
}

/// Whoever answers before it has read a message leaves the rest to be read here. A stream that ends between two messages is
/// reset: its client knows that it may, and the connection may be waiting for its end.
impl Drop for Metered {
    fn drop(&mut self) {
        if self.due.is_some() || self.framing.is_within() {
            self.budget.discard.body(std::mem::take(&mut self.body));
        }
    }
}

impl http_body::Body for Metered {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if matches!(this.hold, Hold::Failed) {
            return Poll::Ready(None);
        }
        let mut polled = this.poll_data(context);
        if polled.is_pending()
            && let Some(due) = &mut this.due
            && due.poll(context).is_ready()
        {
            polled = Poll::Ready(Some(Err(this.budget.too_late())));
        }
        if matches!(polled, Poll::Ready(Some(Err(_)))) {
            this.hold = Hold::Failed;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.hold, Hold::Failed) || self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
