//! One attempt: an endpoint, a request, and the answer's beginning or the reason why there is none.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Method as HttpMethod, Request, Response, Uri, Version};
use sightline_telemetry::trace::Parent;
use tokio::time::Instant;
use tonic::{Code, Status, body::Body};
use tower::ServiceExt;

use super::{
    super::{EndpointId, Outcome, Pick, Picked, TransportError, channel::Shared},
    observe::{AttemptRecord, CallRecord, Method, Nth},
    replay::Replay,
    tree::{AttemptBudget, Loan},
    verdict::Verdict,
};
use crate::{
    Deadline, RpcError,
    deadline::never_indexed,
    names::{ATTEMPTS_LEFT, GRPC_TIMEOUT, PREVIOUS_ATTEMPTS, TRACEPARENT},
};

/// One call and everything that its attempts have in common.
pub(crate) struct Call {
    pub(crate) shared: Arc<Shared>,
    pub(crate) method: Arc<Method>,
    pub(crate) uri: Uri,
    pub(crate) headers: HeaderMap,
    pub(crate) replay: Replay,
    pub(crate) deadline: Option<Deadline>,
    pub(crate) attempts: AttemptBudget,
    pub(crate) key: Option<u64>,
    pub(crate) tried: Mutex<Vec<EndpointId>>,
    pub(crate) record: CallRecord,
}

/// How an attempt went.
pub(crate) enum Attempted {
    /// The answer has begun: there will be no other.
    Begun(Response<Body>, Flight),
    /// It ended; what the caller gets if no other attempt follows.
    Ended(Verdict, Result<Response<Body>, Status>),
}

impl Call {
    /// Sends the call once more.
    pub(crate) async fn attempt(&self, nth: Nth) -> Attempted {
        let picked = match self.pick().await {
            Ok(picked) => picked,
            Err(error) => return Attempted::Ended(Verdict::no_endpoint(&error), Err(error.into())),
        };
        let Some(transport) = picked.transport() else {
            let lost = TransportError::status(Code::Unavailable, "the connection was just lost", true);
            return Attempted::Ended(Verdict::of_status(&lost), Err(lost));
        };
        self.tried.lock().expect("no holder panics").push(picked.endpoint().id());
        let record = AttemptRecord::new(&self.method, self.record.span(), nth, picked.endpoint().address());
        let loan = self.attempts.lend(self.method.policy.extra().saturating_sub(nth.previous));
        let flight = Flight { picked, loan, record };
        let sending = transport.oneshot(self.request(nth.previous, &flight));
        let answer = match self.method.policy.attempt_timeout {
            None => sending.await,
            Some(timeout) => match tokio::time::timeout(timeout, sending).await {
                Ok(answer) => answer,
                Err(_) => {
                    let verdict = Verdict::timed_out();
                    flight.end(verdict.code, verdict.outcome(), Unused::Unknown);
                    let status = RpcError::deadline(&format!("one attempt, after {timeout:?}"));
                    return Attempted::Ended(verdict, Err(status.into()));
                }
            },
        };
        self.read(answer, flight)
    }

    async fn pick(&self) -> Result<Picked, RpcError> {
        /// Whoever has no deadline waits for an endpoint as long as the cluster's patience lasts.
        const NO_DEADLINE: Duration = Duration::from_secs(365 * 24 * 3600);
        let avoid = self.tried.lock().expect("no holder panics").clone();
        let deadline = self.deadline.unwrap_or_else(|| Deadline::after(NO_DEADLINE));
        self.shared.cluster.pick(Pick { deadline, key: self.key, avoid: &avoid }).await
    }

    fn request(&self, number: u32, flight: &Flight) -> Request<Body> {
        let mut request = Request::new(self.replay.body(&flight.record.sent));
        *request.method_mut() = HttpMethod::POST;
        *request.version_mut() = Version::HTTP_2;
        request.uri_mut().clone_from(&self.uri);
        let headers = request.headers_mut();
        headers.clone_from(&self.headers);
        if let Some(deadline) = self.deadline {
            headers.insert(&GRPC_TIMEOUT, deadline.header());
        }
        if number > 0 {
            headers.insert(&PREVIOUS_ATTEMPTS, HeaderValue::from(number));
        }
        headers.insert(&ATTEMPTS_LEFT, flight.loan.header());
        let trace = Parent::of(flight.record.span()).traceparent();
        let trace = Some(trace).filter(|text| !text.is_empty());
        if let Some(mut value) = trace.and_then(|text| text.parse::<HeaderValue>().ok()) {
            never_indexed(&mut value);
            headers.insert(&TRACEPARENT, value);
        }
        request
    }

    fn read(&self, answer: Result<Response<Body>, Status>, mut flight: Flight) -> Attempted {
        match answer {
            Ok(response) => match Verdict::of_head(&response) {
                None => {
                    self.shared.answered(false);
                    flight.picked.answered();
                    Attempted::Begun(response, flight)
                }
                Some(verdict) => {
                    self.shared.answered(verdict.shed.is_some());
                    flight.end(verdict.code, verdict.outcome(), Unused::Said(response.headers()));
                    Attempted::Ended(verdict, Ok(response))
                }
            },
            Err(status) => {
                if let Some(own) = self.replay.failed() {
                    flight.end(own.code(), Outcome::Cancelled, Unused::Unknown);
                    return Attempted::Ended(Verdict::of_status(&own), Err(own));
                }
                let verdict = Verdict::of_status(&status);
                let unused = if verdict.unsent { Unused::All } else { Unused::Unknown };
                flight.end(verdict.code, verdict.outcome(), unused);
                Attempted::Ended(verdict, Err(status))
            }
        }
    }
}

/// An attempt that is under way. Dropped, it was cancelled: its endpoint is not blamed, and what was lent stays lost.
pub(crate) struct Flight {
    picked: Picked,
    loan: Loan,
    pub(crate) record: AttemptRecord,
}

/// What is known of the attempts lent to a server.
#[derive(Clone, Copy)]
pub(crate) enum Unused<'a> {
    /// It may say so here.
    Said(&'a HeaderMap),
    /// It never got them.
    All,
    /// Nobody knows.
    Unknown,
}

impl Flight {
    /// The attempt has ended.
    pub(crate) fn end(self, code: Code, outcome: Outcome, unused: Unused<'_>) {
        match unused {
            Unused::Said(headers) => self.loan.settle(headers),
            Unused::All => self.loan.unsent(),
            Unused::Unknown => drop(self.loan),
        }
        self.record.end(code);
        self.picked.done(outcome);
    }
}

/// Now, and so long from now unless that is past `deadline`.
pub(crate) fn within(delay: Duration, deadline: Option<Deadline>) -> Option<Instant> {
    // A server may ask for more than a clock can count: nobody waits for that either.
    let at = Instant::now().checked_add(delay)?;
    deadline.is_none_or(|deadline| at < deadline.instant()).then_some(at)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pause_that_nobody_waits_for_is_none() {
        let (second, now) = (Duration::from_secs(1), Instant::now());
        assert_eq!(within(second, None), Some(now + second));
        assert_eq!(within(second, Some(Deadline::after(2 * second))), Some(now + second));
        assert_eq!(within(second, Some(Deadline::after(second))), None);
        // What a peer's RetryInfo may say.
        for delay in [Duration::MAX, Duration::from_secs(i64::MAX as u64)] {
            assert_eq!(within(delay, None), None);
        }
    }
}
