//! The gRPC face: checks the message, asks the store, maps the answer. Nothing is decided here.

use std::{pin::Pin, sync::Arc, time::Duration};

use futures_util::Stream;
use sightline_mesh::{
    Deadline, RpcError,
    server::Lifecycle,
    stream::{LoadMeter, StreamDrain},
};
use sightline_proto::ratelimiter::{
    CheckRequest, CheckResponse, CheckStreamRequest, CheckStreamResponse, RuleStatus, WhenAway as Away,
    check_stream_response::Result as Answer,
    rate_limiter_service_server::{RateLimiterService, SERVICE_NAME},
};
use sightline_telemetry::trace::{self, Parent};
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};
use tracing::{Instrument, instrument};

use crate::{
    error::CheckError,
    events::{Checked, Events},
    rules::{RuleSet, WhenAway},
    store::{Check, Decision, Store},
    stream::{self, Limits},
};

/// Keys of one check.
pub const MAX_KEYS: usize = 16;
/// Characters of a key.
pub const MAX_KEY_CHARS: usize = 64;
/// Characters of a key's value.
pub const MAX_VALUE_CHARS: usize = 256;
/// Characters of a tenant.
pub const MAX_TENANT_CHARS: usize = 128;
/// The largest message that could be valid: 16 keys and values and a tenant of 4-byte characters are 21 KB.
pub const MAX_MESSAGE_BYTES: usize = 32 << 10;

/// A caller that gives no deadline waits no longer than this for one check.
pub(crate) const LONGEST_CHECK: Duration = Duration::from_secs(5);

/// Whether a check or a rule may have this key.
pub(crate) fn is_key_name(key: &str) -> bool {
    !key.is_empty() && !longer_than(key, MAX_KEY_CHARS)
}

/// The service over any store.
pub(crate) struct Service<S> {
    decider: Arc<Decider<S>>,
    lifecycle: Lifecycle,
    limits: Limits,
}

impl<S: Store> Service<S> {
    pub(crate) fn new(rules: Arc<RuleSet>, store: Arc<S>, lifecycle: Lifecycle, limits: Limits) -> Self {
        Self { decider: Arc::new(Decider::new(rules, store, limits.undecided)), lifecycle, limits }
    }
}

#[tonic::async_trait]
impl<S: Store> RateLimiterService for Service<S> {
    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        let deadline = Deadline::from_metadata(request.metadata(), LONGEST_CHECK);
        let check = request.into_inner();
        let decided = deadline.bound("deciding the check", self.decider.decide(&check)).await?;
        Ok(Response::new(decided.map_err(RpcError::from)?))
    }

    type CheckStreamStream = Pin<Box<dyn Stream<Item = Result<CheckStreamResponse, Status>> + Send>>;

    /// Answers in the order of the questions. On drain what was read is answered, and what was not read or is refused was
    /// not charged.
    #[instrument(name = "ratelimiter.check_stream", skip_all)]
    async fn check_stream(
        &self,
        request: Request<Streaming<CheckStreamRequest>>,
    ) -> Result<Response<Self::CheckStreamStream>, Status> {
        let drain = StreamDrain::new(self.lifecycle.clone(), request.extensions());
        let drained = async move { drain.drained().await };
        let answers = stream::answers(Arc::clone(&self.decider), request.into_inner(), drained, self.limits);
        Ok(Response::new(Box::pin(answers)))
    }
}

/// Decides checks, and knows how many it is deciding.
pub(crate) struct Decider<S> {
    rules: Arc<RuleSet>,
    store: Arc<S>,
    events: Events,
    meter: LoadMeter,
}

impl<S: Store> Decider<S> {
    /// Full with `capacity` checks undecided, over all streams.
    pub(crate) fn new(rules: Arc<RuleSet>, store: Arc<S>, capacity: usize) -> Self {
        let events = Events::new(&rules);
        Self { rules, store, events, meter: LoadMeter::new(capacity) }
    }

