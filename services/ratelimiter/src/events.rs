//! What is counted, in one place. No label ever carries a tenant, a user or any other value of a check.

use std::time::Duration;

use metrics::{
    Counter, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram,
};

use crate::rules::{Rule, RuleSet};

/// Checks decided, by `result`: `allowed`, `refused`, `unlimited` (no rule applied), `invalid`.
pub const CHECKS: &str = "ratelimiter_checks_total";
/// Checks refused, by the `rule` that made the caller wait longest.
pub const REFUSED: &str = "ratelimiter_refused_total";
/// Seconds from a check's arrival to its decision.
pub const CHECK_DURATION: &str = "ratelimiter_check_duration_seconds";
/// Counters kept, as of the last sweep.
pub const KEYS: &str = "ratelimiter_keys";
/// Counters still in use that were forgotten because `ratelimiter.max_keys` was reached.
pub const EVICTED: &str = "ratelimiter_evicted_total";

/// Checks refused by what Redis said a moment before, without asking it again.
pub const DENIED_LOCALLY: &str = "ratelimiter_denied_locally_total";
/// Decisions of a rule while the shared counters were away, by `rule` and what it did (`when_away`).
pub const DEGRADED: &str = "ratelimiter_degraded_total";

/// Handles that are looked up once, not per check. Made after the metrics recorder is installed.
#[derive(Clone)]
pub(crate) struct Events {
    allowed: Counter,
    refused: Counter,
    unlimited: Counter,
    invalid: Counter,
    refused_by: Vec<Counter>,
    degraded: Vec<Counter>,
    duration: Histogram,
}

/// How a check went.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Checked {
    Allowed,
    /// By the rule with this index.
    Refused(usize),
    Unlimited,
    Invalid,
}

impl Events {
    pub(crate) fn new(rules: &RuleSet) -> Self {
        describe_counter!(CHECKS, "Checks decided, by result");
        describe_counter!(REFUSED, "Checks refused, by the rule with the longest wait");
        describe_histogram!(CHECK_DURATION, Unit::Seconds, "From a check's arrival to its decision");
        describe_gauge!(KEYS, "Counters kept, as of the last sweep");
        describe_counter!(EVICTED, "Counters in use that were forgotten because max_keys was reached");
        describe_counter!(DENIED_LOCALLY, "Checks refused by what Redis said a moment before");
        describe_counter!(DEGRADED, "Decisions of a rule while the shared counters were away");
        let degraded = |rule: &Rule| counter!(DEGRADED, "rule" => rule.name().to_owned(), "when_away" => rule.when_away().name());
        Self {
            allowed: counter!(CHECKS, "result" => "allowed"),
            refused: counter!(CHECKS, "result" => "refused"),
            unlimited: counter!(CHECKS, "result" => "unlimited"),
            invalid: counter!(CHECKS, "result" => "invalid"),
            refused_by: rules
                .iter()
                .map(|rule| counter!(REFUSED, "rule" => rule.name().to_owned()))
                .collect(),
            degraded: rules.iter().map(degraded).collect(),
            duration: histogram!(CHECK_DURATION),
        }
    }

    /// The rule with this index decided without its shared counters.
    pub(crate) fn degraded(&self, rule: usize) {
        self.degraded[rule].increment(1);
    }

    pub(crate) fn checked(&self, checked: Checked, took: Duration) {
        self.duration.record(took.as_secs_f64());
        match checked {
            Checked::Allowed => self.allowed.increment(1),
            Checked::Refused(rule) => {
                self.refused.increment(1);
                self.refused_by[rule].increment(1);
            }
            Checked::Unlimited => self.unlimited.increment(1),
            Checked::Invalid => self.invalid.increment(1),
        }
    }
}

/// The handle for [`EVICTED`].
pub(crate) fn evicted() -> Counter {
    counter!(EVICTED)
}

/// The handle for [`DENIED_LOCALLY`].
pub(crate) fn denied_locally() -> Counter {
    counter!(DENIED_LOCALLY)
}

/// Sets [`KEYS`].
#[allow(clippy::cast_precision_loss)] // exact up to 2^53 counters
pub(crate) fn keys(count: usize) {
    gauge!(KEYS).set(count as f64);
}
