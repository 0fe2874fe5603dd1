//! Events to the statistics: batched, sent until acknowledged, bounded in memory and on disk.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use sightline_mesh::{
    Deadline, RpcError,
    client::{Lane, Message, StreamPool, Transport},
    reason,
};
use sightline_proto::{
    stats::{
        Acknowledged, Event, RecordRequest, RecordResponse, record_response::Result as Outcome,
        stats_service_client::StatsServiceClient,
    },
    status::ItemError,
    stream::Hello,
    verdict::{Level, VerdictSource},
};
use sightline_telemetry::trace::traceparent;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Code, Request, Response, Status, Streaming};
use tracing::{Instrument, error, warn};

use crate::{
    config::IngestConfig,
    delivery::{BATCHES_IN_FLIGHT, Deliver, Delivery},
    events,
    frame::{Caller, Frame},
    quiet::Quiet,
    spool::Spool,
    traces,
};

/// How long one delivery may take before it is tried again.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The pause before a batch that was not acknowledged is sent again.
const RETRY: Duration = Duration::from_millis(250);
/// While the statistics are away or refuse events, the log says so this often; the metrics count every event.
const LOG_PAUSE: Duration = Duration::from_secs(10);
/// Dropped because the buffer is full.
static FULL: Quiet = Quiet::new(LOG_PAUSE);
/// Refused for what they are.
static REFUSED: Quiet = Quiet::new(LOG_PAUSE);
/// To be sent again.
static AGAIN: Quiet = Quiet::new(LOG_PAUSE);

/// One event of the batch is of a time whose ids the statistics forgot too early (a clock was wrong). Only a person can put
/// that right: until then it is dropped, counted and logged, and does not hold back the events beside it.
const FORGOTTEN: &str = "EVENT_TIME_FORGOTTEN";

/// The statistics' `Record` stream.
#[derive(Debug)]
pub struct RecordLane;

impl Lane for RecordLane {
    type Outbound = RecordRequest;
    type Inbound = RecordResponse;
    type Answer = Result<Acknowledged, ItemError>;

    async fn open(
        &self,
        transport: Transport,
        outbound: Request<ReceiverStream<RecordRequest>>,
    ) -> Result<Response<Streaming<RecordResponse>>, Status> {
        StatsServiceClient::new(transport).record(outbound).await
    }

    fn read(&self, inbound: RecordResponse) -> Result<Message<Self::Answer>, RpcError> {
        match inbound.result {
            Some(Outcome::Credits(credits)) => Ok(Message::Credits(credits.granted as usize)),
            Some(Outcome::Drain(_)) => Ok(Message::Drain),
            // A server that knows nothing of credits took the hello for a batch.
            Some(_) if inbound.id == 0 => Ok(Message::Credits(BATCHES_IN_FLIGHT)),
            Some(Outcome::Acknowledged(done)) => Ok(Message::of_item(inbound.id, Ok(done), inbound.load)),
            Some(Outcome::Error(error)) => Ok(Message::of_item(inbound.id, Err(error), inbound.load)),
            None => {
                Err(RpcError::new(Code::Internal, reason::PROTOCOL, "the statistics sent an empty message"))
            }
        }
    }

    /// The statistics know an event by its id.
    fn repeatable(&self) -> bool {
        true
    }

    fn hello(&self) -> Option<RecordRequest> {
        Some(RecordRequest { hello: Some(Hello {}), ..RecordRequest::default() })
    }
}

/// Takes events and sees to it that they are counted.
#[derive(Debug, Clone)]
pub struct Recorder {
    queue: mpsc::Sender<Event>,
    waiting: Arc<AtomicUsize>,
    stop: CancellationToken,
    give_up: CancellationToken,
    tasks: TaskTracker,
}

/// How long putting the last events on disk may take at a stop.
const SURRENDER: Duration = Duration::from_secs(5);

