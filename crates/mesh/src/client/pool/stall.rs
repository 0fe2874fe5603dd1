//! How long an answer may take before its message counts as stalled.

use std::time::Duration;

use super::StallOptions;

/// Latencies from 16 µs on fall into one of these by their logarithm, four to a doubling: the last holds 9 minutes and more.
const BUCKETS: usize = 100;
/// The upper end of the first bucket.
const FIRST: f64 = 16e-6;
/// With fewer latencies than this nothing is known yet.
const ENOUGH: f64 = 32.0;
/// From this many on all counts are halved, so that the last thousand or so answers decide.
const FULL: f64 = 1024.0;
/// The quantile is looked up anew after so many latencies.
const EVERY: u32 = 16;

/// The latencies of the latest answers, old ones fading.
#[derive(Debug)]
pub(super) struct Stall {
    options: StallOptions,
    counts: [f64; BUCKETS],
    total: f64,
    fresh: u32,
    after: Duration,
}

impl Stall {
    pub(super) fn new(options: StallOptions) -> Self {
        Self { options, counts: [0.0; BUCKETS], total: 0.0, fresh: 0, after: options.ceiling }
    }

    /// An answer took so long.
    pub(super) fn record(&mut self, latency: Duration) {
        let doublings = (latency.as_secs_f64() / FIRST).log2();
        let bucket = ((doublings * 4.0).ceil().max(0.0) as usize).min(BUCKETS - 1);
        self.counts[bucket] += 1.0;
        self.total += 1.0;
        self.fresh += 1;
        if self.total >= FULL {
            self.counts.iter_mut().for_each(|count| *count /= 2.0);
            self.total /= 2.0;
        }
        if self.fresh >= EVERY && self.total >= ENOUGH {
            self.fresh = 0;
            let after = self.quantile().mul_f64(self.options.factor);
            self.after = after.max(self.options.floor).min(self.options.ceiling);
        }
    }

    /// A message unanswered for so long is stalled.
    pub(super) fn after(&self) -> Duration {
        self.after
    }

    /// The upper end of the bucket that holds the quantile.
    fn quantile(&self) -> Duration {
        let wanted = self.total * self.options.quantile;
        let mut sum = 0.0;
        let holds = |count: &f64| {
            sum += count;
            sum >= wanted
        };
        let bucket = self.counts.iter().position(holds).unwrap_or(BUCKETS - 1);
        Duration::from_secs_f64(FIRST * (bucket as f64 / 4.0).exp2())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stall() -> Stall {
        let floor = Duration::from_millis(1);
        Stall::new(StallOptions { floor, ..StallOptions::default() })
    }

    #[test]
    fn little_is_taken_for_granted_at_first() {
        let mut stall = stall();
        (0..30).for_each(|_| stall.record(Duration::from_millis(1)));
        assert_eq!(stall.after(), Duration::from_secs(1));
    }

    #[test]
    fn a_message_is_stalled_after_twice_what_nearly_all_take() {
        let mut stall = stall();
        for n in 0..2000 {
            stall.record(Duration::from_millis(if n % 50 == 0 { 400 } else { 10 }));
        }
        let after = stall.after();
        assert!((20..=24).contains(&after.as_millis()), "a bucket is a fifth wide: {after:?}");
    }

    #[test]
    fn a_service_that_becomes_slow_is_waited_for_longer_and_within_bounds() {
        let mut stall = stall();
        (0..2000).for_each(|_| stall.record(Duration::from_millis(5)));
        (0..2000).for_each(|_| stall.record(Duration::from_millis(100)));
        assert!((200..=240).contains(&stall.after().as_millis()), "{:?}", stall.after());
        (0..2000).for_each(|_| stall.record(Duration::from_secs(3600)));
        assert_eq!(stall.after(), Duration::from_secs(1));
        (0..4000).for_each(|_| stall.record(Duration::ZERO));
        assert_eq!(stall.after(), Duration::from_millis(1));
    }
}
