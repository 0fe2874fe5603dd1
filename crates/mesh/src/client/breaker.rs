//! Whether an endpoint is turned away for a while.
//!
//! Closed → (so many failures in a row, or too low a success rate over a window with enough calls) → open for a time that
//! doubles with each repetition → half-open: one call at a time tries it → closed again after a success, open after a
//! failure. As in Envoy's outlier detection and linkerd's failure accrual. What counts as a failure is in
//! [`is_failure`]; how many endpoints may be open at once is the cluster's to say.

use std::time::Duration;

use tokio::time::Instant;
use tonic::Code;

use super::{BreakerOptions, dice::Dice};

/// Codes that speak against the endpoint. The caller's own mistakes and refusals that other replicas would give too do not,
/// nor does `RESOURCE_EXHAUSTED`: who sheds is alive, and load makes it dearer.
pub(super) fn is_failure(code: Code) -> bool {
    is_fault(code) || code == Code::DeadlineExceeded
}

/// Those of them by which a server says that it cannot serve. That time ran out it may say for a caller who gave it none.
pub(super) fn is_fault(code: Code) -> bool {
    matches!(code, Code::Unavailable | Code::Internal | Code::Unknown | Code::DataLoss)
}

/// What a breaker does with calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Lets them through.
    Closed,
    /// Turns them away.
    Open {
        /// Until when.
        until: Instant,
    },
    /// Lets one at a time through.
    HalfOpen {
        /// Whether one is on its way.
        probing: bool,
    },
}

/// The breaker of one endpoint.
#[derive(Debug)]
pub(super) struct Breaker {
    options: BreakerOptions,
    phase: Phase,
    in_a_row: u32,
    window: Window,
    /// Ejections not yet forgiven.
    repeats: u32,
    closed_since: Instant,
}

impl Breaker {
    pub(super) fn new(options: BreakerOptions, now: Instant) -> Self {
        let window = Window::new(options.window, now);
        Self { options, phase: Phase::Closed, in_a_row: 0, window, repeats: 0, closed_since: now }
    }

    pub(super) fn phase(&self) -> Phase {
        self.phase
    }

    /// Ejections not yet forgiven.
    pub(super) fn repeats(&self) -> u32 {
        self.repeats
    }

    /// Counts a call while closed. Says why the endpoint should be ejected, if it should.
    pub(super) fn record(&mut self, success: bool, now: Instant) -> Option<String> {
        if self.phase != Phase::Closed {
            return None;
        }
        self.window.count(success, now);
        if success {
            self.in_a_row = 0;
            return None;
        }
        self.in_a_row += 1;
        if self.in_a_row >= self.options.consecutive_failures {
            return Some(format!("{} failures in a row", self.in_a_row));
        }
        let (good, bad) = self.window.sum();
        let calls = good + bad;
        let low = f64::from(good) < self.options.min_success_rate * f64::from(calls);
        (calls >= self.options.min_calls && low).then(|| format!("{bad} of {calls} calls failed"))
    }

    /// Turns calls away. Returns for how long.
    pub(super) fn eject(&mut self, now: Instant, dice: &Dice) -> Duration {
        if now.saturating_duration_since(self.closed_since) >= self.options.forgiven_after
            && self.phase == Phase::Closed
        {
            self.repeats = 0;
        }
        let doubled = self.options.ejection.saturating_mul(1 << self.repeats.min(20));
        self.repeats = self.repeats.saturating_add(1);
        let pause = dice.jitter(doubled.min(self.options.longest_ejection));
        self.phase = Phase::Open { until: now + pause };
        pause
    }

    /// The time of an ejection is over.
    pub(super) fn half_open(&mut self) {
        if matches!(self.phase, Phase::Open { .. }) {
            self.phase = Phase::HalfOpen { probing: false };
        }
    }

    /// Takes the place of the one call that tries; false when it is taken.
    pub(super) fn begin_probe(&mut self) -> bool {
        let free = self.phase == Phase::HalfOpen { probing: false };
        if free {
            self.phase = Phase::HalfOpen { probing: true };
        }
        free
    }

    /// The call that tried has ended; `None`: without a result.
    pub(super) fn end_probe(&mut self, success: Option<bool>, now: Instant, dice: &Dice) {
        if self.phase != (Phase::HalfOpen { probing: true }) {
            return;
        }
        match success {
            None => self.phase = Phase::HalfOpen { probing: false },
            Some(false) => drop(self.eject(now, dice)),
            Some(true) => {
                self.phase = Phase::Closed;
                self.in_a_row = 0;
                self.window = Window::new(self.options.window, now);
                self.closed_since = now;
            }
        }
    }
}

/// The parts a window is counted in: it forgets a tenth at a time.
const PARTS: usize = 10;

