//! `envoy.service.ratelimit.v3.RateLimitService`: the same counters, asked by an Envoy or Istio gateway.
//!
//! [`descriptors`] finds the limit that a descriptor means; here the request becomes one check of all its limits, which
//! are charged together or not at all, as everywhere in this service. (The service that Envoy's users know counts each
//! descriptor by itself, and in fixed windows; ours lets the same number through at once and then one by one as they come
//! back, so no window of a unit's length sees more than twice the number, as there.)
//!
//! - Statuses come in the order of the descriptors. No limit: `OK` without `current_limit`. No domain: an error.
//! - `duration_until_reset` is the wait until this request would have room where it is over the limit, else until the
//!   limit is as if never used.
//! - A request that costs more than a limit ever lets through at once is over it, and charges nothing.

pub mod descriptors;

use std::{borrow::Cow, sync::Arc, time::Duration};

use metrics::{Counter as Metric, counter, describe_counter};
use sightline_mesh::{Deadline, RpcError};
use sightline_proto::envoy::{
    extensions::common::ratelimit::v3::{RateLimitDescriptor, rate_limit_descriptor::RateLimitOverride},
    service::ratelimit::v3::{
        RateLimitRequest, RateLimitResponse,
        rate_limit_response::{Code, DescriptorStatus, RateLimit, rate_limit},
        rate_limit_service_server::RateLimitService,
    },
};
use tonic::{Request, Response, Status};

use self::descriptors::{Domains, Found, Limit, Unit};
use crate::{
    rules::Counter,
    service::{LONGEST_CHECK, longer_than},
    store::{Check, Decision, Store},
};

/// Descriptors of one request, and entries of one descriptor: more than a gateway's routes have, and as many counters as our
/// own checks.
pub const MAX_DESCRIPTORS: usize = 64;
/// See [`MAX_DESCRIPTORS`].
pub const MAX_ENTRIES: usize = 16;
/// Characters of a domain, a key or a value.
pub const MAX_CHARS: usize = 256;

/// Requests of gateways decided, by `result`: `ok`, `over_limit`, `invalid`.
pub const REQUESTS: &str = "ratelimiter_envoy_requests_total";

/// The service over any store.
pub(crate) struct EnvoyService<S> {
    domains: Arc<Domains>,
    store: Arc<S>,
    ok: Metric,
    over_limit: Metric,
    invalid: Metric,
}

/// What applies to one descriptor.
enum Applied<'a> {
    Nothing,
    Unlimited,
    /// Always over.
    Blocked(&'a Limit),
    /// By the counter at this place of the check.
    Counted(Cow<'a, Limit>, usize),
}

impl<S: Store> EnvoyService<S> {
    pub(crate) fn new(domains: Arc<Domains>, store: Arc<S>) -> Self {
        describe_counter!(REQUESTS, "Requests of gateways decided, by result");
        let result = |result: &'static str| counter!(REQUESTS, "result" => result);
        Self {
            domains,
            store,
            ok: result("ok"),
            over_limit: result("over_limit"),
            invalid: result("invalid"),
        }
    }

    async fn decide(&self, request: &RateLimitRequest) -> Result<RateLimitResponse, RpcError> {
        validate(request)?;
        let found: Vec<Option<Found<'_>>> = request
            .descriptors
            .iter()
            .map(|asked| self.find(&request.domain, asked))
            .collect::<Result<_, _>>()?;
        let mut counters: Vec<Counter<'_>> = Vec::new();
        let mut applied = Vec::with_capacity(found.len());
        for (descriptor, found) in request.descriptors.iter().zip(&found) {
            applied.push(apply(found.as_ref(), hits(request, descriptor), &mut counters));
        }
        let blocked = applied.iter().any(|applied| matches!(applied, Applied::Blocked(_)));
        let too_much = counters.iter().any(|counter| u64::from(counter.hits) > counter.rule.quota().burst());
        let hits: Vec<u32> = counters.iter().map(|counter| counter.hits).collect();
        if blocked || too_much {
            // Over the limit whatever the others say: nothing is charged, and they only tell how they stand.
            counters.iter_mut().for_each(|counter| counter.hits = 0);
        }
        let check = Check { tenant: &request.domain, counters };
        let decision = self.store.check(&check).await.map_err(crate::error::CheckError::from)?;
        let refused = blocked || too_much || decision.refusal.is_some();
        let statuses =
            applied.iter().map(|applied| status(applied, refused, &check, &hits, &decision)).collect();
        let overall = if refused { Code::OverLimit } else { Code::Ok };
        Ok(RateLimitResponse { overall_code: overall.into(), statuses })
    }

    fn find<'a>(
        &'a self,
        domain: &str,
        asked: &'a RateLimitDescriptor,
    ) -> Result<Option<Found<'a>>, RpcError> {
        let Some(domain) = self.domains.get(domain) else { return Ok(None) };
        match &asked.limit {
            None => Ok(domain.find(&asked.entries)),
            Some(RateLimitOverride { requests_per_unit, unit }) => {
                let limit = Unit::from_override(*unit)
                    .and_then(|unit| Limit::brought_along(*requests_per_unit, unit))
                    .map_err(|problem| {
                        RpcError::invalid("LIMIT_INVALID", format!("`descriptors.limit` {problem}"))
                    })?;
                Ok(Some(Found { limit: Cow::Owned(limit), entries: &asked.entries }))
            }
        }
    }
}

