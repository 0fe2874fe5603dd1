//! The protocol of the public edge: converts, calls the pipeline, maps errors.

mod batch;
mod stream;
mod streams;

use std::{pin::Pin, sync::Arc};

use batch::Batch;
use sightline_mesh::{Deadline, RpcError, auth::Claims, server::Lifecycle, stream::StreamDrain};
use sightline_proto::ingest::{
    ClassifyBatchRequest, ClassifyBatchResponse, ClassifyRequest, ClassifyResponse, ClassifyStreamRequest,
    ClassifyStreamResponse, Frame as WireFrame, ingest_service_server::IngestService,
};
use sightline_telemetry::trace::{Parent, TRACEPARENT};
use streams::OpenStreams;
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming, transport::server::TcpConnectInfo};

use crate::{
    error::IngestError,
    events,
    frame::{Caller, Frame},
    pipeline::Pipeline,
};

/// `sightline.ingest.v1.IngestService`.
#[derive(Clone)]
pub struct Service {
    pipeline: Arc<Pipeline>,
    lifecycle: Lifecycle,
    streams: OpenStreams,
}

impl Service {
    /// Serves `pipeline` until `lifecycle` drains.
    pub fn new(pipeline: Arc<Pipeline>, lifecycle: Lifecycle) -> Self {
        let streams = OpenStreams::new(pipeline.config().max_streams_per_user);
        Self { pipeline, lifecycle, streams }
    }

    fn check(&self, wire: Option<WireFrame>, caller: &Caller) -> Result<Frame, IngestError> {
        Frame::check(wire, None, caller, self.pipeline.config()).inspect_err(count)
    }

    fn deadline<T>(&self, request: &Request<T>) -> Deadline {
        Deadline::from_metadata(request.metadata(), self.pipeline.config().max_timeout.0)
    }
}

fn count(error: &IngestError) {
    events::failed(&RpcError::from(error.clone()).reason);
}

fn caller<T>(request: &Request<T>) -> Caller {
    let extensions = request.extensions();
    let peer = extensions.get::<TcpConnectInfo>().and_then(TcpConnectInfo::remote_addr);
    Caller {
        claims: extensions.get::<Claims>().cloned(),
        ip: peer.map(|peer| peer.ip()),
        trace: trace(request),
    }
}

/// The span of the call; a long-lived stream has none, and its frames belong to what its metadata says.
fn trace<T>(request: &Request<T>) -> Parent {
    let current = Parent::current();
    if current.is_some() {
        return current;
    }
    let sent = request.metadata().get(TRACEPARENT).and_then(|value| value.to_str().ok());
    Parent::read(sent.unwrap_or_default())
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl IngestService for Service {
    async fn classify(
        &self,
        request: Request<ClassifyRequest>,
    ) -> Result<Response<ClassifyResponse>, Status> {
        let (caller, deadline) = (caller(&request), self.deadline(&request));
        let frame = self.check(request.into_inner().frame, &caller)?;
        let verdict = self.pipeline.classify(frame, None, &caller, deadline).await?;
        Ok(Response::new(ClassifyResponse { verdict: Some(verdict) }))
    }

    type ClassifyBatchStream = Answers<ClassifyBatchResponse>;

    async fn classify_batch(
        &self,
        request: Request<ClassifyBatchRequest>,
    ) -> Result<Response<Self::ClassifyBatchStream>, Status> {
        let config = self.pipeline.config();
        let (caller, deadline) = (caller(&request), self.deadline(&request));
        let frames = request.into_inner().frames;
        match frames.len() {
            0 => return Err(IngestError::BatchEmpty.into()),
            count if count > config.max_batch => {
                return Err(IngestError::BatchTooLarge { count, limit: config.max_batch }.into());
            }
            _ => {}
        }
        // All of them are in memory now, and stay there until the last one has been dealt with.
        let bytes = frames.iter().map(|frame| frame.image.len()).sum();
        let held = self.pipeline.hold(bytes).inspect_err(count)?;
        let (answers, receiver) = mpsc::channel(config.batch_concurrency);
        let pipeline = Arc::clone(&self.pipeline);
        tokio::spawn(Batch { pipeline, caller, deadline, held, answers }.run(frames));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    type ClassifyStreamStream = Answers<ClassifyStreamResponse>;

    async fn classify_stream(
        &self,
        request: Request<Streaming<ClassifyStreamRequest>>,
    ) -> Result<Response<Self::ClassifyStreamStream>, Status> {
        let caller = caller(&request);
        let drain = StreamDrain::new(self.lifecycle.clone(), request.extensions());
        let (answers, receiver) = stream::channel(self.pipeline.config());
        let conversation = stream::Conversation::new(Arc::clone(&self.pipeline), drain, caller, answers);
        tokio::spawn(conversation.run(request.into_inner(), self.streams.clone()));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
