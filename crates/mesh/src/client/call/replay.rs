//! A request's body, kept as far as its bound goes so that another attempt can send it again.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use tonic::{Status, body::Body};

use super::sizes::MessageSizes;

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
        while state.whole && state.charged < limit && shared.read(&mut state, &mut context) {}
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

    /// The body for one more attempt. An earlier attempt gets no more from the source.
    ///
    /// The bytes of messages that it has sent are counted in `sent`.
    pub(crate) fn body(&self, sent: &Arc<AtomicU64>) -> Body {
        let mut state = self.0.lock();
        state.reader += 1;
        state.position = state.dropped;
        if state.ended && state.frames.is_empty() {
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
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }

    /// Reads one frame of the source into the frames; whether there was one.
    fn read(&self, state: &mut State, context: &mut Context<'_>) -> bool {
        matches!(self.poll_read(state, context), Poll::Ready(Some(Ok(()))))
    }

    fn poll_read(&self, state: &mut State, context: &mut Context<'_>) -> Poll<Option<Result<(), Status>>> {
        while !state.ended {
            let Some(frame) = ready!(Pin::new(&mut state.source).poll_frame(context)) else {
                state.ended = true;
                break;
            };
            // A client of gRPC sends no trailers.
            let Ok(data) = frame.inspect_err(|_| state.ended = true)?.into_data() else { continue };
            state.ended = state.source.is_end_stream();
            if state.whole {
                if state.charged + data.len() <= self.limit && self.kept.charge(data.len()) {
                    state.charged += data.len();
                } else {
                    self.let_go(state);
                }
            }
            state.frames.push_back(data);
            return Poll::Ready(Some(Ok(())));
        }
        Poll::Ready(None)
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
            match ready!(shared.poll_read(&mut state, context)) {
                Some(Ok(())) => {}
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        // Reading may have dropped what was sent.
        let at = self.next - state.dropped;
        let Some(frame) = state.frames.get(at).cloned() else { return Poll::Ready(None) };
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
        state.ended && self.next >= state.dropped + state.frames.len()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use std::task::Poll;

    use tokio::sync::mpsc;

    use super::*;

    /// A body that has what is sent to it.
    struct Source(mpsc::Receiver<&'static str>);

    impl http_body::Body for Source {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            context: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            self.0.poll_recv(context).map(|text| text.map(|text| Ok(Frame::data(Bytes::from(text)))))
        }
    }

    fn source(ready: &[&'static str]) -> (mpsc::Sender<&'static str>, Body) {
        let (sender, receiver) = mpsc::channel(8);
        ready.iter().for_each(|text| sender.try_send(*text).unwrap());
        (sender, Body::new(Source(receiver)))
    }

    /// The next frame; "end" for none, "error", "later".
    fn next(body: &mut Body) -> String {
        match Pin::new(body).poll_frame(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Some(Ok(frame))) => String::from_utf8(frame.into_data().unwrap().into()).unwrap(),
            Poll::Ready(Some(Err(_))) => "error".into(),
            Poll::Ready(None) => "end".into(),
            Poll::Pending => "later".into(),
        }
    }

    #[test]
    fn a_unary_request_is_complete_at_once_and_can_be_sent_twice_at_a_time() {
        let kept = Kept::new(100);
        let (sender, body) = source(&["hello"]);
        drop(sender);
        let replay = Replay::new(body, 10, &kept);
        assert!(replay.is_complete());
        let (mut first, mut second) = (replay.body(&Arc::default()), replay.body(&Arc::default()));
        assert_eq!((next(&mut first), next(&mut second)), ("hello".into(), "hello".into()));
        assert_eq!((next(&mut first), next(&mut second)), ("end".into(), "end".into()));
        assert_eq!(kept.bytes.load(Ordering::Relaxed), 5);
        drop((first, second, replay));
        assert_eq!(kept.bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_later_attempt_starts_over_and_then_reads_on() {
        let (sender, body) = source(&["one"]);
        let replay = Replay::new(body, 100, &Kept::new(100));
        assert!(replay.is_whole() && !replay.is_complete());
        let mut first = replay.body(&Arc::default());
        assert_eq!((next(&mut first), next(&mut first)), ("one".into(), "later".into()));
        sender.try_send("two").unwrap();
        assert_eq!(next(&mut first), "two");
        let mut second = replay.body(&Arc::default());
        sender.try_send("three").unwrap();
        assert_eq!(next(&mut first), "error", "it would take frames from the second");
        for expected in ["one", "two", "three", "later"] {
            assert_eq!(next(&mut second), expected);
        }
        drop(sender);
        assert_eq!(next(&mut second), "end");
    }

    #[test]
    fn a_request_over_the_bound_is_sent_whole_but_once() {
        let kept = Kept::new(100);
        let (sender, body) = source(&["one", "two", "three"]);
        let replay = Replay::new(body, 7, &kept);
        assert!(!replay.is_whole());
        assert_eq!(kept.bytes.load(Ordering::Relaxed), 0);
        let mut first = replay.body(&Arc::default());
        sender.try_send("four").unwrap();
        drop(sender);
        for expected in ["one", "two", "three", "four", "end"] {
            assert_eq!(next(&mut first), expected);
        }
        assert!(replay.0.lock().frames.is_empty(), "what was sent is let go");
    }

    #[test]
    fn a_bound_reached_while_sending_ends_the_keeping() {
        let kept = Kept::new(100);
        let (sender, body) = source(&["one"]);
        let replay = Replay::new(body, 5, &kept);
        let mut first = replay.body(&Arc::default());
        assert_eq!(next(&mut first), "one");
        sender.try_send("two").unwrap();
        assert_eq!(next(&mut first), "two");
        assert!(!replay.is_whole() && replay.0.lock().frames.is_empty());
        sender.try_send("three").unwrap();
        assert_eq!(next(&mut first), "three");
    }

    #[test]
    fn all_calls_together_have_a_bound() {
        let kept = Kept::new(8);
        let one = Replay::new(source(&["12345"]).1, 100, &kept);
        let two = Replay::new(source(&["12345"]).1, 100, &kept);
        assert!(one.is_whole() && !two.is_whole());
        assert_eq!(next(&mut two.body(&Arc::default())), "12345");
        drop(one);
        assert!(Replay::new(source(&["12345"]).1, 100, &kept).is_whole());
    }

    #[test]
    fn a_commit_lets_go_of_what_was_sent() {
        let kept = Kept::new(100);
        let (sender, body) = source(&["one", "two"]);
        let replay = Replay::new(body, 100, &kept);
        let mut first = replay.body(&Arc::default());
        assert_eq!(next(&mut first), "one");
        replay.commit();
        assert_eq!(kept.bytes.load(Ordering::Relaxed), 0);
        sender.try_send("three").unwrap();
        for expected in ["two", "three", "later"] {
            assert_eq!(next(&mut first), expected);
        }
        assert!(replay.0.lock().frames.is_empty());
    }
}
