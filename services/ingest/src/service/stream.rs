//! One `ClassifyStream`: hello and welcome, frames in any number up to the agreed one, answers as they are ready.

use std::{sync::Arc, time::Duration};

use sightline_mesh::{Deadline, RpcError, reason, stream::StreamDrain};
use sightline_proto::ingest::{
    ClassifyStreamRequest, ClassifyStreamResponse, Drain, Hello, StreamError, StreamFrame, StreamVerdict,
    Welcome, classify_stream_request::Message as Said, classify_stream_response::Message as Answer,
};
use sightline_telemetry::trace::Parent;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::Instant,
};
use tonic::{Code, Status, Streaming};
use uuid::Uuid;

use super::{count, streams::OpenStreams};
use crate::{
    config::IngestConfig,
    error::IngestError,
    events,
    frame::{Caller, Frame},
    pipeline::Pipeline,
};

/// Answers that are no verdicts: welcome, heartbeat, drain.
const CONTROL_BUFFER: usize = 8;

/// How long a stream is read after its client was told to leave it: the notice takes its way there, and what
/// was sent before it arrived takes the way back. At most half of `ingest.drain_timeout`.
const DRAIN_READING: Duration = Duration::from_secs(1);

type Answers = mpsc::Sender<Result<ClassifyStreamResponse, Status>>;

/// A channel that always has room for the answers of the frames in flight.
pub(super) fn channel(
    config: &IngestConfig,
) -> (Answers, mpsc::Receiver<Result<ClassifyStreamResponse, Status>>) {
    mpsc::channel(config.stream_in_flight + CONTROL_BUFFER)
}

/// Why a client is to leave its stream.
const DRAINING: &str = "the server is stopping, or replaces this connection";

fn draining() -> RpcError {
    RpcError::new(Code::Unavailable, reason::DRAINING, format!("{DRAINING}: send it again on a new stream"))
}

/// One client's stream.
pub(super) struct Conversation {
    pipeline: Arc<Pipeline>,
    drain: StreamDrain,
    caller: Caller,
    answers: Answers,
    places: Arc<Semaphore>,
}

impl Conversation {
    pub(super) fn new(pipeline: Arc<Pipeline>, drain: StreamDrain, caller: Caller, answers: Answers) -> Self {
        let places = Arc::new(Semaphore::new(pipeline.config().stream_in_flight));
        Self { pipeline, drain, caller, answers, places }
    }

    /// Talks until the client ends its side, breaks the protocol, falls silent, or is to leave: the process drains,
    /// or the connection is old.
    pub(super) async fn run(self, mut inbound: Streaming<ClassifyStreamRequest>, streams: OpenStreams) {
        events::streams(1.0);
        if let Err(error) = self.talk(&mut inbound, &streams).await {
            count(&error);
            self.answers.send(Err(error.into())).await.ok();
        }
        events::streams(-1.0);
    }

    async fn talk(
        &self,
        inbound: &mut Streaming<ClassifyStreamRequest>,
        streams: &OpenStreams,
    ) -> Result<(), IngestError> {
        let first = tokio::select! {
            first = self.next(inbound) => first?,
            () = self.drain.drained() => return Err(draining().into()),
        };
        let Some(first) = first else { return Ok(()) };
        let Some(Said::Hello(hello)) = first.message else {
            return Err(IngestError::StreamProtocol("the first one must be hello"));
        };
        let token = self.caller.claims.as_ref().map_or("", |claims| &claims.sub);
        let user = if token.is_empty() { &hello.user_id } else { token };
        let _open = streams.enter(self.caller.tenant(), user)?;
        let hello = Arc::new(hello);
        self.welcome().await;
        let everyone = self.pipeline.config().stream_in_flight as u32;
        loop {
            let heard = async {
                // Not reading is the backpressure: HTTP/2 flow control holds the client back.
                let place = self.place().await?;
                Some((place, self.next(inbound).await))
            };
            let heard = tokio::select! {
                heard = heard => heard,
                () = self.drain.drained() => {
                    self.tell_to_leave().await;
                    self.turn_away(inbound).await;
                    break;
                }
            };
            let Some((place, said)) = heard else { break };
            match said?.map(|said| said.message) {
                Some(Some(Said::Frame(frame))) => self.classify(frame, &hello, place),
                Some(Some(Said::Heartbeat(beat))) => self.say(Answer::Heartbeat(beat)).await,
                Some(Some(Said::Hello(_))) => {
                    return Err(IngestError::StreamProtocol("hello was said already"));
                }
                Some(None) => return Err(IngestError::StreamProtocol("is empty")),
                None => break,
            }
        }
        // Every frame that was taken is answered before the stream ends; each has a deadline of its own.
        self.places.acquire_many(everyone).await.ok();
        Ok(())
    }

