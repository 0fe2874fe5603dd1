//! When to ask again: after an answer by its TTL, after a failure with growing pauses, both spread by chance so that
//! replicas started together do not ask together for ever. Decisions only: no clock and no network.

use std::time::Duration;

use rand::{Rng, SeedableRng, rngs::StdRng};

/// Where a pause ends up: between so much less and so much more of it; after an answer only less, for it ages.
const SPREAD: f64 = 0.2;

/// The bounds of [`Pace`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PaceOptions {
    /// The shortest time an answer is used. TTLs of 0 exist, and a name server is no place to poll.
    pub floor: Duration,
    /// The longest time an answer is used: a new replica is found within it whatever the TTL says.
    pub ceiling: Duration,
    /// The pause after the first failure in a row.
    pub first_retry: Duration,
    /// The longest pause after many; each is twice the one before until then.
    pub last_retry: Duration,
}

/// Chooses pauses.
#[derive(Debug)]
pub(super) struct Pace {
    options: PaceOptions,
    failures: u32,
    random: StdRng,
}

impl Pace {
    /// `seed` makes the pauses repeatable; `None` draws one.
    pub(super) fn new(options: PaceOptions, seed: Option<u64>) -> Self {
        let random = StdRng::seed_from_u64(seed.unwrap_or_else(|| rand::rng().random()));
        Self { options, failures: 0, random }
    }

    /// The pause after an answer that is valid for `ttl`.
    pub(super) fn after_answer(&mut self, ttl: Duration) -> Duration {
        self.failures = 0;
        let PaceOptions { floor, ceiling, .. } = self.options;
        let pause = ttl.min(ceiling).max(floor).mul_f64(self.random.random_range(1.0 - SPREAD..=1.0));
        // Spread, it still keeps the floor: that bound protects the name server.
        pause.max(floor)
    }

    /// The pause after a failure.
    pub(super) fn after_failure(&mut self) -> Duration {
        let PaceOptions { first_retry, last_retry, .. } = self.options;
        let pause = first_retry.saturating_mul(1 << self.failures.min(16)).min(last_retry);
        self.failures = self.failures.saturating_add(1);
        self.spread(pause)
    }

    /// Failures are over.
    pub(super) fn reset(&mut self) {
        self.failures = 0;
    }

    /// A pause of about this length.
    pub(super) fn spread(&mut self, pause: Duration) -> Duration {
        pause.mul_f64(self.random.random_range(1.0 - SPREAD..1.0 + SPREAD))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OPTIONS: PaceOptions = PaceOptions {
        floor: Duration::from_secs(1),
        ceiling: Duration::from_secs(30),
        first_retry: Duration::from_millis(500),
        last_retry: Duration::from_secs(10),
    };

    fn about(pause: Duration, expected: Duration) {
        let ratio = pause.as_secs_f64() / expected.as_secs_f64();
        assert!((0.8..=1.2).contains(&ratio), "{pause:?} is not about {expected:?}");
    }

    #[test]
    fn answers_are_used_for_their_ttl_within_floor_and_ceiling() {
        let mut pace = Pace::new(OPTIONS, Some(1));
        for (ttl, expected) in [(0, 1), (1, 1), (5, 5), (30, 30), (86_400, 30)] {
            for _ in 0..100 {
                let pause = pace.after_answer(Duration::from_secs(ttl));
                about(pause, Duration::from_secs(expected));
                assert!(pause >= OPTIONS.floor && pause <= Duration::from_secs(expected), "{pause:?}");
            }
        }
    }

    #[test]
    fn failures_pause_longer_and_longer_until_an_answer_comes() {
        let mut pace = Pace::new(OPTIONS, Some(2));
        for expected in [500, 1000, 2000, 4000, 8000, 10_000, 10_000] {
            about(pace.after_failure(), Duration::from_millis(expected));
        }
        (0..100).for_each(|_| about(pace.after_failure(), OPTIONS.last_retry));
        pace.after_answer(Duration::from_secs(5));
        about(pace.after_failure(), OPTIONS.first_retry);
    }

    #[test]
    fn pauses_differ_between_replicas_and_repeat_with_the_seed() {
        let pauses = |seed| {
            let mut pace = Pace::new(OPTIONS, seed);
            [(); 8].map(|()| pace.after_answer(Duration::from_secs(10)))
        };
        assert_eq!(pauses(Some(7)), pauses(Some(7)));
        assert_ne!(pauses(Some(7)), pauses(Some(8)));
        assert_ne!(pauses(None), pauses(None));
    }
}
