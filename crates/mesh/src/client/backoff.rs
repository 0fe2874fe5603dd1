//! Pauses between tries to connect.

use std::time::Duration;

use super::{ReconnectOptions, dice::Dice};

/// Doubling, jittered pauses that start anew after a connection that lasted.
#[derive(Debug)]
pub(super) struct Backoff {
    options: ReconnectOptions,
    next: Duration,
}

impl Backoff {
    pub(super) fn new(options: ReconnectOptions) -> Self {
        let next = options.first;
        Self { options, next }
    }

    /// The pause after a try that failed.
    pub(super) fn failed(&mut self, dice: &Dice) -> Duration {
        let pause = dice.jitter(self.next);
        self.next = (self.next * 2).min(self.options.longest);
        pause
    }

    /// The pause after a connection that lasted `lasted`: none if that was long.
    pub(super) fn broke(&mut self, lasted: Duration, dice: &Dice) -> Duration {
        if lasted < self.options.stable_after {
            return self.failed(dice);
        }
        self.next = self.options.first;
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_with_jitter_up_to_the_longest() {
        let (mut backoff, dice) = (Backoff::new(ReconnectOptions::default()), Dice::new(Some(7)));
        let pauses: Vec<Duration> = (0..10).map(|_| backoff.failed(&dice)).collect();
        for (n, pause) in pauses.iter().enumerate() {
            let middle = Duration::from_millis(20 << n).min(Duration::from_secs(2));
            assert!((middle / 2..=middle * 3 / 2).contains(pause), "{n}: {pause:?}");
        }
        let again = Dice::new(Some(8));
        assert_ne!(pauses[0], Backoff::new(ReconnectOptions::default()).failed(&again));
    }

    #[test]
    fn only_a_connection_that_lasted_starts_them_anew() {
        let (mut backoff, dice) = (Backoff::new(ReconnectOptions::default()), Dice::new(Some(7)));
        for _ in 0..10 {
            backoff.failed(&dice);
        }
        assert!(backoff.broke(Duration::from_millis(1), &dice) >= Duration::from_secs(1));
        assert_eq!(backoff.broke(Duration::from_secs(2), &dice), Duration::ZERO);
        assert!(backoff.broke(Duration::from_millis(1), &dice) <= Duration::from_millis(30));
    }
}