impl Recorder {
    /// Starts delivering over `pool`, by way of `spool` when the statistics are away.
    pub fn start(config: &IngestConfig, pool: StreamPool<RecordLane>, spool: Option<Spool>) -> Self {
        let (queue, events) = mpsc::channel(config.record_buffer);
        let recorder = Self {
            queue,
            waiting: Arc::default(),
            stop: CancellationToken::new(),
            give_up: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        let delivery = Delivery {
            to: pool,
            spool: spool.map(|spool| Arc::new(Mutex::new(spool))),
            waiting: Arc::clone(&recorder.waiting),
            stop: recorder.stop.clone(),
            give_up: recorder.give_up.clone(),
            batch: config.record_batch,
            linger: config.record_linger.0,
            mark: config.record_buffer / 2,
            patience: config.spool_after.0,
        };
        recorder.tasks.spawn(delivery.run(events));
        recorder
    }

    /// Hands an event over. Never waits: with a full buffer the event is dropped and counted, and the log says so.
    pub fn record(&self, frame: &Frame, caller: &Caller, level: Level, source: VerdictSource, model: &str) {
        let event = Event {
            event_id: frame.id.to_string(),
            occurred_at: Some(timestamp(frame.captured_at)),
            tenant: caller.tenant().to_owned(),
            user_id: frame.user.clone(),
            application: frame.application.clone(),
            device_id: frame.device.clone(),
            level: level.into(),
            source: source.into(),
            model: model.to_owned(),
            traceparent: traceparent(),
        };
        if self.queue.try_send(event).is_err() {
            events::record_dropped();
            if let Some(before) = FULL.may_say() {
                warn!(
                    before,
                    "an event was dropped: the statistics are away and ingest.record_buffer is full"
                );
            }
        } else {
            events::record_depth(self.waiting.fetch_add(1, Ordering::Relaxed) + 1);
        }
    }

    /// Events in memory that are not acknowledged yet.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Sends what waits and stops; at `deadline` the rest stays on disk, or is said to be lost.
    pub async fn finish(&self, deadline: Deadline) {
        self.stop.cancel();
        self.tasks.close();
        if deadline.bound("sending the last events", self.tasks.wait()).await.is_err() {
            self.give_up.cancel();
            if tokio::time::timeout(SURRENDER, self.tasks.wait()).await.is_err() {
                error!(events = self.waiting(), "stopped before the last events were on disk");
            }
        }
    }
}

fn timestamp(time: SystemTime) -> prost_types::Timestamp {
    prost_types::Timestamp::from(time)
}

impl Deliver for StreamPool<RecordLane> {
    async fn deliver(&self, batch: Vec<Event>) {
        deliver(self, batch).await;
    }
}

/// Sends a batch until it is acknowledged. The statistics know an event by its id: sending it again counts nothing twice.
/// A batch that is refused for good is halved, so that a bad event costs only itself.
async fn deliver(pool: &StreamPool<RecordLane>, batch: Vec<Event>) {
    let mut parts = vec![batch];
    while let Some(part) = parts.pop() {
        let build = |id| RecordRequest { id, events: part.clone(), hello: None };
        let span = traces::record(&part);
        let answer = pool.call(Deadline::after(TIMEOUT), build).instrument(span.clone()).await;
        traces::answered(&span, &answer);
        let refused = match answer {
            Ok(Ok(_)) => {
                events::recorded(part.len());
                continue;
            }
            Ok(Err(refused)) => RpcError::from(refused),
            Err(error) => error,
        };
        if !for_good(refused.code) && refused.reason != FORGOTTEN {
            if let Some(before) = AGAIN.may_say() {
                warn!(before, reason = refused.reason, "events wait for the statistics: {refused}");
            }
            tokio::time::sleep(RETRY).await;
            parts.push(part);
        } else if part.len() == 1 {
            events::record_dropped();
            if let Some(before) = REFUSED.may_say() {
                error!(before, reason = refused.reason, "the statistics refuse an event: {refused}");
            }
        } else {
            let (front, back) = part.split_at(part.len() / 2);
            parts.extend([back.to_vec(), front.to_vec()]);
        }
    }
}

/// Whether the same events would be refused again, as the codes are defined (google.rpc.Code).
fn for_good(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::FailedPrecondition
            | Code::OutOfRange
            | Code::Unimplemented
            | Code::DataLoss
    )
}

#[cfg(test)]
mod tests;
