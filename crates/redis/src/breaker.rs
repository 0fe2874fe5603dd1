//! The circuit breaker: a count of failures in a row, and whether callers are let through.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// Starts open: nothing is let through before the first probe was answered.
#[derive(Debug)]
pub struct Breaker {
    open: AtomicBool,
    failures: AtomicU32,
    threshold: u32,
}

impl Breaker {
    /// Opens after `threshold` failures in a row, at least one.
    pub fn new(threshold: u32) -> Self {
        Self { open: AtomicBool::new(true), failures: AtomicU32::new(0), threshold: threshold.max(1) }
    }

    /// Whether callers are turned away.
    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    /// An answer came in time.
    pub fn succeeded(&self) {
        // Read first: on the busy path the line stays shared among cores.
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
    }

    /// None came; true when this one opened it.
    pub fn failed(&self) -> bool {
        let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        failures >= self.threshold && self.trip()
    }

    /// Opens it whatever was counted; true when it was not open.
    pub fn trip(&self) -> bool {
        !self.open.swap(true, Ordering::AcqRel)
    }

    /// A probe was answered: callers are let through, and the first that fails opens it again; true when it was open.
    pub fn close(&self) -> bool {
        self.failures.store(self.threshold - 1, Ordering::Relaxed);
        self.open.swap(false, Ordering::AcqRel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_opens_after_failures_in_a_row_and_tries_carefully_again() {
        let breaker = Breaker::new(3);
        assert!(breaker.is_open(), "until the first probe");
        assert!(breaker.close());
        breaker.succeeded();
        for _ in 0..10 {
            assert!(!breaker.failed() && !breaker.failed());
            breaker.succeeded();
        }
        assert!(!breaker.failed() && !breaker.failed() && !breaker.is_open());
        assert!(breaker.failed() && breaker.is_open());
        assert!(!breaker.failed(), "it is open already");
        assert!(breaker.close());
        assert!(breaker.failed(), "just closed, one failure is enough");
    }
}
