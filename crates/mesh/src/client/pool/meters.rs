//! What is counted of a pool: its streams by gRPC's names (gRFC A66), where a stream is one call, and the messages on
//! them by names of our own, because gRPC has none for messages.

use std::{sync::Arc, time::Duration};

use metrics::{
    Counter, Gauge, Histogram, counter, describe_counter, describe_gauge, describe_histogram, gauge,
    histogram,
};
use tokio::time::Instant;
use tonic::Code;

use crate::client::call::{ByCode, Meter};

const DURATION: &str = "mesh_message_duration_seconds";

/// The metrics of one pool, all by the service that is called.
pub(super) struct Meters {
    /// Of the streams themselves.
    pub(super) streams: Arc<Meter>,
    pub(super) open: Gauge,
    pub(super) attempts: Counter,
    pub(super) retries: Counter,
    pub(super) hedges: Counter,
    pub(super) broke: Counter,
    pub(super) throttled: Counter,
    pub(super) credit_wait: Histogram,
    durations: ByCode,
    service: &'static str,
}

impl Meters {
    pub(super) fn new(service: &'static str) -> Self {
        describe();
        Self {
            streams: Meter::new(service),
            open: gauge!("mesh_streams_open", "service" => service),
            attempts: counter!("mesh_message_attempts_total", "service" => service),
            retries: counter!("mesh_retries_total", "service" => service),
            hedges: counter!("mesh_hedges_total", "service" => service),
            broke: counter!("mesh_retry_budget_exhausted_total", "service" => service),
            throttled: counter!("mesh_throttled_total", "service" => service),
            credit_wait: histogram!("mesh_credit_wait_seconds", "service" => service),
            durations: ByCode::default(),
            service,
        }
    }

    /// A message begins.
    pub(super) fn message(&self) -> Timing<'_> {
        Timing { meters: self, since: Instant::now(), ended: false }
    }

    /// A message left a replica unanswered.
    pub(super) fn moved(&self, why: &'static str) {
        counter!("mesh_messages_moved_total", "service" => self.service, "why" => why).increment(1);
    }

    fn ended(&self, code: Code, took: Duration) {
        let make = |status| histogram!(DURATION, "service" => self.service, "status" => status);
        self.durations.record(code, took.as_secs_f64(), make);
    }
}

/// One message with all its attempts. Dropped before its end, its caller went away.
pub(super) struct Timing<'a> {
    meters: &'a Meters,
    since: Instant,
    ended: bool,
}

impl Timing<'_> {
    pub(super) fn end(mut self, code: Code) {
        self.ended = true;
        self.meters.ended(code, self.since.elapsed());
    }
}

impl Drop for Timing<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.meters.ended(Code::Cancelled, self.since.elapsed());
        }
    }
}

fn describe() {
    describe_gauge!("mesh_streams_open", "Streams to a service that take messages");
    describe_counter!(
        "mesh_message_attempts_total",
        "Messages put on a stream to a service, each time one was counted"
    );
    describe_histogram!(DURATION, "Messages to a service with all their attempts, by how they ended");
    describe_counter!("mesh_hedges_total", "Messages that stalled and were sent to another replica too");
    describe_counter!(
        "mesh_messages_moved_total",
        "Messages that left a replica unanswered, by why: broken, drained, refused"
    );
    describe_histogram!("mesh_credit_wait_seconds", "How long messages waited that found no credit");
}
