//! The protocol of the public edge: converts, calls the pipeline, maps errors.

mod stream;
mod streams;

use std::{pin::Pin, sync::Arc};

use sightline_mesh::{Deadline, RpcError, auth::Claims, server::Lifecycle};
use sightline_proto::ingest::{
    ClassifyBatchRequest, ClassifyBatchResponse, ClassifyRequest, ClassifyResponse, ClassifyStreamRequest,
    ClassifyStreamResponse, Frame as WireFrame, classify_batch_response::Result as BatchResult,
    ingest_service_server::IngestService,
};
use streams::OpenStreams;
use tokio::sync::{Semaphore, mpsc};
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
    Caller { claims: extensions.get::<Claims>().cloned(), ip: peer.map(|peer| peer.ip()) }
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
        let verdict = self.pipeline.classify(frame, &caller, deadline).await?;
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
        let (answers, receiver) = mpsc::channel(config.batch_concurrency);
        let places = Arc::new(Semaphore::new(config.batch_concurrency));
        let service = self.clone();
        tokio::spawn(async move {
            for (index, wire) in frames.into_iter().enumerate() {
                let place = tokio::select! {
                    place = Arc::clone(&places).acquire_owned() => place,
                    () = answers.closed() => break,
                };
                let (service, caller, answers) = (service.clone(), caller.clone(), answers.clone());
                tokio::spawn(async move {
                    let work = async {
                        let frame = service.check(Some(wire), &caller)?;
                        service.pipeline.classify(frame, &caller, deadline).await
                    };
                    let result = tokio::select! {
                        result = work => result,
                        () = answers.closed() => return,
                    };
                    let result = match result {
                        Ok(verdict) => BatchResult::Verdict(verdict),
                        Err(error) => BatchResult::Error(RpcError::from(error).into()),
                    };
                    let answer = ClassifyBatchResponse { index: index as u32, result: Some(result) };
                    answers.send(Ok(answer)).await.ok();
                    drop(place);
                });
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    type ClassifyStreamStream = Answers<ClassifyStreamResponse>;

    async fn classify_stream(
        &self,
        request: Request<Streaming<ClassifyStreamRequest>>,
    ) -> Result<Response<Self::ClassifyStreamStream>, Status> {
        let caller = caller(&request);
        let (answers, receiver) = stream::channel(self.pipeline.config());
        let conversation =
            stream::Conversation::new(Arc::clone(&self.pipeline), self.lifecycle.clone(), caller, answers);
        tokio::spawn(conversation.run(request.into_inner(), self.streams.clone()));
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
