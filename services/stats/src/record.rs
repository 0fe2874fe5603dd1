//! One `Record` stream: several batches in flight, each answered when it is committed.

use std::{future::Future, sync::Arc, time::SystemTime};

use futures_util::{
    Stream, StreamExt,
    stream::{FuturesUnordered, TryStreamExt},
};
use sightline_mesh::{Deadline, RpcError, auth::Claims, server::Lifecycle};
use sightline_proto::stats::{Acknowledged, RecordRequest, RecordResponse, record_response};
use tokio::sync::mpsc;
use tonic::Status;
use tracing::debug;

use crate::{error::StatsError, intake::Intake, store::Store};

/// What a stream needs of its service.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    pub store: Arc<dyn Store>,
    pub intake: Intake,
    pub max_in_flight: usize,
    pub lifecycle: Lifecycle,
}

/// Why no more batches are read.
enum End {
    /// The caller finished or went away, or we drain.
    Clean,
    Deadline,
}

impl Recorder {
    /// Reads batches until the caller ends, the deadline passes or the service drains; answers all it read.
    pub(crate) async fn run(
        self,
        inbound: impl Stream<Item = Result<RecordRequest, Status>> + Unpin,
        claims: Option<Claims>,
        deadline: Deadline,
        answers: mpsc::Sender<Result<RecordResponse, Status>>,
    ) {
        // A stream that broke has no more to read; there is nobody to tell.
        let mut inbound = inbound.inspect_err(|status| debug!(%status, "a record stream broke")).fuse();
        let mut in_flight = FuturesUnordered::new();
        let end = loop {
            tokio::select! {
                // Answers first: they make room.
                biased;
                Some(answer) = in_flight.next() => {
                    if answers.send(Ok(answer)).await.is_err() {
                        return;
                    }
                }
                () = tokio::time::sleep_until(deadline.instant()) => break End::Deadline,
                () = self.lifecycle.draining() => break End::Clean,
                batch = inbound.next(), if in_flight.len() < self.max_in_flight => match batch {
                    Some(Ok(batch)) => in_flight.push(self.record(batch, claims.clone())),
                    Some(Err(_)) | None => break End::Clean,
                },
            }
        };
        if let End::Deadline = end {
            // The caller stops listening now. What is not yet answered may be stored; sent again, it counts once.
            let _ = answers.send(Err(RpcError::deadline("recording").into())).await;
            return;
        }
        while let Some(answer) = in_flight.next().await {
            if answers.send(Ok(answer)).await.is_err() {
                return;
            }
        }
    }

    fn record(
        &self,
        batch: RecordRequest,
        claims: Option<Claims>,
    ) -> impl Future<Output = RecordResponse> + Send + use<> {
        let (store, intake) = (Arc::clone(&self.store), self.intake.clone());
        async move {
            let RecordRequest { id, events } = batch;
            let recorded = match intake.check(events, claims.as_ref(), SystemTime::now()) {
                Ok(events) => store.record(events).await.map_err(StatsError::from),
                Err(error) => Err(error),
            };
            let result = match recorded {
                Ok(recorded) => record_response::Result::Acknowledged(Acknowledged {
                    stored: recorded.stored,
                    duplicates: recorded.duplicates,
                }),
                Err(error) => record_response::Result::Error(RpcError::from(error).into()),
            };
            RecordResponse { id, result: Some(result) }
        }
    }
}
