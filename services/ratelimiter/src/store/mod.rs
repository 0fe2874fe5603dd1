//! Where counters live. A store decides; it knows nothing of gRPC.

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod memory;

use std::time::Duration;

use crate::{gcra::Standing, rules::Counter};

/// What a store is asked.
#[derive(Debug, Clone)]
pub struct Check<'a> {
    /// Part of every counter's identity.
    pub tenant: &'a str,
    /// The rules that apply, each at most once, in the order of the file.
    pub counters: Vec<Counter<'a>>,
    /// What it costs, at least 1.
    pub hits: u32,
}

/// What a store answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// `None`: every counter had room and was charged. Else none was.
    pub refusal: Option<Refusal>,
    /// How each counter of the check stands after the decision, in the check's order.
    pub standings: Vec<Standing>,
}

/// Why not, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The counter, by its place in the check, that makes the caller wait longest; of equals the first.
    pub counter: usize,
    /// After exactly this long the same check would pass if nobody else asks.
    pub retry_after: Duration,
}

/// Why a store did not decide. Nothing was charged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The check can never pass.
    #[error("`hits` is {hits}; rule {rule:?} never lets more than {burst} come at once")]
    HitsOverBurst {
        /// As asked.
        hits: u32,
        /// The first rule it is too much for.
        rule: String,
        /// What that rule allows.
        burst: u64,
    },
}

/// Counters, charged together or not at all. Every implementation passes the suite in `conformance`.
pub trait Store: Send + Sync + 'static {
    /// Decides a check by all its counters in one step: either every counter has room and is charged, or none is.
    ///
    /// # Errors
    /// [`StoreError`].
    fn check(&self, check: &Check<'_>) -> impl Future<Output = Result<Decision, StoreError>> + Send;
}
