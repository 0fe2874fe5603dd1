//! This process's time, by which it remembers what Redis said.

use std::time::{Duration, Instant};

use super::wire::Times;

#[cfg(any(test, feature = "conformance"))]
use std::sync::{Arc, atomic::AtomicU64};

/// How long a key outlives its counter, in milliseconds: see `gcra.lua`.
const GRACE_MS: u64 = 1000;
/// With a clock that a test sets, keys must not expire by Redis's real one.
#[cfg(any(test, feature = "conformance"))]
const TEST_GRACE_MS: u64 = 600_000;

/// Counts microseconds.
#[derive(Debug, Clone)]
pub enum Clock {
    /// Redis decides by its own clock; this process remembers by its monotonic one.
    Real(Instant),
    /// Both go by a number that the test sets, so that waits are exact.
    #[cfg(any(test, feature = "conformance"))]
    Set(Arc<AtomicU64>),
}

impl Clock {
    /// Starts now.
    pub fn real() -> Self {
        Self::Real(Instant::now())
    }

    /// Microseconds since some point in time.
    pub(super) fn now(&self) -> u64 {
        match self {
            Self::Real(origin) => {
                u64::try_from(origin.elapsed().as_micros()).expect("a process does not run for 584,000 years")
            }
            #[cfg(any(test, feature = "conformance"))]
            Self::Set(micros) => micros.load(std::sync::atomic::Ordering::SeqCst),
        }
    }

    /// What the script is told; keys are kept `keep` longer than needed.
    pub(super) fn times(&self, keep: Duration) -> Times {
        let spare = u64::try_from(keep.as_micros()).expect("a day at most");
        match self {
            Self::Real(_) => Times { now: 0, grace_ms: GRACE_MS, spare },
            #[cfg(any(test, feature = "conformance"))]
            Self::Set(_) => Times { now: self.now(), grace_ms: TEST_GRACE_MS, spare },
        }
    }
}
