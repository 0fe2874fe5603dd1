//! Turns calls away here while the service sheds them there.
//!
//! Client-side throttling by the formula of Google's SRE book, chapter "Handling Overload": with `requests` tried and
//! `accepts` not shed in the last two minutes, a call is turned away with the probability
//! `max(0, (requests - K * accepts) / (requests + 1))`. With K = 2 a service that sheds everything gets few calls more
//! than the client's share of what it can do, and saves even the cost of saying no; the moment it takes calls again, so
//! does the client.

use std::time::Duration;

use tokio::time::Instant;

/// Settings of [`Throttle`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ThrottleOptions {
    /// How many calls may be tried per call taken before some are turned away: 2. Less is stricter; 1 or more.
    pub k: f64,
    /// How long an answer counts: 2 minutes.
    pub window: Duration,
    /// With fewer calls than this in the window none is turned away: 10. One shed call of two says nothing.
    pub min_requests: u64,
}

impl Default for ThrottleOptions {
    fn default() -> Self {
        Self { k: 2.0, window: Duration::from_secs(120), min_requests: 10 }
    }
}

/// Into so many slices the window is cut: it moves in steps of a twenty-fourth, 5 s of 2 minutes.
const SLICES: usize = 24;

#[derive(Debug, Clone, Copy, Default)]
struct Slice {
    requests: u64,
    accepts: u64,
}

/// The calls of one window and how many of them were taken.
#[derive(Debug)]
pub struct Throttle {
    options: ThrottleOptions,
    slices: [Slice; SLICES],
    /// The slice that is being filled, and since when.
    current: usize,
    since: Instant,
    total: Slice,
}

impl Throttle {
    /// An empty window.
    pub fn new(options: ThrottleOptions, now: Instant) -> Self {
        Self { options, slices: [Slice::default(); SLICES], current: 0, since: now, total: Slice::default() }
    }

    /// A call was answered: taken, whatever came of it, or shed. Calls that nobody answered are not counted.
    pub fn answered(&mut self, shed: bool, now: Instant) {
        self.advance(now);
        let accepted = u64::from(!shed);
        for slice in [&mut self.slices[self.current], &mut self.total] {
            slice.requests += 1;
            slice.accepts += accepted;
        }
    }

    /// With which probability the next call should be turned away.
    pub fn probability(&mut self, now: Instant) -> f64 {
        self.advance(now);
        let Slice { requests, accepts } = self.total;
        if requests == accepts || requests < self.options.min_requests {
            return 0.0;
        }
        ((requests as f64 - self.options.k * accepts as f64) / (requests as f64 + 1.0)).max(0.0)
    }

    /// Whether calls were shed lately: then whatever is done twice takes the place of a call that is shed.
    pub fn sheds(&mut self, now: Instant) -> bool {
        self.advance(now);
        self.total.requests != self.total.accepts
    }

    /// A call was turned away here: it counts as tried, else the share of calls let through would creep up again.
    pub fn rejected(&mut self, now: Instant) {
        self.answered(true, now);
    }

    fn advance(&mut self, now: Instant) {
        let length = (self.options.window / SLICES as u32).max(Duration::from_millis(1));
        let passed = now.saturating_duration_since(self.since);
        if passed < length {
            return;
        }
        let steps = passed.as_nanos() / length.as_nanos();
        if steps >= SLICES as u128 {
            (self.slices, self.total, self.since) = ([Slice::default(); SLICES], Slice::default(), now);
            return;
        }
        for _ in 0..steps {
            self.current = (self.current + 1) % SLICES;
            let old = std::mem::take(&mut self.slices[self.current]);
            self.total.requests -= old.requests;
            self.total.accepts -= old.accepts;
            self.since += length;
        }
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;

    fn throttle() -> Throttle {
        Throttle::new(ThrottleOptions::default(), Instant::now())
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_turned_away_while_at_least_half_is_taken() {
        let mut throttle = throttle();
        for n in 0..1000 {
            throttle.answered(n % 2 == 1, Instant::now());
            assert_eq!(throttle.probability(Instant::now()), 0.0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_takes_a_fifth_is_sent_about_twice_that() {
        // 1,000 calls a second; the service takes 200 of those that reach it in each second and sheds the others.
        let (mut throttle, mut random) = (throttle(), StdRng::seed_from_u64(5));
        let mut sent = 0;
        for second in 0..240 {
            let mut taken = 0;
            for _ in 0..1000 {
                tokio::time::advance(Duration::from_millis(1)).await;
                if random.random_bool(throttle.probability(Instant::now())) {
                    throttle.rejected(Instant::now());
                    continue;
                }
                taken += 1;
                sent += u64::from(second >= 120);
                throttle.answered(taken > 200, Instant::now());
            }
        }
        let per_second = sent / 120;
        assert!((350..450).contains(&per_second), "{per_second} calls a second");
    }

    #[tokio::test(start_paused = true)]
    async fn the_window_forgets() {
        let mut throttle = throttle();
        (0..100).for_each(|_| throttle.answered(true, Instant::now()));
        assert!(throttle.probability(Instant::now()) > 0.98);
        tokio::time::advance(Duration::from_secs(114)).await;
        assert!(throttle.probability(Instant::now()) > 0.98);
        tokio::time::advance(Duration::from_secs(7)).await;
        assert_eq!(throttle.probability(Instant::now()), 0.0);
        (0..100).for_each(|_| throttle.answered(true, Instant::now()));
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!(throttle.probability(Instant::now()), 0.0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_few_shed_calls_turn_nothing_away() {
        let mut throttle = throttle();
        (0..9).for_each(|_| throttle.answered(true, Instant::now()));
        assert_eq!(throttle.probability(Instant::now()), 0.0);
        throttle.answered(true, Instant::now());
        assert!(throttle.probability(Instant::now()) > 0.9);
    }
}