#[tonic::async_trait]
impl<S: Store> RateLimitService for EnvoyService<S> {
    async fn should_rate_limit(
        &self,
        request: Request<RateLimitRequest>,
    ) -> Result<Response<RateLimitResponse>, Status> {
        let deadline = Deadline::from_metadata(request.metadata(), LONGEST_CHECK);
        let request = request.into_inner();
        let decided = deadline.bound("deciding the request", self.decide(&request)).await?;
        match &decided {
            Ok(response) if response.overall_code() == Code::OverLimit => self.over_limit.increment(1),
            Ok(_) => self.ok.increment(1),
            Err(_) => self.invalid.increment(1),
        }
        Ok(Response::new(decided?))
    }
}

fn validate(request: &RateLimitRequest) -> Result<(), RpcError> {
    let wrong = |reason, message: String| Err(RpcError::invalid(reason, message));
    if request.domain.is_empty() {
        return wrong("DOMAIN_EMPTY", "`domain` is empty: say whose limits are meant".into());
    }
    if request.descriptors.is_empty() {
        return wrong("DESCRIPTORS_EMPTY", "`descriptors` is empty: say what to count".into());
    }
    let count = request.descriptors.len();
    if count > MAX_DESCRIPTORS {
        return wrong(
            "TOO_MANY_DESCRIPTORS",
            format!("`descriptors` has {count} entries; at most {MAX_DESCRIPTORS}"),
        );
    }
    if request.descriptors.iter().any(|descriptor| descriptor.entries.len() > MAX_ENTRIES) {
        return wrong("TOO_MANY_ENTRIES", format!("a descriptor has more than {MAX_ENTRIES} `entries`"));
    }
    let entries = request.descriptors.iter().flat_map(|descriptor| &descriptor.entries);
    let mut texts = entries.flat_map(|entry| [&entry.key, &entry.value]).chain([&request.domain]);
    if texts.any(|text| longer_than(text, MAX_CHARS)) {
        return wrong(
            "TEXT_TOO_LONG",
            format!("`domain`, a key or a value has more than {MAX_CHARS} characters"),
        );
    }
    Ok(())
}

/// What a request costs a descriptor.
fn hits(request: &RateLimitRequest, descriptor: &RateLimitDescriptor) -> u32 {
    match descriptor.hits_addend {
        Some(hits) => u32::try_from(hits).unwrap_or(u32::MAX),
        None => request.hits_addend.max(1),
    }
}

/// Adds a descriptor's counter to the check; one that is there already is charged for both.
fn apply<'a>(found: Option<&'a Found<'a>>, hits: u32, counters: &mut Vec<Counter<'a>>) -> Applied<'a> {
    let Some(found) = found else { return Applied::Nothing };
    let limit: &'a Limit = &found.limit;
    let Some(rule) = limit.rule() else {
        return if limit.is_unlimited() { Applied::Unlimited } else { Applied::Blocked(limit) };
    };
    let values: Vec<&str> =
        found.entries.iter().flat_map(|entry| [entry.key.as_str(), entry.value.as_str()]).collect();
    let known =
        counters.iter().position(|counter| counter.rule.name() == rule.name() && counter.values == values);
    let place = known.unwrap_or_else(|| {
        counters.push(Counter { rule, values, hits: 0 });
        counters.len() - 1
    });
    counters[place].hits = counters[place].hits.saturating_add(hits);
    Applied::Counted(Cow::Borrowed(limit), place)
}

fn status(
    applied: &Applied<'_>,
    refused: bool,
    check: &Check<'_>,
    hits: &[u32],
    decision: &Decision,
) -> DescriptorStatus {
    match applied {
        Applied::Nothing => DescriptorStatus { code: Code::Ok.into(), ..DescriptorStatus::default() },
        Applied::Unlimited => DescriptorStatus {
            code: Code::Ok.into(),
            limit_remaining: u32::MAX,
            ..DescriptorStatus::default()
        },
        Applied::Blocked(limit) => DescriptorStatus {
            code: Code::OverLimit.into(),
            current_limit: Some(shown(limit)),
            ..DescriptorStatus::default()
        },
        Applied::Counted(limit, place) => {
            let (standing, hits) = (decision.standings[*place], hits[*place]);
            let over = refused && standing.remaining < u64::from(hits);
            let wait = match decision.refusal {
                _ if !over => standing.reset_after,
                Some(refusal) if refusal.counter == *place => refusal.retry_after,
                _ => check.counters[*place].rule.quota().wait(standing.reset_after, hits),
            };
            DescriptorStatus {
                code: if over { Code::OverLimit } else { Code::Ok }.into(),
                current_limit: Some(shown(limit)),
                limit_remaining: u32::try_from(standing.remaining).unwrap_or(u32::MAX),
                duration_until_reset: on_the_wire(wait),
            }
        }
    }
}

fn shown(limit: &Limit) -> RateLimit {
    RateLimit {
        requests_per_unit: limit.requests_per_unit(),
        unit: rate_limit::Unit::from(limit.unit()).into(),
        name: limit.shown_name().to_owned(),
    }
}

/// No quota refills for longer than a year, which a protobuf `Duration` holds.
fn on_the_wire(duration: Duration) -> Option<prost_types::Duration> {
    duration.try_into().ok()
}
