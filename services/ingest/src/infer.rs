//! Pixels to a classifier, scores back, over pooled streams.

use std::time::Duration;

use bytes::Bytes;
use sightline_mesh::{
    RpcError,
    client::{Admitted, Ask, Lane, Message, StreamPool, Transport},
    reason,
};
use sightline_proto::{
    classifier::{
        CancelTensor, InferRequest, InferResponse, InferResult, Tensor,
        classifier_service_client::ClassifierServiceClient, infer_request, infer_response,
    },
    status::ItemError,
};
use sightline_telemetry::trace::traceparent;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};
use tracing::Instrument;

use crate::{error::IngestError, models::Model, traces};

/// The classifier's `Infer` stream.
#[derive(Debug)]
pub struct InferLane;

impl Lane for InferLane {
    type Outbound = InferRequest;
    type Inbound = InferResponse;
    type Answer = Result<InferResult, ItemError>;

    async fn open(
        &self,
        transport: Transport,
        outbound: Request<ReceiverStream<InferRequest>>,
    ) -> Result<Response<Streaming<InferResponse>>, Status> {
        ClassifierServiceClient::new(transport).infer(outbound).await
    }

    fn read(&self, inbound: InferResponse) -> Result<Message<Self::Answer>, RpcError> {
        match inbound.message {
            Some(infer_response::Message::Credits(credits)) => Ok(Message::Credits(credits.granted as usize)),
            Some(infer_response::Message::Result(mut result)) => {
                let load = result.load.take();
                Ok(Message::of_item(result.id, Ok(result), load))
            }
            Some(infer_response::Message::Error(error)) => {
                Ok(Message::of_item(error.id, Err(error.error.unwrap_or_default()), error.load))
            }
            Some(infer_response::Message::Drain(_)) => Ok(Message::Drain),
            None => {
                Err(RpcError::new(Code::Internal, reason::PROTOCOL, "the classifier sent an empty message"))
            }
        }
    }

    /// A classifier keeps nothing of a tensor.
    fn repeatable(&self) -> bool {
        true
    }

    fn cancel(&self, id: u64) -> Option<InferRequest> {
        Some(InferRequest { message: Some(infer_request::Message::Cancel(CancelTensor { id })) })
    }
}

/// The scores of one image, and where the time went.
#[derive(Debug)]
pub struct Inferred {
    /// Probabilities in the order of the model's classes.
    pub scores: Vec<f32>,
    /// Waiting for an executor.
    pub queue: Option<Duration>,
    /// The run itself.
    pub inference: Option<Duration>,
}

/// Classifies one image's pixels. Safe to send twice: a classifier keeps nothing.
///
/// # Errors
/// The classifier's own, `DEADLINE_EXCEEDED`, or `UNAVAILABLE`.
pub async fn infer(
    pool: &StreamPool<InferLane>,
    admitted: Admitted,
    model: &Model,
    pixels: &Bytes,
    ask: Ask,
) -> Result<Inferred, IngestError> {
    let build = |id| {
        let tensor = Tensor {
            id,
            model: model.name.clone(),
            format: model.input.format,
            pixels: pixels.clone(),
            timeout: ask.deadline.remaining().try_into().ok(),
            traceparent: traceparent(),
        };
        InferRequest { message: Some(infer_request::Message::Tensor(tensor)) }
    };
    let span = traces::infer();
    let answer = pool.send(admitted, ask, build).instrument(span.clone()).await;
    traces::answered(&span, &answer);
    let result = answer?.map_err(RpcError::from)?;
    if result.scores.len() != model.classes.len() {
        let message =
            format!("{} gave {} scores for {} classes", model.name, result.scores.len(), model.classes.len());
        return Err(RpcError::new(Code::Internal, reason::PROTOCOL, message).into());
    }
    Ok(Inferred {
        scores: result.scores,
        queue: result.queue.and_then(|time| time.try_into().ok()),
        inference: result.inference.and_then(|time| time.try_into().ok()),
    })
}