    /// Answers the frames that were sent before the client could know of the drain: none is left without a word.
    async fn turn_away(&self, inbound: &mut Streaming<ClassifyStreamRequest>) {
        let refuse = async {
            while let Ok(Some(said)) = inbound.message().await {
                match said.message {
                    Some(Said::Frame(frame)) => {
                        let error = draining();
                        events::failed(&error.reason);
                        self.say(Answer::Error(StreamError { id: frame.id, error: Some(error.into()) }))
                            .await;
                    }
                    Some(Said::Heartbeat(beat)) => self.say(Answer::Heartbeat(beat)).await,
                    Some(Said::Hello(_)) | None => {}
                }
            }
        };
        let time = DRAIN_READING.min(self.pipeline.config().drain_timeout.0 / 2);
        tokio::time::timeout(time, refuse).await.ok();
    }

    /// The next message within the idle time; `None` at the client's end of the stream or when it is gone.
    async fn next(
        &self,
        inbound: &mut Streaming<ClassifyStreamRequest>,
    ) -> Result<Option<ClassifyStreamRequest>, IngestError> {
        let idle = self.pipeline.config().stream_idle_timeout.0;
        let until = Instant::now() + idle;
        loop {
            match tokio::time::timeout_at(until.max(Instant::now()), inbound.message()).await {
                Ok(Ok(message)) => return Ok(message),
                Ok(Err(status)) if self.answers.is_closed() => {
                    tracing::debug!(code = ?status.code(), "the client is gone");
                    return Ok(None);
                }
                Ok(Err(status)) => return Err(RpcError::from_inbound(&status).into()),
                // Not idle while answers are owed: the client waits for us.
                Err(_) if self.places.available_permits() + 1 < self.pipeline.config().stream_in_flight => {
                    tokio::time::sleep(idle / 10).await;
                }
                Err(_) => return Err(IngestError::StreamIdle(idle)),
            }
        }
    }

    /// A place among the frames in flight; `None` when the client is gone.
    async fn place(&self) -> Option<OwnedSemaphorePermit> {
        tokio::select! {
            place = Arc::clone(&self.places).acquire_owned() => place.ok(),
            () = self.answers.closed() => None,
        }
    }

    /// Starts one frame. Its place is given back when its answer is in the channel.
    fn classify(&self, said: StreamFrame, hello: &Arc<Hello>, place: OwnedSemaphorePermit) {
        let deadline = Deadline::after(self.pipeline.config().max_timeout.0);
        let (pipeline, mut caller) = (Arc::clone(&self.pipeline), self.caller.clone());
        let own = Parent::read(&said.traceparent);
        if own.is_some() {
            caller.trace = own;
        }
        let (answers, hello) = (self.answers.clone(), Arc::clone(hello));
        tokio::spawn(async move {
            let work = async {
                let frame =
                    Frame::check(said.frame, Some(&hello), &caller, pipeline.config()).inspect_err(count)?;
                pipeline.classify(frame, None, &caller, deadline).await
            };
            // A client that is gone waits for nothing.
            let outcome = tokio::select! {
                outcome = work => outcome,
                () = answers.closed() => return,
            };
            let answer = match outcome {
                Ok(verdict) => Answer::Verdict(StreamVerdict { id: said.id, verdict: Some(verdict) }),
                Err(error) => {
                    Answer::Error(StreamError { id: said.id, error: Some(RpcError::from(error).into()) })
                }
            };
            answers.send(Ok(ClassifyStreamResponse { message: Some(answer) })).await.ok();
            drop(place);
        });
    }

    async fn welcome(&self) {
        let config = self.pipeline.config();
        let welcome = Welcome {
            stream_id: Uuid::now_v7().to_string(),
            max_in_flight: config.stream_in_flight as u32,
            max_image_bytes: config.max_image.0,
            idle_timeout: config.stream_idle_timeout.0.try_into().ok(),
        };
        self.say(Answer::Welcome(welcome)).await;
    }

    async fn tell_to_leave(&self) {
        let grace = self.pipeline.config().drain_timeout.0.try_into().ok();
        self.say(Answer::Drain(Drain { reason: DRAINING.into(), grace })).await;
    }

    async fn say(&self, answer: Answer) {
        self.answers.send(Ok(ClassifyStreamResponse { message: Some(answer) })).await.ok();
    }
}
