//! `sightline.stats.v1.StatsService`: convert, call, map.

use std::{sync::Arc, time::Duration};

use sightline_mesh::{
    Deadline, RpcError,
    auth::Claims,
    server::Lifecycle,
    stream::{LoadMeter, StreamDrain, draining},
};
use sightline_proto::stats::{
    QueryRequest, QueryResponse, RecordRequest, RecordResponse, stats_service_server::StatsService,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use tracing::{Instrument, Span, instrument};

use crate::{
    config::StatsConfig, error::StatsError, events, intake::Intake, query, record::Recorder, store::Store,
};

/// A record stream without a deadline stays open for as long as its connection; a timer needs some number.
const LONGEST_STREAM: Duration = Duration::from_secs(365 * 24 * 3600);
/// Answers that wait to be sent, and the status at the end; behind it, batches stay in flight and no new ones are read.
const ANSWERS: usize = 16 + 1;

/// The service behind a port. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Service {
    store: Arc<dyn Store>,
    intake: Intake,
    max_in_flight: usize,
    query_timeout: Duration,
    drain_timeout: Duration,
    lifecycle: Lifecycle,
    meter: LoadMeter,
}

impl Service {
    pub(crate) fn new(config: &StatsConfig, store: Arc<dyn Store>, lifecycle: Lifecycle) -> Self {
        events::describe();
        Self {
            store,
            intake: Intake::new(config),
            max_in_flight: config.max_in_flight_batches,
            query_timeout: config.query_timeout.0,
            drain_timeout: config.drain_timeout.0,
            lifecycle,
            // All streams together: what waits to be written.
            meter: LoadMeter::new(config.queue_batches),
        }
    }
}

#[tonic::async_trait]
impl StatsService for Service {
    type RecordStream = ReceiverStream<Result<RecordResponse, Status>>;

    #[instrument(name = "stats.record", skip_all)]
    async fn record(
        &self,
        request: Request<Streaming<RecordRequest>>,
    ) -> Result<Response<Self::RecordStream>, Status> {
        if self.lifecycle.is_draining() {
            return Err(draining().into());
        }
        let deadline = Deadline::from_metadata(request.metadata(), LONGEST_STREAM);
        let claims = request.extensions().get::<Claims>().cloned();
        let recorder = Recorder {
            store: Arc::clone(&self.store),
            intake: self.intake.clone(),
            max_in_flight: self.max_in_flight,
            drain_timeout: self.drain_timeout,
            drain: StreamDrain::new(self.lifecycle.clone(), request.extensions()),
            meter: self.meter.clone(),
        };
        let (answers, outbound) = mpsc::channel(ANSWERS);
        let work = recorder.run(request.into_inner(), claims, deadline, answers);
        tokio::spawn(work.instrument(Span::current()));
        Ok(Response::new(ReceiverStream::new(outbound)))
    }

    #[instrument(name = "stats.query", skip_all)]
    async fn query(&self, request: Request<QueryRequest>) -> Result<Response<QueryResponse>, Status> {
        let deadline = Deadline::from_metadata(request.metadata(), self.query_timeout);
        let claims = request.extensions().get::<Claims>().cloned();
        let (query, fingerprint) =
            query::check(request.into_inner(), claims.as_ref()).map_err(RpcError::from)?;
        let page = deadline.bound("the query", self.store.query(query.clone())).await?;
        let page = page.map_err(|error| RpcError::from(StatsError::from(error)))?;
        Ok(Response::new(query::answer(page, &query, fingerprint)))
    }
}
