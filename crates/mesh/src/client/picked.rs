//! A call in flight.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;
use tonic::Code;

use super::{Endpoint, Transport, breaker::is_failure};

/// How a call ended, for load and breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Answered with `OK`.
    Success,
    /// Ended with this code. What it says of the endpoint is decided here: the caller's own mistakes count as answers.
    Failure(Code),
    /// The caller no longer waits, or nothing was sent: says nothing for or against the endpoint but how long it kept silent.
    Cancelled,
}

/// One call or message in flight on an endpoint, counted until [`Picked::done`] or until it is dropped, which says
/// [`Outcome::Cancelled`].
#[derive(Debug)]
#[must_use = "dropping it ends the call's count at once"]
pub struct Picked {
    endpoint: Arc<Endpoint>,
    transport: Option<Transport>,
    since: Instant,
    probe: bool,
    answered: bool,
    over: bool,
}

impl Picked {
    pub(super) fn new(endpoint: Arc<Endpoint>, transport: Option<Transport>, probe: bool) -> Self {
        Self { endpoint, transport, since: Instant::now(), probe, answered: false, over: false }
    }

    /// The endpoint's connection as it was when it was picked. `None` if there was none: only after [`Endpoint::begin`],
    /// [`super::Cluster::pick`] gives none without.
    pub fn transport(&self) -> Option<Transport> {
        self.transport.clone()
    }

    pub(super) fn is_connected(&self) -> bool {
        self.transport.is_some()
    }

    /// Which endpoint.
    pub fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// Whether it is the one call that tries a half-open endpoint, and has no answer yet.
    pub fn is_probe(&self) -> bool {
        self.probe
    }

    /// The first part of the answer has come: latency ends here, though the call stays in flight until it is done. For
    /// streams, whose length says nothing of the server. A call that tried a half-open endpoint has found it working: others
    /// need not wait for its end, which counts as that of any call.
    pub fn answered(&mut self) {
        if !std::mem::replace(&mut self.answered, true) {
            let now = Instant::now();
            self.endpoint.meter().answered(now - self.since, now);
            if std::mem::take(&mut self.probe) {
                self.endpoint.tried(Some(true), now);
            }
        }
    }

    /// The call has ended: its latency and outcome count.
    pub fn done(mut self, outcome: Outcome) {
        self.finish(outcome);
    }

    fn finish(&mut self, outcome: Outcome) {
        if std::mem::replace(&mut self.over, true) {
            return;
        }
        let now = Instant::now();
        let success = match outcome {
            Outcome::Success => Some(true),
            Outcome::Failure(Code::ResourceExhausted | Code::Cancelled) | Outcome::Cancelled => None,
            Outcome::Failure(code) => Some(!is_failure(code)),
        };
        // A connection that broke under its calls has turned the endpoint away already, and may be a new process's next.
        let lost = outcome == Outcome::Failure(Code::Unavailable)
            && self.transport.as_ref().is_some_and(|transport| !transport.is_open());
        let shed = outcome == Outcome::Failure(Code::ResourceExhausted);
        self.measure(now - self.since, success, shed, now);
        // Who sheds is alive: enough for a probe.
        let verdict = match success {
            _ if shed && self.probe => Some(true),
            _ if lost => None,
            success => success,
        };
        self.endpoint.ended(verdict, self.probe);
    }

    fn measure(&self, latency: Duration, success: Option<bool>, shed: bool, now: Instant) {
        let mut meter = self.endpoint.meter();
        match (success, self.answered) {
            (Some(false), false) => meter.failed(latency, now),
            (Some(false), true) => meter.failed_late(now),
            (None, false) if shed => meter.failed(latency, now),
            (Some(true), false) => meter.answered(latency, now),
            // It kept silent at least so long: a peak if it is one, and no sign of life.
            (None, false) => meter.gave_up(latency, now),
            (_, true) => {}
        }
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        self.finish(Outcome::Cancelled);
    }
}
