//! One `Record` stream (`proto/sightline/stream/v1`): several batches in flight, each answered when it is committed.

use std::{
    future::Future,
    pin::pin,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::{
    Stream, StreamExt,
    future::{Either, Ready, ready},
    stream::FuturesUnordered,
};
use sightline_mesh::{
    Deadline, RpcError,
    auth::Claims,
    stream::{LoadMeter, StreamDrain, draining},
};
use sightline_proto::{
    stats::{Acknowledged, RecordRequest, RecordResponse, record_response},
    stream::{Credits, Drain},
};
use tokio::{sync::mpsc, time::Instant};
use tonic::Status;
use tracing::{Instrument, debug};

use crate::{
    error::StatsError,
    events,
    intake::Intake,
    store::{Store, StoreError},
    traces::Traced,
};

/// What a stream needs of its service.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    pub store: Arc<dyn Store>,
    pub intake: Intake,
    pub max_in_flight: usize,
    pub drain_timeout: Duration,
    pub drain: StreamDrain,
    pub meter: LoadMeter,
}

type Answers = mpsc::Sender<Result<RecordResponse, Status>>;

impl Recorder {
    /// Reads batches until the caller ends, its stream breaks, the deadline passes or the stream drains; answers all
    /// it read. A caller that said hello is told of the drain, and what it sends after that is refused. A reader that takes no answers holds this up to the deadline, or through a drain, and no longer.
    pub(crate) async fn run(
        self,
        inbound: impl Stream<Item = Result<RecordRequest, Status>> + Unpin,
        claims: Option<Claims>,
        deadline: Deadline,
        answers: Answers,
    ) {
        // A place kept for the status at the end: a reader that lags must not take a failure for a clean end.
        let Ok(last) = answers.clone().reserve_owned().await else { return };
        if let Err(status) = self.serve(inbound, claims, deadline, &answers).await {
            last.send(Err(status));
        }
    }

    async fn serve(
        self,
        inbound: impl Stream<Item = Result<RecordRequest, Status>> + Unpin,
        claims: Option<Claims>,
        deadline: Deadline,
        answers: &Answers,
    ) -> Result<(), Status> {
        let mut inbound = inbound.fuse();
        let mut in_flight = FuturesUnordered::new();
        // The answer that waits for a place among the answers; meanwhile the other arms still run.
        let mut answer = None;
        let mut drained = pin!(self.drain.drained());
        let (mut reading, mut hello, mut told_to_go) = (true, false, false);
        let (mut until, mut late) = (deadline.instant(), RpcError::deadline("recording"));
        let mut end = Ok(());
        while reading || answer.is_some() || !in_flight.is_empty() {
            tokio::select! {
                // Answers first: they make room.
                biased;
                place = answers.reserve(), if answer.is_some() => match (place, answer.take()) {
                    (Ok(place), Some(answer)) => place.send(Ok(answer)),
                    // The caller is gone: there is nobody to tell.
                    _ => return Ok(()),
                },
                Some(next) = in_flight.next(), if answer.is_none() => answer = Some(next),
                () = tokio::time::sleep_until(until) => match told_to_go && answer.is_none() && in_flight.is_empty() {
                    // The caller does not close its side. It was refused all that it sent since.
                    true => return Ok(()),
                    // What is not yet answered may be stored; sent again, it counts once.
                    false => return Err(late.into()),
                },
                () = &mut drained, if !told_to_go => {
                    (reading, told_to_go) = (hello, true);
                    if hello {
                        let grace = self.drain_timeout.try_into().ok();
                        in_flight.push(notice(0, record_response::Result::Drain(Drain { grace })));
                    }
                    let drained = Instant::now() + self.drain_timeout;
                    if drained < until {
                        (until, late) = (drained, draining());
                    }
                }
                batch = inbound.next(), if reading && in_flight.len() < self.max_in_flight => match batch {
                    Some(Ok(batch)) if batch.hello.is_some() => {
                        hello = true;
                        let granted = self.max_in_flight as u32;
                        in_flight.push(notice(0, record_response::Result::Credits(Credits { granted })));
                    }
                    Some(Ok(batch)) if told_to_go => {
                        in_flight.push(notice(batch.id, record_response::Result::Error(draining().into())));
                    }
                    Some(Ok(batch)) => in_flight.push(Either::Left(self.record(batch, claims.clone()))),
                    Some(Err(status)) => {
                        debug!(%status, "a record stream broke");
                        (reading, end) = (false, Err(RpcError::from_inbound(&status).into()));
                    }
                    None => reading = false,
                },
            }
        }
        end
    }

