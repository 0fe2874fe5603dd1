//! The protocol: credits, tensors into queues, answers back. Converts and calls; decides nothing.

use std::{
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use sightline_config::HumanDuration;
use sightline_mesh::{Deadline, RpcError, server::Lifecycle, stream::StreamDrain};
use sightline_proto::{
    classifier::{self as wire, classifier_service_server::ClassifierService},
    stream::Load,
};
use tokio::{sync::mpsc, time::sleep_until};
use tonic::{Request, Response, Status, Streaming};
use tracing::{debug, instrument};

use crate::{
    answers::{Answer, Answers, Unanswered},
    config::ClassifierConfig,
    error::ClassifierError,
    events,
    queue::{Done, Entry},
    registry::{Registry, Served},
    traces::{self, Traced},
};

/// `sightline.classifier.v1.ClassifierService`.
#[derive(Clone)]
pub struct Service {
    registry: Arc<Registry>,
    credits: usize,
    max_timeout: HumanDuration,
    drain_timeout: HumanDuration,
    lifecycle: Lifecycle,
}

impl Service {
    /// Serves the models of `registry` until `lifecycle` drains.
    pub fn new(config: &ClassifierConfig, registry: Arc<Registry>, lifecycle: Lifecycle) -> Self {
        events::describe();
        Self {
            registry,
            credits: config.stream_credits,
            max_timeout: config.max_timeout,
            drain_timeout: config.drain_timeout,
            lifecycle,
        }
    }
}

#[tonic::async_trait]
impl ClassifierService for Service {
    type InferStream = Answers;

    #[instrument(name = "classifier.infer", skip_all)]
    async fn infer(
        &self,
        request: Request<Streaming<wire::InferRequest>>,
    ) -> Result<Response<Self::InferStream>, Status> {
        // One answer for each credit, the first credits, the drain notice: only a client that ignores its credits finds
        // no place, and its stream then waits for its own reader.
        let (answers, receiver) = mpsc::channel(self.credits + 2);
        let granted = wire::Credits { granted: self.credits as u32 };
        let drain = StreamDrain::new(self.lifecycle.clone(), request.extensions());
        answers.try_send(Ok(message(wire::infer_response::Message::Credits(granted)))).ok();
        let unanswered = Unanswered::default();
        let stream = Inflight { service: self.clone(), answers, unanswered: unanswered.clone() };
        tokio::spawn(stream.serve(request.into_inner(), drain));
        Ok(Response::new(Answers::new(receiver, unanswered)))
    }

    async fn list_models(
        &self,
        _request: Request<wire::ListModelsRequest>,
    ) -> Result<Response<wire::ListModelsResponse>, Status> {
        Ok(Response::new(wire::ListModelsResponse { models: self.registry.list() }))
    }
}

fn message(message: wire::infer_response::Message) -> wire::InferResponse {
    wire::InferResponse { message: Some(message) }
}

/// One `Infer` stream.
struct Inflight {
    service: Service,
    answers: mpsc::Sender<Answer>,
    unanswered: Unanswered,
}

impl Inflight {
    /// Reads until the client closes its side or is gone, or its time to leave is over. Answers come after that, from the
    /// executors.
    async fn serve(self, mut inbound: Streaming<wire::InferRequest>, drain: StreamDrain) {
        let mut drained = pin!(drain.drained());
        let (mut draining, mut until) = (false, tokio::time::Instant::now());
        loop {
            let next = tokio::select! {
                // Whoever is gone is noticed before what it sent last.
                biased;
                () = self.answers.closed() => return,
                () = &mut drained, if !draining => {
                    (draining, until) = (true, tokio::time::Instant::now() + self.service.drain_timeout.0);
                    let notice = wire::DrainNotice { grace: self.service.drain_timeout.0.try_into().ok() };
                    self.send(wire::infer_response::Message::Drain(notice)).await;
                    // The client ends its side when it has its answers; what crossed the notice is still served.
                    continue;
                }
                () = sleep_until(until), if draining => return,
                next = inbound.message() => next,
            };
            match next {
                Ok(Some(request)) => self.handle(request).await,
                Ok(None) => return,
                Err(status) => {
                    debug!(%status, "an infer stream broke");
                    self.unanswered.fail(RpcError::from_inbound(&status).into());
                    return;
                }
            }
        }
    }

    async fn handle(&self, request: wire::InferRequest) {
        match request.message {
            Some(wire::infer_request::Message::Tensor(tensor)) => {
                let id = tensor.id;
                if let Err((error, load)) = self.enqueue(tensor).await {
                    self.send(refusal(id, error, load)).await;
                }
            }
            Some(wire::infer_request::Message::Cancel(cancel)) => self.unanswered.cancel(cancel.id),
            None => self.send(refusal(0, ClassifierError::EmptyMessage, None)).await,
        }
    }

    /// Queues a tensor together with a place for its answer. An error comes with the load of the model, if that is known.
    async fn enqueue(&self, tensor: wire::Tensor) -> Result<(), (ClassifierError, Option<Load>)> {
        let served = self.service.registry.find(&tensor.model).map_err(|error| (error, None))?;
        let load = || Some(served.meter().load(Duration::ZERO));
        check(served, &tensor).map_err(|error| (error, load()))?;
        let longest = self.service.max_timeout.0;
        // A time that is negative is over already.
        let asked = tensor.timeout.map_or(longest, |timeout| timeout.try_into().unwrap_or(Duration::ZERO));
        let deadline = Deadline::after(asked.min(longest));
        let since = Instant::now();
        let Ok(place) = self.answers.clone().reserve_owned().await else { return Ok(()) };
        let (id, model) = (tensor.id, served.name().to_owned());
        let cancelled = self.unanswered.admit(id).ok_or_else(|| (ClassifierError::IdReused(id), load()))?;
        if self.answers.is_closed() {
            cancelled.store(true, Ordering::Relaxed);
        }
        let unanswered = self.unanswered.clone();
        let traced = Traced::begin(&tensor.traceparent, &model);
        let (span, working) = (traced.span(), served.meter().begin());
        let entry = Entry {
            pixels: tensor.pixels,
            deadline,
            cancelled,
            since,
            traced,
            reply: Box::new(move |outcome| {
                unanswered.answered(id);
                let answer = match outcome {
                    Ok(done) => {
                        traces::answered(&span, None);
                        let load = working.load(done.queued);
                        result(id, model, done, load)
                    }
                    Err(error) => {
                        // Who is turned away has not waited; who comes next would.
                        let delay = match &error {
                            ClassifierError::QueueLong { wait, .. } => *wait,
                            _ => since.elapsed(),
                        };
                        let error = RpcError::from(error);
                        traces::answered(&span, Some(&error));
                        refusal(id, error, Some(working.load(delay)))
                    }
                };
                place.send(Ok(message(answer)));
            }),
        };
        if let Err((entry, error)) = served.queue().push(entry) {
            (entry.reply)(Err(error));
        }
        Ok(())
    }

    async fn send(&self, answer: wire::infer_response::Message) {
        self.answers.send(Ok(message(answer))).await.ok();
    }
}

fn check(served: &Served, tensor: &wire::Tensor) -> Result<(), ClassifierError> {
    let (format, expected) = served.pixels();
    if tensor.format() != format {
        let model = served.name().to_owned();
        return Err(ClassifierError::PixelFormat { got: tensor.format, expected: format, model });
    }
    if tensor.pixels.len() != expected {
        let model = served.name().to_owned();
        return Err(ClassifierError::TensorSize { got: tensor.pixels.len(), expected, model });
    }
    Ok(())
}

fn result(id: u64, model: String, done: Done, load: Load) -> wire::infer_response::Message {
    wire::infer_response::Message::Result(wire::InferResult {
        id,
        scores: done.scores,
        model,
        queue: done.queued.try_into().ok(),
        inference: done.inference.try_into().ok(),
        batch_size: done.batch_size as u32,
        load: Some(load),
    })
}

fn refusal(id: u64, error: impl Into<RpcError>, load: Option<Load>) -> wire::infer_response::Message {
    let error = error.into();
    events::refused(&error.reason);
    wire::infer_response::Message::Error(wire::InferError { id, error: Some(error.into()), load })
}