    pub(crate) async fn answer(&self, message: CheckStreamRequest) -> CheckStreamResponse {
        let span = sightline_telemetry::continued_span!(
            Parent::read(&message.traceparent),
            "ratelimiter.check",
            otel.kind = "server",
            rpc.system = "grpc",
            rpc.service = SERVICE_NAME,
            rpc.method = "CheckStream",
        );
        let (working, since) = (self.meter.begin(), Instant::now());
        let decided = match &message.check {
            Some(check) => self.decide(check).instrument(span.clone()).await,
            None => {
                self.events.checked(Checked::Invalid, Duration::ZERO);
                Err(CheckError::Missing)
            }
        };
        let result = match decided {
            Ok(response) => {
                trace::ended(&span, 0, "");
                Answer::Response(response)
            }
            Err(error) => {
                let error = RpcError::from(error);
                trace::ended(&span, error.code as i32, &error.reason);
                Answer::Error(error.into())
            }
        };
        // A check does nothing but wait for its turn at the store.
        let load = Some(working.load(since.elapsed()));
        CheckStreamResponse { id: message.id, result: Some(result), load }
    }

    async fn decide(&self, request: &CheckRequest) -> Result<CheckResponse, CheckError> {
        let start = Instant::now();
        let decided = self.try_decide(request).await;
        let checked = decided.as_ref().map_or(Checked::Invalid, |(checked, _)| *checked);
        self.events.checked(checked, start.elapsed());
        decided.map(|(_, response)| response)
    }

    async fn try_decide(&self, request: &CheckRequest) -> Result<(Checked, CheckResponse), CheckError> {
        validate(request)?;
        let counters = self.rules.applying(&request.tenant, &request.keys, request.hits.max(1));
        let check = Check { tenant: &request.tenant, counters };
        let decision = self.store.check(&check).await?;
        if decision.degraded {
            check.counters.iter().for_each(|counter| self.events.degraded(counter.rule.index()));
        }
        let checked = match decision.refusal {
            Some(refusal) => Checked::Refused(check.counters[refusal.counter].rule.index()),
            None if check.counters.is_empty() => Checked::Unlimited,
            None => Checked::Allowed,
        };
        Ok((checked, response(&check, &decision)))
    }
}

fn validate(request: &CheckRequest) -> Result<(), CheckError> {
    if longer_than(&request.tenant, MAX_TENANT_CHARS) {
        return Err(CheckError::TenantTooLong);
    }
    if request.keys.len() > MAX_KEYS {
        return Err(CheckError::TooManyKeys(request.keys.len()));
    }
    for (key, value) in &request.keys {
        if !is_key_name(key) {
            return Err(CheckError::KeyName);
        }
        if value.is_empty() {
            return Err(CheckError::ValueEmpty(key.clone()));
        }
        if longer_than(value, MAX_VALUE_CHARS) {
            return Err(CheckError::ValueTooLong(key.clone()));
        }
    }
    Ok(())
}

/// Counts characters only where the bytes leave it open.
pub(crate) fn longer_than(text: &str, characters: usize) -> bool {
    text.len() > characters && text.chars().nth(characters).is_some()
}

fn response(check: &Check<'_>, decision: &Decision) -> CheckResponse {
    let rule = |index: usize| check.counters[index].rule;
    let status = |(index, standing): (usize, &crate::gcra::Standing)| RuleStatus {
        rule: rule(index).name().to_owned(),
        limit: rule(index).quota().burst(),
        remaining: standing.remaining,
        reset_after: on_the_wire(standing.reset_after),
        when_away: match (decision.degraded, rule(index).when_away()) {
            (false, _) => Away::Unspecified,
            (true, WhenAway::Open) => Away::Open,
            (true, WhenAway::Closed) => Away::Closed,
            (true, WhenAway::LocalShare) => Away::LocalShare,
        }
        .into(),
    };
    CheckResponse {
        degraded: decision.degraded,
        allowed: decision.refusal.is_none(),
        refused_by: decision.refusal.map_or(String::new(), |refusal| rule(refusal.counter).name().to_owned()),
        retry_after: decision.refusal.and_then(|refusal| on_the_wire(refusal.retry_after)),
        rules: decision.standings.iter().enumerate().map(status).collect(),
    }
}

