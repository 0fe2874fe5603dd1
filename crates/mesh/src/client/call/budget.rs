//! How many extra attempts a service is sent: a share of its calls.
//!
//! As in linkerd's retry budget and gRPC's throttling of retries (gRFC A6): repeats help when few calls fail, and make
//! an outage worse when all do. Every call pays in a fraction of an attempt, every retry and every hedge takes out a
//! whole one.

use std::time::Duration;

use tokio::time::Instant;

/// Settings of [`RetryBudget`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RetryBudgetOptions {
    /// Extra attempts per call. The default of 0.08 keeps what retries add in a total failure below a tenth.
    pub ratio: f64,
    /// Extra attempts per second that a service may have however few calls it gets: 1.
    pub min_per_second: f64,
    /// The most attempts that may be saved up: 100, so that all calls in flight on one lost replica can move at once.
    pub burst: f64,
}

impl Default for RetryBudgetOptions {
    fn default() -> Self {
        Self { ratio: 0.08, min_per_second: 1.0, burst: 100.0 }
    }
}

/// For so long [`RetryBudgetOptions::min_per_second`] is saved up; a new budget begins with as much.
const RESERVE: Duration = Duration::from_secs(10);

/// A token bucket: one token is one extra attempt.
#[derive(Debug)]
pub struct RetryBudget {
    options: RetryBudgetOptions,
    tokens: f64,
    refilled: Instant,
}

impl RetryBudget {
    /// A budget that begins with ten seconds' worth of `min_per_second`: what a larger balance allows must be earned
    /// by calls, so that a process that starts into an outage adds little to it.
    pub fn new(options: RetryBudgetOptions, now: Instant) -> Self {
        let mut budget = Self { options, tokens: 0.0, refilled: now };
        budget.tokens = budget.reserve();
        budget
    }

    fn reserve(&self) -> f64 {
        (self.options.min_per_second * RESERVE.as_secs_f64()).min(self.options.burst)
    }

    /// A call was begun.
    pub fn deposit(&mut self) {
        self.tokens = (self.tokens + self.options.ratio).min(self.options.burst.max(self.tokens));
    }

    /// Takes an extra attempt out, if there is one.
    pub fn withdraw(&mut self, now: Instant) -> bool {
        let elapsed = now.saturating_duration_since(self.refilled).as_secs_f64();
        self.refilled = now;
        let reserve = self.reserve();
        if self.tokens < reserve {
            self.tokens = (self.tokens + elapsed * self.options.min_per_second).min(reserve);
        }
        let enough = self.tokens >= 1.0;
        if enough {
            self.tokens -= 1.0;
        }
        enough
    }

    /// Gives back an attempt that was taken out and not made.
    pub fn give_back(&mut self) {
        self.tokens += 1.0;
    }

    /// How many extra attempts are left, not counting what time has added.
    pub fn tokens(&self) -> f64 {
        self.tokens
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: RetryBudgetOptions = RetryBudgetOptions { ratio: 0.08, min_per_second: 1.0, burst: 100.0 };

    #[tokio::test(start_paused = true)]
    async fn a_total_failure_adds_less_than_a_tenth() {
        let mut budget = RetryBudget::new(OPTIONS, Instant::now());
        let mut extra = 0;
        // 2,000 calls a second, each of which fails and would be tried twice more.
        for _ in 0..20_000 {
            tokio::time::advance(Duration::from_micros(500)).await;
            budget.deposit();
            extra += (0..2).filter(|_| budget.withdraw(Instant::now())).count();
        }
        assert!((1_600..2_000).contains(&extra), "{extra} of 20000");
    }

    #[tokio::test(start_paused = true)]
    async fn few_calls_have_a_minimum_and_a_calm_is_not_saved_up_for_ever() {
        let mut budget = RetryBudget::new(OPTIONS, Instant::now());
        let drain = |budget: &mut RetryBudget| (0..1000).filter(|_| budget.withdraw(Instant::now())).count();
        assert_eq!(drain(&mut budget), 10, "the reserve");
        assert_eq!(drain(&mut budget), 0);
        tokio::time::advance(Duration::from_secs(3)).await;
        assert_eq!(drain(&mut budget), 3);
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(drain(&mut budget), 10);
        (0..100_000).for_each(|_| budget.deposit());
        assert_eq!(drain(&mut budget), 100, "the burst");
    }

    #[tokio::test(start_paused = true)]
    async fn an_attempt_that_was_not_made_is_given_back() {
        let options = RetryBudgetOptions { ratio: 0.0, min_per_second: 0.0, burst: 5.0 };
        let mut budget = RetryBudget::new(options, Instant::now());
        assert!(!budget.withdraw(Instant::now()));
        budget.give_back();
        assert!(budget.withdraw(Instant::now()) && !budget.withdraw(Instant::now()));
    }
}
