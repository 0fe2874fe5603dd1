//! One `CheckStream`: what is read, in what order it is answered, and how it ends (`proto/sightline/stream/v1`).

use std::{future::Future, pin::Pin, sync::Arc, time::Duration};

use futures_util::{Stream, StreamExt, stream};
use sightline_mesh::stream::draining;
use sightline_proto::{
    ratelimiter::{CheckStreamRequest, CheckStreamResponse, check_stream_response::Result as Answer},
    stream::{Credits, Drain},
};
use tokio::time::{Instant, timeout_at};
use tonic::Status;

use crate::{service::Decider, store::Store};

/// Bounds of a stream.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Checks undecided at once: what a client that says hello is granted, and what is read of any other.
    pub(crate) in_flight: usize,
    /// Checks undecided over all streams with which the service is full.
    pub(crate) undecided: usize,
    /// How long a client that was told to go may take.
    pub(crate) grace: Duration,
}

/// What happens on the stream, in the order of its answers.
enum Event {
    Hello,
    Check(CheckStreamRequest),
    Drain,
    /// A check that came after the notice.
    Late(u64),
    Broken(Status),
}

struct Reader<Q> {
    questions: Q,
    drained: Pin<Box<dyn Future<Output = ()> + Send>>,
    grace: Duration,
    /// The client understands credits and notices.
    hello: bool,
    /// Told to go, and until when it may take.
    until: Option<Instant>,
}

impl<Q: Stream<Item = Result<CheckStreamRequest, Status>> + Unpin> Reader<Q> {
    /// `None` at the end: the client's, or on drain. A client that never said hello is not told: nothing more is read of
    /// it, and what was not read was not charged.
    async fn next(&mut self) -> Option<Event> {
        // A store in memory never waits: without this a long stream would keep its thread from other callers.
        tokio::task::coop::consume_budget().await;
        if let Some(until) = self.until {
            return match timeout_at(until, self.questions.next()).await.ok()?? {
                Ok(message) => Some(Event::Late(message.id)),
                Err(status) => Some(Event::Broken(status)),
            };
        }
        tokio::select! {
            biased;
            () = &mut self.drained => {
                self.until = Some(Instant::now() + self.grace);
                self.hello.then_some(Event::Drain)
            }
            question = self.questions.next() => match question? {
                Ok(message) if message.hello.is_some() => {
                    self.hello = true;
                    Some(Event::Hello)
                }
                Ok(message) => Some(Event::Check(message)),
                Err(status) => Some(Event::Broken(status)),
            },
        }
    }
}

/// Decides up to `limits.in_flight` checks at a time and answers in order. The next is read only when there is room for
/// its answer, so a caller that does not read is held back by HTTP/2's flow control.
pub(crate) fn answers<S: Store>(
    decider: Arc<Decider<S>>,
    questions: impl Stream<Item = Result<CheckStreamRequest, Status>> + Send + Unpin + 'static,
    drained: impl Future<Output = ()> + Send + 'static,
    limits: Limits,
) -> impl Stream<Item = Result<CheckStreamResponse, Status>> + Send + 'static {
    let reader =
        Reader { questions, drained: Box::pin(drained), grace: limits.grace, hello: false, until: None };
    stream::unfold(reader, |mut reader| async move { reader.next().await.map(|event| (event, reader)) })
        .map(move |event| {
            let decider = Arc::clone(&decider);
            async move {
                match event {
                    Event::Check(message) => Ok(decider.answer(message).await),
                    Event::Hello => Ok(notice(Answer::Credits(Credits { granted: limits.in_flight as u32 }))),
                    Event::Drain => Ok(notice(Answer::Drain(Drain { grace: limits.grace.try_into().ok() }))),
                    Event::Late(id) => Ok(CheckStreamResponse {
                        id,
                        result: Some(Answer::Error(draining().into())),
                        load: None,
                    }),
                    Event::Broken(status) => Err(status),
                }
            }
        })
        .buffered(limits.in_flight)
}

