//! How a call is turned away: the answer, and its count.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use metrics::{counter, describe_counter};
use rand::{Rng, SeedableRng, rngs::StdRng};
use tonic::{Code, Status};

use crate::RpcError;

/// A server may ask clients to come back after so many milliseconds (gRFC A6).
const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// Randomness that a simulation can repeat.
#[derive(Debug, Clone)]
pub(super) struct Jitter(Arc<Mutex<StdRng>>);

impl Jitter {
    pub(super) fn new(seed: Option<u64>) -> Self {
        let random = seed.map_or_else(StdRng::from_os_rng, StdRng::seed_from_u64);
        Self(Arc::new(Mutex::new(random)))
    }

    /// A duration within `part` of `middle`, above or below.
    pub(super) fn around(&self, middle: Duration, part: f64) -> Duration {
        let random: f64 = self.0.lock().unwrap_or_else(PoisonError::into_inner).random();
        middle.mul_f64(1.0 + part * (2.0 * random - 1.0))
    }
}

/// `RESOURCE_EXHAUSTED`, with the time after which to try again.
#[derive(Debug, Clone)]
pub(super) struct Refusals {
    server: &'static str,
    retry_after: Duration,
    jitter: Jitter,
}

impl Refusals {
    pub(super) fn new(server: &'static str, retry_after: Duration, jitter: Jitter) -> Self {
        describe_counter!(
            "calls_refused_total",
            "Calls turned away before they were worked on, by what was full (calls, streams, watches, peer, receiving)"
        );
        Self { server, retry_after, jitter }
    }

    /// Counts a refusal because `full` was, and answers it.
    pub(super) fn status(&self, full: &'static str, reason: &'static str, message: String) -> Status {
        counter!("calls_refused_total", "server" => self.server, "full" => full).increment(1);
        let after = self.jitter.around(self.retry_after, 0.5);
        let error = RpcError::new(Code::ResourceExhausted, reason, message).retry_after(after);
        let mut status = Status::from(error);
        if let Ok(value) = after.as_millis().to_string().parse() {
            status.metadata_mut().insert(PUSHBACK, value);
        }
        status
    }
}
