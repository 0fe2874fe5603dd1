//! Where counters live. A store decides; it knows nothing of gRPC.

#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod memory;
pub mod redis;

use std::{sync::Arc, time::Duration};

use crate::{gcra::Standing, rules::Counter};

/// What a store is asked.
#[derive(Debug, Clone)]
pub struct Check<'a> {
    /// Part of every counter's identity.
    pub tenant: &'a str,
    /// The rules that apply, in the order of the file, with what the check costs each; no counter twice.
    pub counters: Vec<Counter<'a>>,
}

impl Check<'_> {
    /// Refuses a check that no wait could make pass.
    ///
    /// # Errors
    /// [`StoreError::HitsOverBurst`] naming the first rule that it is too much for.
    pub fn fits(&self) -> Result<(), StoreError> {
        let over = |counter: &&Counter<'_>| u64::from(counter.hits) > counter.rule.quota().burst();
        match self.counters.iter().find(over) {
            None => Ok(()),
            Some(counter) => Err(StoreError::HitsOverBurst {
                hits: counter.hits,
                rule: counter.rule.name().to_owned(),
                burst: counter.rule.quota().burst(),
            }),
        }
    }
}

/// What a store answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// `None`: every counter had room and was charged. Else none was.
    pub refusal: Option<Refusal>,
    /// How each counter of the check stands after the decision, in the check's order.
    pub standings: Vec<Standing>,
    /// The counters that replicas share could not be reached: each rule did what its `when_away` says.
    pub degraded: bool,
}

/// Why not, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The counter, by its place in the check, that makes the caller wait longest; of equals the first.
    pub counter: usize,
    /// After exactly this long the same check would pass if nobody else asks.
    pub retry_after: Duration,
}

impl Decision {
    /// Nothing applied, so nothing refused.
    pub fn unlimited() -> Self {
        Self { refusal: None, standings: Vec::new(), degraded: false }
    }
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

/// The store that the configuration chose.
#[derive(Debug)]
pub enum AnyStore {
    /// Counters of this process.
    Memory(Arc<memory::MemoryStore>),
    /// Counters that replicas share.
    Redis(redis::RedisStore),
}

impl Store for AnyStore {
    async fn check(&self, check: &Check<'_>) -> Result<Decision, StoreError> {
        match self {
            Self::Memory(memory) => memory.decide(check),
            Self::Redis(redis) => redis.check(check).await,
        }
    }
}