/// A quota refills within a year, which a protobuf `Duration` holds; see [`Quota::new`](crate::gcra::Quota::new).
fn on_the_wire(duration: Duration) -> Option<prost_types::Duration> {
    duration.try_into().ok()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use metrics_exporter_prometheus::PrometheusBuilder;

    use super::*;
    use crate::store::memory::MemoryStore;

    fn service() -> Service<MemoryStore> {
        over(MemoryStore::new(10_000))
    }

    fn over<S: Store>(store: S) -> Service<S> {
        let rules = Arc::new(RuleSet::load("production").unwrap());
        let limits = Limits { in_flight: 8, undecided: 64, grace: Duration::from_secs(10) };
        Service::new(rules, Arc::new(store), Lifecycle::default(), limits)
    }

    fn request(key: &str, value: &str) -> Request<CheckRequest> {
        let keys = HashMap::from([(key.to_owned(), value.to_owned())]);
        Request::new(CheckRequest { tenant: "acme".into(), keys, hits: 0 })
    }

    #[tokio::test(start_paused = true)]
    async fn the_users_rate_of_production_is_refused_with_the_exact_wait() {
        let service = service();
        assert!(service.check(request("user", "u")).await.unwrap().into_inner().allowed);
        tokio::time::advance(Duration::from_nanos(1_234_000_001)).await;
        let refused = service.check(request("user", "u")).await.unwrap().into_inner();
        assert_eq!((refused.allowed, refused.refused_by.as_str()), (false, "user-interval"));
        assert_eq!(refused.retry_after, Some(prost_types::Duration { seconds: 3, nanos: 765_999_999 }));
        tokio::time::advance(Duration::from_nanos(3_765_999_998)).await;
        assert!(!service.check(request("user", "u")).await.unwrap().into_inner().allowed);
        tokio::time::advance(Duration::from_nanos(1)).await;
        assert!(service.check(request("user", "u")).await.unwrap().into_inner().allowed);
    }

    #[tokio::test]
    async fn a_stream_that_is_full_says_what_part_of_the_service_that_is() {
        let service = service();
        let working: Vec<_> = (1..8).map(|_| service.decider.meter.begin()).collect();
        let answer =
            service.decider.answer(CheckStreamRequest { id: 8, ..CheckStreamRequest::default() }).await;
        assert_eq!(answer.load.unwrap().occupancy, 8.0 / 64.0);
        drop(working);
    }

    #[tokio::test(start_paused = true)]
    async fn a_check_whose_deadline_has_passed_charges_nothing() {
        let service = service();
        let mut late = request("user", "u");
        late.metadata_mut().insert("grpc-timeout", "0m".parse().unwrap());
        let status = service.check(late).await.unwrap_err();
        assert_eq!(RpcError::from_status(&status).reason, sightline_mesh::reason::DEADLINE_EXCEEDED);
        assert!(service.check(request("user", "u")).await.unwrap().into_inner().allowed);
    }

    #[tokio::test(start_paused = true)]
    async fn checks_are_counted_without_saying_whose() {
        let recorder = PrometheusBuilder::new().build_recorder();
        let service = metrics::with_local_recorder(&recorder, service);
        for (key, value) in
            [("user", "u-4711"), ("user", "u-4711"), ("user", "u-4711"), ("device", "d"), ("user", "")]
        {
            let _ = service.check(request(key, value)).await;
        }
        let text = recorder.handle().render();
        for line in [
            "ratelimiter_checks_total{result=\"allowed\"} 1",
            "ratelimiter_checks_total{result=\"refused\"} 2",
            "ratelimiter_checks_total{result=\"unlimited\"} 1",
            "ratelimiter_checks_total{result=\"invalid\"} 1",
            "ratelimiter_refused_total{rule=\"user-interval\"} 2",
            "ratelimiter_check_duration_seconds_count 5",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert!(!text.contains("4711") && !text.contains("acme"), "{text}");
    }
}