    fn record(
        &self,
        batch: RecordRequest,
        claims: Option<Claims>,
    ) -> impl Future<Output = RecordResponse> + Send + use<> {
        let (store, intake) = (Arc::clone(&self.store), self.intake.clone());
        let (working, since) = (self.meter.begin(), Instant::now());
        async move {
            let RecordRequest { id, events, .. } = batch;
            let traced = Traced::begin(&events);
            let recorded = match intake.check(events, claims.as_ref(), SystemTime::now()) {
                Ok(events) => {
                    store.record(events).instrument(traced.commit()).await.map_err(StatsError::from)
                }
                Err(error) => Err(error),
            };
            if let Err(StatsError::Store(StoreError::Forgotten { .. })) = recorded {
                events::forgotten();
            }
            let recorded = recorded.map_err(RpcError::from);
            traced.end(recorded.as_ref().err());
            let result = match recorded {
                Ok(recorded) => record_response::Result::Acknowledged(Acknowledged {
                    stored: recorded.stored,
                    duplicates: recorded.duplicates,
                }),
                Err(error) => record_response::Result::Error(error.into()),
            };
            // Nearly all of a batch's time is waiting for its turn to be committed.
            let load = Some(working.load(since.elapsed()));
            RecordResponse { id, result: Some(result), load }
        }
    }
}