fn notice(result: Answer) -> CheckStreamResponse {
    CheckStreamResponse { id: 0, result: Some(result), load: None }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use futures_util::future;
    use sightline_mesh::reason;
    use sightline_proto::{ratelimiter::CheckRequest, stream::Hello};
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::ReceiverStream;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        rules::RuleSet,
        store::{Check, Decision, StoreError, memory::MemoryStore},
    };

    const LIMITS: Limits = Limits { in_flight: 8, undecided: 64, grace: Duration::from_secs(5) };

    fn over<S: Store>(store: S) -> Arc<Decider<S>> {
        Arc::new(Decider::new(Arc::new(RuleSet::load("production").unwrap()), Arc::new(store), 8))
    }

    fn question(id: u64, hits: u32) -> CheckStreamRequest {
        let keys = HashMap::from([("user".to_owned(), format!("u-{id}"))]);
        let check = CheckRequest { hits, keys, ..CheckRequest::default() };
        CheckStreamRequest { id, check: Some(check), ..CheckStreamRequest::default() }
    }

    /// A store over a network: each check takes as many milliseconds as it has hits.
    struct Slow;

    impl Store for Slow {
        async fn check(&self, check: &Check<'_>) -> Result<Decision, StoreError> {
            let hits = check.counters[0].hits;
            tokio::time::sleep(Duration::from_millis(hits.into())).await;
            Ok(Decision::unlimited())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_store_decides_many_at_a_time_and_is_answered_in_order() {
        let questions = (0..16_u32).map(|id| Ok(question(id.into(), 100 - id)));
        let questions = stream::iter(questions.collect::<Vec<_>>());
        let start = Instant::now();
        let answers: Vec<_> = answers(over(Slow), questions, future::pending(), LIMITS).collect().await;
        assert!(answers.iter().map(|answer| answer.as_ref().unwrap().id).eq(0..16));
        let took = start.elapsed();
        assert!(
            (184..200).contains(&took.as_millis()),
            "two rounds of eight, not sixteen in a row: {took:?}"
        );
        let full = answers[7].as_ref().unwrap().load.as_ref().unwrap();
        assert_eq!(full.occupancy, 1.0);
        assert_eq!(full.queue_delay.as_ref().unwrap().nanos, 93_000_000);
    }

    /// Sends and receives on a stream whose server drains when the token is cancelled.
    fn open()
    -> (mpsc::Sender<CheckStreamRequest>, Pin<Box<dyn Stream<Item = CheckStreamResponse>>>, CancellationToken)
    {
        let (send, receive) = mpsc::channel(16);
        let drain = CancellationToken::new();
        let answers = answers(
            over(MemoryStore::new(10_000)),
            ReceiverStream::new(receive).map(Ok),
            drain.clone().cancelled_owned(),
            LIMITS,
        );
        (send, Box::pin(answers.map(Result::unwrap)), drain)
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_hello_is_granted_credits_told_to_go_and_refused_afterwards() {
        let (send, mut answers, drain) = open();
        let hello = CheckStreamRequest { hello: Some(Hello {}), ..CheckStreamRequest::default() };
        send.send(hello).await.unwrap();
        let granted = answers.next().await.unwrap().result;
        assert_eq!(granted, Some(Answer::Credits(Credits { granted: 8 })));
        send.send(question(1, 1)).await.unwrap();
        assert!(matches!(answers.next().await.unwrap().result, Some(Answer::Response(_))));
        drain.cancel();
        assert!(matches!(answers.next().await.unwrap().result, Some(Answer::Drain(_))));
        send.send(question(2, 1)).await.unwrap();
        let late = answers.next().await.unwrap();
        match late.result {
            Some(Answer::Error(error)) => assert_eq!((late.id, error.reason.as_str()), (2, reason::DRAINING)),
            other => panic!("{other:?}"),
        }
        // It does not close its side: the grace ends the stream.
        let since = Instant::now();
        assert!(answers.next().await.is_none());
        assert_eq!(since.elapsed(), LIMITS.grace);
    }

    #[tokio::test(start_paused = true)]
    async fn who_knows_nothing_of_credits_is_sent_answers_only_and_a_clean_end() {
        let (send, mut answers, drain) = open();
        send.send(question(1, 1)).await.unwrap();
        assert_eq!(answers.next().await.unwrap().id, 1);
        drain.cancel();
        assert!(answers.next().await.is_none());
    }
}
