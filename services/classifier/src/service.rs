//! The protocol: credits, tensors into queues, answers back. Converts and calls; decides nothing.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use sightline_config::HumanDuration;
use sightline_mesh::{Deadline, RpcError, server::Lifecycle};
use sightline_proto::classifier::{self as wire, classifier_service_server::ClassifierService};
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};
use tracing::instrument;

use crate::{
    config::ClassifierConfig,
    error::ClassifierError,
    events,
    queue::{Done, Entry},
    registry::{Registry, Served},
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
        Self {
            registry,
            credits: config.stream_credits,
            max_timeout: config.max_timeout,
            drain_timeout: config.drain_timeout,
            lifecycle,
        }
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<wire::InferResponse, Status>> + Send>>;

#[tonic::async_trait]
impl ClassifierService for Service {
    type InferStream = Answers;

    #[instrument(name = "classifier.infer", skip_all)]
    async fn infer(
        &self,
        request: Request<Streaming<wire::InferRequest>>,
    ) -> Result<Response<Self::InferStream>, Status> {
        // One answer for each credit, the first credits, the drain notice: a full channel means a client that ignores
        // its credits, whose stream then waits for its own reader.
        let (answers, receiver) = mpsc::channel(self.credits + 2);
        let granted = wire::Credits { granted: self.credits as u32 };
        answers.try_send(Ok(message(wire::infer_response::Message::Credits(granted)))).ok();
        let stream = Inflight { service: self.clone(), answers, live: Arc::default() };
        tokio::spawn(stream.serve(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
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

/// The tensors of one stream that are not answered yet, and how each is told that nobody waits.
type Live = Arc<Mutex<HashMap<u64, Arc<AtomicBool>>>>;

/// One `Infer` stream.
struct Inflight {
    service: Service,
    answers: mpsc::Sender<Result<wire::InferResponse, Status>>,
    live: Live,
}

impl Inflight {
    async fn serve(self, mut inbound: Streaming<wire::InferRequest>) {
        let lifecycle = self.service.lifecycle.clone();
        let mut draining = false;
        loop {
            let next = tokio::select! {
                next = inbound.message() => next,
                () = self.answers.closed() => break,
                () = lifecycle.draining(), if !draining => {
                    draining = true;
                    let notice = wire::DrainNotice { grace: self.service.drain_timeout.0.try_into().ok() };
                    self.send(wire::infer_response::Message::Drain(notice)).await;
                    // The client ends its side when it has its answers; what crossed the notice is still served.
                    continue;
                }
            };
            match next {
                Ok(Some(request)) => self.handle(request).await,
                Ok(None) | Err(_) => break,
            }
        }
        // A client that closed its side still reads; one that is gone makes its tensors futile.
        if self.answers.is_closed() {
            for cancelled in self.live.lock().expect("no holder panics").values() {
                cancelled.store(true, Ordering::Relaxed);
            }
        }
    }

    async fn handle(&self, request: wire::InferRequest) {
        match request.message {
            Some(wire::infer_request::Message::Tensor(tensor)) => {
                let id = tensor.id;
                if let Err(error) = self.enqueue(tensor) {
                    self.send(refusal(id, error)).await;
                }
            }
            Some(wire::infer_request::Message::Cancel(cancel)) => {
                if let Some(cancelled) = self.live.lock().expect("no holder panics").get(&cancel.id) {
                    cancelled.store(true, Ordering::Relaxed);
                }
            }
            None => self.send(refusal(0, ClassifierError::EmptyMessage)).await,
        }
    }

    fn enqueue(&self, tensor: wire::Tensor) -> Result<(), ClassifierError> {
        let served = self.service.registry.find(&tensor.model)?;
        check(served, &tensor)?;
        let longest = self.service.max_timeout.0;
        let asked = tensor.timeout.and_then(|timeout| timeout.try_into().ok()).unwrap_or(longest);
        let cancelled = Arc::new(AtomicBool::new(false));
        self.live.lock().expect("no holder panics").insert(tensor.id, Arc::clone(&cancelled));
        let (answers, live) = (self.answers.clone(), Arc::clone(&self.live));
        let (id, model) = (tensor.id, served.name().to_owned());
        let entry = Entry {
            pixels: tensor.pixels,
            deadline: Deadline::after(asked.min(longest)),
            cancelled,
            since: Instant::now(),
            reply: Box::new(move |outcome| {
                live.lock().expect("no holder panics").remove(&id);
                let answer = match outcome {
                    Ok(done) => result(id, model, done),
                    Err(error) => refusal(id, error),
                };
                // Fails only when the client is gone or sent more than its credits: then nobody waits for this.
                answers.try_send(Ok(message(answer))).ok();
            }),
        };
        served.queue().push(entry).map_err(|(_entry, error)| {
            self.live.lock().expect("no holder panics").remove(&id);
            error
        })
    }

    async fn send(&self, answer: wire::infer_response::Message) {
        self.answers.send(Ok(message(answer))).await.ok();
    }
}

fn check(served: &Served, tensor: &wire::Tensor) -> Result<(), ClassifierError> {
    let (format, expected) = served.pixels();
    if tensor.format() != format {
        return Err(ClassifierError::PixelFormat(tensor.format));
    }
    if tensor.pixels.len() != expected {
        let model = served.name().to_owned();
        return Err(ClassifierError::TensorSize { got: tensor.pixels.len(), expected, model });
    }
    Ok(())
}

fn result(id: u64, model: String, done: Done) -> wire::infer_response::Message {
    wire::infer_response::Message::Result(wire::InferResult {
        id,
        scores: done.scores,
        model,
        queue: done.queued.try_into().ok(),
        inference: done.inference.try_into().ok(),
        batch_size: done.batch_size as u32,
    })
}

fn refusal(id: u64, error: ClassifierError) -> wire::infer_response::Message {
    let error = RpcError::from(error);
    events::refused(&error.reason);
    wire::infer_response::Message::Error(wire::InferError { id, error: Some(error.into()) })
}
