//! A request's body, kept as far as its bound goes so that another attempt can send it again.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use tonic::{Status, body::Body};

use crate::sizes::MessageSizes;

/// What all calls of a channel keep together, bounded.
#[derive(Debug)]
pub(crate) struct Kept {
    bytes: AtomicUsize,
    limit: usize,
}

impl Kept {
    pub(crate) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { bytes: AtomicUsize::new(0), limit })
    }

    fn charge(&self, bytes: usize) -> bool {
        let fits = |kept: usize| kept.checked_add(bytes).filter(|kept| *kept <= self.limit);
        self.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).is_ok()
    }
}

/// One call's request body.
pub(crate) struct Replay(Arc<Shared>);

struct Shared {
    kept: Arc<Kept>,
    limit: usize,
    state: Mutex<State>,
}

struct State {
    source: Body,
    /// The source has ended.
    ended: bool,
    /// The source ended with this error: whoever reads the request hears so instead of its end.
    failed: Option<Status>,
    /// What was read, without the first `dropped`.
    frames: VecDeque<Bytes>,
    dropped: usize,
    /// What is charged to [`Kept`].
    charged: usize,
    /// Everything read is kept: another attempt can begin from the start.
    whole: bool,
    /// The latest attempt: the only one that reads on where the frames end, and how many frames it has.
    reader: u32,
    position: usize,
}

impl Replay {
    /// Takes in at once what `source` has ready, up to `limit` bytes: all of a unary request, as a rule.
    pub(crate) fn new(source: Body, limit: usize, kept: &Arc<Kept>) -> Self {
        let state = State {
            ended: source.is_end_stream(),
            failed: None,
            source,
            frames: VecDeque::new(),
            dropped: 0,
            charged: 0,
            whole: true,
            reader: 0,
            position: 0,
        };
        let shared = Shared { kept: Arc::clone(kept), limit, state: Mutex::new(state) };
        let mut state = shared.lock();
        // Whoever waits for more polls the source again first, and so leaves a waker that is one.
        let mut context = Context::from_waker(Waker::noop());
        while state.whole
            && state.charged < limit
            && shared.poll_read(&mut state, &mut context) == Poll::Ready(true)
        {}
        drop(state);
        Self(Arc::new(shared))
    }

    /// Whether another attempt can send the request from its beginning.
    pub(crate) fn is_whole(&self) -> bool {
        self.0.lock().whole
    }

    /// Whether also the request's end is known, so that two attempts can send it at the same time.
    pub(crate) fn is_complete(&self) -> bool {
        let state = self.0.lock();
        state.whole && state.ended
    }

    /// The request's own error, if it has one.
    pub(crate) fn failed(&self) -> Option<Status> {
        self.0.lock().failed.clone()
    }

    /// The body for one more attempt. An earlier attempt gets no more from the source.
    ///
    /// The bytes of messages that it has sent are counted in `sent`.
    pub(crate) fn body(&self, sent: &Arc<AtomicU64>) -> Body {
        let mut state = self.0.lock();
        state.reader += 1;
        state.position = state.dropped;
        if state.ended && state.frames.is_empty() && state.failed.is_none() {
            return Body::empty();
        }
        let (reader, next) = (state.reader, state.dropped);
        drop(state);
        let (sent, sizes) = (Arc::clone(sent), MessageSizes::default());
        Body::new(Reading { shared: Arc::clone(&self.0), reader, next, sent, sizes })
    }

    /// There will be no other attempt: what has been sent is let go, what comes is not kept.
    pub(crate) fn commit(&self) {
        let mut state = self.0.lock();
        if !state.ended {
            self.0.let_go(&mut state);
        }
    }
}

impl Shared {
    /// The caller's stream is polled under this lock, and may panic. What was read before is in order, so nobody else has
    /// to panic too; but that stream is not asked again.
    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if self.state.is_poisoned() && state.failed.is_none() {
            self.fail(&mut state, Status::internal("the request's own stream panicked"));
        }
        state
    }

    /// There is no more of the request than what was read, and that is not all of it.
    fn fail(&self, state: &mut State, error: Status) {
        state.ended = true;
        state.failed = Some(error);
        self.let_go(state);
    }

    /// Reads one frame of the source into the frames; whether there was one.
    fn poll_read(&self, state: &mut State, context: &mut Context<'_>) -> Poll<bool> {
        while !state.ended {
            let Some(frame) = ready!(Pin::new(&mut state.source).poll_frame(context)) else {
                state.ended = true;
                break;
            };
            let frame = match frame {
                Ok(frame) => frame,
                Err(error) => {
                    self.fail(state, error);
                    break;
                }
            };
            // A client of gRPC sends no trailers.
            let Ok(data) = frame.into_data() else { continue };
            state.ended = state.source.is_end_stream();
            if state.whole {
                if state.charged + data.len() <= self.limit && self.kept.charge(data.len()) {
                    state.charged += data.len();
                } else {
                    self.let_go(state);
                }
            }
            state.frames.push_back(data);
            return Poll::Ready(true);
        }
        Poll::Ready(false)
    }

    fn let_go(&self, state: &mut State) {
        state.whole = false;
        self.kept.bytes.fetch_sub(std::mem::take(&mut state.charged), Ordering::Relaxed);
        state.drop_sent();
    }
}

impl State {
    fn drop_sent(&mut self) {
        while !self.whole && self.dropped < self.position && self.frames.pop_front().is_some() {
            self.dropped += 1;
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let charged = self.lock().charged;
        self.kept.bytes.fetch_sub(charged, Ordering::Relaxed);
    }
}

/// The body as one attempt reads it.
struct Reading {
    shared: Arc<Shared>,
    reader: u32,
    next: usize,
    sent: Arc<AtomicU64>,
    sizes: MessageSizes,
}

impl http_body::Body for Reading {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        let latest = state.reader == self.reader;
        let replaced = || Poll::Ready(Some(Err(Status::cancelled("another attempt sends this request"))));
        let Some(at) = self.next.checked_sub(state.dropped) else { return replaced() };
        if at == state.frames.len() && !state.ended {
            if !latest {
                return replaced();
            }
            ready!(shared.poll_read(&mut state, context));
        }
        // Reading may have dropped what was sent.
        let at = self.next - state.dropped;
        let Some(frame) = state.frames.get(at).cloned() else {
            return Poll::Ready(state.failed.clone().map(Err));
        };
        self.next += 1;
        self.sizes.add(&frame);
        self.sent.store(self.sizes.total(), Ordering::Relaxed);
        if latest {
            state.position = self.next;
            state.drop_sent();
        }
        Poll::Ready(Some(Ok(Frame::data(frame))))
    }

    fn is_end_stream(&self) -> bool {
        let state = self.shared.lock();
        state.ended && state.failed.is_none() && self.next >= state.dropped + state.frames.len()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests;