/// Calls over the last while.
#[derive(Debug)]
struct Window {
    part: Duration,
    /// When the current part began.
    began: Instant,
    current: usize,
    /// Successes and failures of each part.
    parts: [(u32, u32); PARTS],
}

impl Window {
    fn new(length: Duration, now: Instant) -> Self {
        let part = (length / PARTS as u32).max(Duration::from_millis(1));
        Self { part, began: now, current: 0, parts: [(0, 0); PARTS] }
    }

    fn count(&mut self, success: bool, now: Instant) {
        let passed = now.saturating_duration_since(self.began).as_nanos() / self.part.as_nanos();
        for _ in 0..passed.min(PARTS as u128) {
            self.current = (self.current + 1) % PARTS;
            self.parts[self.current] = (0, 0);
        }
        if passed >= PARTS as u128 {
            self.began = now;
        } else {
            self.began += self.part * passed as u32;
        }
        let (good, bad) = &mut self.parts[self.current];
        let count = if success { good } else { bad };
        *count = count.saturating_add(1);
    }

    fn sum(&self) -> (u32, u32) {
        self.parts.iter().fold((0, 0), |(good, bad), part| {
            (u32::saturating_add(good, part.0), u32::saturating_add(bad, part.1))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    fn breaker() -> (Breaker, Instant, Dice) {
        let now = Instant::now();
        (Breaker::new(BreakerOptions::default(), now), now, Dice::new(Some(3)))
    }

    #[test]
    fn only_the_endpoints_own_failures_count() {
        let failures: Vec<Code> = (0..17).map(Code::from).filter(|code| is_failure(*code)).collect();
        assert_eq!(
            failures,
            [Code::Unknown, Code::DeadlineExceeded, Code::Internal, Code::Unavailable, Code::DataLoss]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn failures_in_a_row_eject() {
        let (mut breaker, now, _) = breaker();
        for _ in 0..4 {
            assert_eq!(breaker.record(false, now), None);
        }
        breaker.record(true, now);
        for _ in 0..4 {
            assert_eq!(breaker.record(false, now), None);
        }
        assert_eq!(breaker.record(false, now).unwrap(), "5 failures in a row");
        assert_eq!(breaker.phase(), Phase::Closed, "whether it is ejected is the cluster's to say");
    }

    #[tokio::test(start_paused = true)]
    async fn a_low_success_rate_ejects_once_there_are_enough_calls() {
        let (mut breaker, now, _) = breaker();
        let mut ejected = None;
        for n in 0..40 {
            // Two of three fail, never five in a row.
            ejected = ejected.or(breaker.record(n % 3 == 0, now).map(|why| (n, why)));
        }
        let (n, why) = ejected.unwrap();
        assert_eq!((n, why.as_str()), (19, "13 of 20 calls failed"));
    }

    #[tokio::test(start_paused = true)]
    async fn the_window_forgets() {
        let (mut breaker, now, _) = breaker();
        for n in 0..18 {
            assert_eq!(breaker.record(n % 3 == 0, now), None);
        }
        for n in 0..18 {
            assert_eq!(breaker.record(n % 3 == 0, now + 11 * S), None);
        }
        for n in 0..6 {
            let ejected = breaker.record(n % 3 == 0, now + 15 * S).is_some();
            assert_eq!(ejected, n == 1 || n == 2 || n == 4 || n == 5, "call {n} of the last part");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn ejections_double_and_are_forgiven() {
        let (mut breaker, mut now, dice) = breaker();
        for n in 0..8 {
            let middle = (S * (1 << n)).min(60 * S);
            let pause = breaker.eject(now, &dice);
            assert!((middle / 2..=middle * 3 / 2).contains(&pause), "{n}: {pause:?}");
            now += pause;
            breaker.half_open();
            assert!(breaker.begin_probe());
            breaker.end_probe(Some(true), now, &dice);
        }
        assert!(breaker.eject(now + 60 * S, &dice) <= S * 3 / 2, "a minute without");
    }

    #[tokio::test(start_paused = true)]
    async fn half_open_tries_one_call_at_a_time() {
        let (mut breaker, now, dice) = breaker();
        assert!(!breaker.begin_probe(), "closed");
        breaker.eject(now, &dice);
        assert!(!breaker.begin_probe(), "open");
        breaker.half_open();
        assert!(breaker.begin_probe());
        assert!(!breaker.begin_probe(), "one is on its way");
        breaker.end_probe(None, now, &dice);
        assert!(breaker.begin_probe(), "it ended without a result");
        breaker.end_probe(Some(false), now, &dice);
        assert!(matches!(breaker.phase(), Phase::Open { .. }));
        breaker.half_open();
        assert!(breaker.begin_probe());
        breaker.end_probe(Some(true), now, &dice);
        assert_eq!(breaker.phase(), Phase::Closed);
        assert_eq!(breaker.record(false, now), None, "it starts from nothing");
    }
}