/// What is not the answer of the store.
fn notice<F>(id: u64, result: record_response::Result) -> Either<F, Ready<RecordResponse>> {
    Either::Right(ready(RecordResponse { id, result: Some(result), load: None }))
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use sightline_mesh::{reason, server::Lifecycle};
    use sightline_proto::stream::Hello;
    use tokio::time::timeout;
    use tokio_stream::wrappers::ReceiverStream;

    use super::*;
    use crate::{
        config::StatsConfig,
        store::{Event, Hour, Page, Pruned, Query, Recorded},
    };

    /// Stores at once.
    #[derive(Debug)]
    struct Quick;

    #[tonic::async_trait]
    impl Store for Quick {
        async fn record(&self, _: Vec<Event>) -> Result<Recorded, StoreError> {
            Ok(Recorded::default())
        }
        async fn query(&self, _: Query) -> Result<Page, StoreError> {
            unreachable!("only records")
        }
        async fn prune(&self, _: Hour, _: usize) -> Result<Pruned, StoreError> {
            unreachable!("only records")
        }
        async fn close(&self) {}
    }

    const DRAIN: Duration = Duration::from_secs(10);
    /// Answers that fit before the reader must take one, without the place kept for the end.
    const PLACES: usize = 2;

    fn recorder(lifecycle: Lifecycle) -> Recorder {
        let intake = Intake::new(&StatsConfig::default());
        let drain = StreamDrain::new(lifecycle, &tonic::Extensions::default());
        let (store, meter) = (Arc::new(Quick), LoadMeter::new(4));
        Recorder { store, intake, max_in_flight: 4, drain_timeout: DRAIN, drain, meter }
    }

    fn batch(id: u64) -> RecordRequest {
        RecordRequest { id, ..RecordRequest::default() }
    }

    /// A caller that sends for ever.
    fn batches() -> impl Stream<Item = Result<RecordRequest, Status>> + Unpin {
        stream::iter((1..=100).map(|id| Ok(batch(id)))).chain(stream::pending())
    }

    async fn ended(mut answers: mpsc::Receiver<Result<RecordResponse, Status>>) -> (usize, RpcError) {
        let mut count = 0;
        while let Some(answer) = answers.recv().await {
            match answer {
                Ok(_) => count += 1,
                Err(status) => return (count, RpcError::from_status(&status)),
            }
        }
        panic!("a clean end after {count} answers");
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_no_answers_does_not_hold_a_stream_past_its_deadline() {
        let (answers, unread) = mpsc::channel(PLACES + 1);
        let deadline = Deadline::after(Duration::from_secs(5));
        let work = recorder(Lifecycle::default()).run(batches(), None, deadline, answers);
        timeout(Duration::from_secs(6), work).await.expect("ends at its deadline");
        let (count, error) = ended(unread).await;
        assert_eq!((count, error.reason.as_str()), (PLACES, reason::DEADLINE_EXCEEDED));
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_that_takes_no_answers_does_not_hold_up_a_drain() {
        let (answers, unread) = mpsc::channel(PLACES + 1);
        let lifecycle = Lifecycle::default();
        let deadline = Deadline::after(Duration::from_secs(3600));
        let work = tokio::spawn(recorder(lifecycle.clone()).run(batches(), None, deadline, answers));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(!work.is_finished(), "the caller may begin to read");
        lifecycle.drain();
        timeout(DRAIN * 2, work).await.expect("ends with the drain").unwrap();
        let (count, error) = ended(unread).await;
        assert_eq!((count, error.reason.as_str()), (PLACES, reason::DRAINING));
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_breaks_has_its_batches_answered_and_then_an_error() {
        let (answers, unread) = mpsc::channel(PLACES + 1);
        let broken =
            stream::iter([Ok(batch(1)), Err(Status::out_of_range("20 bytes, the limit is 10 bytes"))]);
        let deadline = Deadline::after(Duration::from_secs(5));
        recorder(Lifecycle::default()).run(broken, None, deadline, answers).await;
        let (count, error) = ended(unread).await;
        assert_eq!((count, error.reason.as_str()), (1, reason::MESSAGE_TOO_LARGE));
    }

    #[tokio::test(start_paused = true)]
    async fn who_says_hello_is_granted_credits_told_to_go_and_refused_afterwards() {
        let ((send, batches), (answers, mut said)) = (mpsc::channel(4), mpsc::channel(4));
        let lifecycle = Lifecycle::default();
        let deadline = Deadline::after(Duration::from_secs(3600));
        let inbound = ReceiverStream::new(batches).map(Ok);
        let work = tokio::spawn(recorder(lifecycle.clone()).run(inbound, None, deadline, answers));
        let mut answer = async || said.recv().await.map(|answer| answer.expect("no failure"));
        send.send(RecordRequest { hello: Some(Hello {}), ..batch(0) }).await.unwrap();
        let granted = answer().await.unwrap().result;
        assert_eq!(granted, Some(record_response::Result::Credits(Credits { granted: 4 })));
        send.send(batch(1)).await.unwrap();
        let stored = answer().await.unwrap();
        assert!(
            matches!(stored.result, Some(record_response::Result::Acknowledged(_))) && stored.load.is_some()
        );
        lifecycle.drain();
        assert!(matches!(answer().await.unwrap().result, Some(record_response::Result::Drain(_))));
        send.send(batch(2)).await.unwrap();
        match answer().await.unwrap() {
            RecordResponse { id: 2, result: Some(record_response::Result::Error(error)), .. } => {
                assert_eq!(error.reason, reason::DRAINING);
            }
            other => panic!("{other:?}"),
        }
        // It does not close its side: the grace ends the stream, and well.
        assert_eq!(answer().await, None);
        work.await.unwrap();
    }
}
