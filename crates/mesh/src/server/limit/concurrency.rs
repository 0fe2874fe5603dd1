//! How many unary calls are worked on at once: a fixed number, or as many as keep a latency.
//!
//! Additive increase, multiplicative decrease (D.-M. Chiu and R. Jain, 1989, as in TCP), on the latency of calls against a
//! target that the operator names; Netflix's concurrency-limits has the same as `AIMDLimit`. Limits that measure their
//! own baseline instead (gradient, Vegas) drift when overload lasts, because the baseline then holds the queue too, and
//! are misled by calls of different kinds.

use std::time::Duration;

use tokio::time::Instant;

/// More than this part of a window's calls over the target is too many.
const LATE: f64 = 0.1;
/// What is left of the limit then.
const DECREASE: f64 = 0.8;
/// A window has this many calls at least: fewer say nothing.
const ENOUGH: u32 = 10;

#[derive(Debug)]
pub(super) struct Concurrency {
    limit: f64,
    adapt: Option<Adapt>,
}

#[derive(Debug)]
struct Adapt {
    least: f64,
    most: f64,
    target: Duration,
    window: Window,
}

/// What was seen since the limit was last changed: at most one change for each time that a call takes.
#[derive(Debug, Default)]
struct Window {
    since: Option<Instant>,
    calls: u32,
    late: u32,
    /// The limit was reached: only then it may be too low.
    full: bool,
}

impl Concurrency {
    /// Starts at `most`; stays there when `target` is zero.
    pub(super) fn new(least: usize, most: usize, target: Duration) -> Self {
        let (least, most) = (least as f64, most as f64);
        let adapt = (!target.is_zero()).then(|| Adapt { least, most, target, window: Window::default() });
        Self { limit: most, adapt }
    }

    pub(super) fn limit(&self) -> usize {
        self.limit as usize
    }

    /// Whether a call that took so long says that the limit is too high.
    pub(super) fn is_late(&self, latency: Duration) -> bool {
        self.adapt.as_ref().is_some_and(|adapt| latency > adapt.target)
    }

    /// The call that took `latency` has ended; `in_flight` counts it.
    pub(super) fn ended(&mut self, now: Instant, latency: Duration, in_flight: usize) {
        let Some(adapt) = &mut self.adapt else { return };
        let window = &mut adapt.window;
        let since = *window.since.get_or_insert(now);
        window.calls += 1;
        window.late += u32::from(latency > adapt.target);
        window.full |= in_flight >= self.limit as usize;
        if window.calls < ENOUGH || now.duration_since(since) < adapt.target {
            return;
        }
        if f64::from(window.late) > LATE * f64::from(window.calls) {
            self.limit = (self.limit * DECREASE).max(adapt.least);
        } else if window.full {
            self.limit = (self.limit + self.limit.sqrt()).min(adapt.most);
        }
        adapt.window = Window { since: Some(now), ..Window::default() };
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    #[test]
    fn without_a_target_the_limit_stays() {
        let (mut limit, now) = (Concurrency::new(1, 50, Duration::ZERO), Instant::now());
        (0..1000).for_each(|n| limit.ended(now + Duration::from_millis(n), Duration::from_secs(9), 50));
        assert_eq!(limit.limit(), 50);
    }

    /// A backend of `workers` that take `service` each, first come first served, in steps of a millisecond; `offered`
    /// calls arrive in each. Gives the calls that ended in time after the first two seconds, and the latest limit.
    fn simulate(workers: usize, service: u64, offered: usize, target: u64, seconds: u64) -> (usize, usize) {
        let mut limit = Concurrency::new(16, 1024, Duration::from_millis(target));
        let start = Instant::now();
        let (mut waiting, mut running): (VecDeque<u64>, VecDeque<(u64, u64)>) = Default::default();
        let mut good = 0;
        for now in 0..seconds * 1000 {
            while running.front().is_some_and(|(ends, _)| *ends <= now) {
                let in_flight = waiting.len() + running.len();
                let Some((_, began)) = running.pop_front() else { break };
                let latency = now - began;
                limit.ended(start + Duration::from_millis(now), Duration::from_millis(latency), in_flight);
                good += usize::from(now >= 2000 && latency <= 2 * target);
            }
            for _ in 0..offered {
                if waiting.len() + running.len() < limit.limit() {
                    waiting.push_back(now);
                }
            }
            while running.len() < workers && !waiting.is_empty() {
                running.extend(waiting.pop_front().map(|began| (now + service, began)));
            }
        }
        (good, limit.limit())
    }

    #[test]
    fn at_five_times_the_capacity_nearly_all_of_it_is_spent_on_calls_in_time() {
        // 20 workers of 20 ms do 1,000 a second.
        let (good, limit) = simulate(20, 20, 5, 100, 22);
        assert!(good >= 19_000, "{good} of 20,000, limit {limit}");
        assert!((20..=150).contains(&limit), "{limit}: about 100 keep 100 ms");
    }

    #[test]
    fn after_the_surge_the_limit_is_found_again() {
        let mut limit = Concurrency::new(16, 1024, Duration::from_millis(100));
        let start = Instant::now();
        let mut at = 0;
        let mut calls = |count: u64, latency: u64, limit: &mut Concurrency| {
            for _ in 0..count {
                at += 5;
                let in_flight = limit.limit();
                limit.ended(start + Duration::from_millis(at), Duration::from_millis(latency), in_flight);
            }
        };
        calls(1000, 500, &mut limit);
        assert_eq!(limit.limit(), 16);
        calls(1000, 10, &mut limit);
        assert!(limit.limit() > 500, "{} after five seconds", limit.limit());
    }
}
