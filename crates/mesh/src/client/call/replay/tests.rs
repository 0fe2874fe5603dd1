//! Request bodies that are kept, let go, fail and panic.

use std::task::Poll;

use tokio::sync::mpsc;

use super::*;

/// A body that has what is sent to it; after "fails" an error, after "panics" a panic.
struct Source(mpsc::Receiver<&'static str>);

impl http_body::Body for Source {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.0.poll_recv(context).map(|text| match text? {
            "fails" => Some(Err(Status::out_of_range("too large"))),
            "panics" => panic!("a caller's stream panics"),
            text => Some(Ok(Frame::data(Bytes::from(text)))),
        })
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

#[test]
fn a_request_that_fails_is_never_sent_as_if_that_were_all_of_it() {
    for ready in [&["one", "fails"][..], &["fails"]] {
        let kept = Kept::new(100);
        let (_sender, body) = source(ready);
        let replay = Replay::new(body, 100, &kept);
        assert!(!replay.is_complete() && !replay.is_whole(), "neither hedged nor sent again");
        assert_eq!(replay.failed().unwrap().message(), "too large");
        assert_eq!(kept.bytes.load(Ordering::Relaxed), 0);
        let mut first = replay.body(&Arc::default());
        for expected in ready.iter().map(|text| if *text == "fails" { "error" } else { *text }) {
            assert!(!first.is_end_stream());
            assert_eq!(next(&mut first), expected);
        }
    }
}

#[test]
fn a_failure_while_sending_reaches_who_sends() {
    let (sender, body) = source(&["one"]);
    let replay = Replay::new(body, 100, &Kept::new(100));
    let mut first = replay.body(&Arc::default());
    assert_eq!((next(&mut first), next(&mut first)), ("one".into(), "later".into()));
    sender.try_send("fails").unwrap();
    assert_eq!(next(&mut first), "error");
    assert!(!replay.is_complete() && !replay.is_whole() && !first.is_end_stream());
}

#[test]
fn a_stream_that_panics_costs_its_own_call_alone() {
    let kept = Kept::new(100);
    let (sender, body) = source(&["one"]);
    let replay = Replay::new(body, 100, &kept);
    let mut first = replay.body(&Arc::default());
    assert_eq!(next(&mut first), "one");
    sender.try_send("panics").unwrap();
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| next(&mut first))).unwrap_err();
    sender.try_send("two").unwrap();
    assert_eq!(next(&mut first), "error", "and it is not asked again");
    assert!(!replay.is_whole() && replay.failed().is_some());
    drop((first, replay));
    assert_eq!(kept.bytes.load(Ordering::Relaxed), 0);
}
