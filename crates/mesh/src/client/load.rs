//! What one more call on an endpoint would cost.
//!
//! `cost = rtt × (in_flight ÷ weight + 1) × (1 + occupancy)`, less is better.
//!
//! `rtt` is a peak-EWMA (after Finagle's `PeakEwma`, also linkerd's): the larger of a mean and a peak. The mean weighs each
//! answer by `e^(-age/decay)`. The peak is an answer slower than the estimate: it counts in full at once and fades by
//! `e^(-age/peak_decay)`. Finagle lets a peak fade as slowly as the mean; here a pause of the machine would then hide for
//! many seconds which replica is slow all the time. While nothing comes the mean fades too, so that an endpoint that was slow
//! is tried again. Two things are added. While calls wait, `rtt` is at least the time since the last sign of life: a replica
//! that stalls gets expensive before anything fails. And what the server itself reports counts while it is fresh: `rtt` is
//! at least its queue's delay, and its occupancy makes it dearer even where other clients caused it.

use std::time::Duration;

use tokio::time::Instant;

use super::{LoadOptions, ServerLoad};

/// The longest latency that a failure is taken for, whatever came before.
const LONGEST_PENALTY: Duration = Duration::from_secs(10);
/// An endpoint that just connected and was never asked costs next to nothing, so that one call tries it.
const UNTRIED: f64 = 1e-9;

/// The load of one endpoint, in seconds.
#[derive(Debug)]
pub(super) struct Load {
    options: LoadOptions,
    /// The sums of latencies and of answers, each weighed by its age at `measured`; no answers before the first.
    latencies: f64,
    answers: f64,
    measured: Instant,
    /// The last peak, and when it was.
    peak: f64,
    peaked: Instant,
    reported: Option<(ServerLoad, Instant)>,
    /// Calls begun whose answer has not begun.
    waiting: usize,
    /// Since when calls wait without any answer.
    silent_since: Instant,
}

impl Load {
    pub(super) fn new(options: LoadOptions, now: Instant) -> Self {
        Self {
            options,
            latencies: 0.0,
            answers: 0.0,
            measured: now,
            peak: 0.0,
            peaked: now,
            reported: None,
            waiting: 0,
            silent_since: now,
        }
    }

    /// The connection is a new one, perhaps to a new process: what was measured says nothing any more.
    pub(super) fn forget(&mut self, now: Instant) {
        self.answers = 0.0;
        self.latencies = 0.0;
        self.peak = 0.0;
        self.reported = None;
        self.silent_since = now;
    }

    /// A call begins.
    pub(super) fn begin(&mut self, now: Instant) {
        if self.waiting == 0 {
            self.silent_since = now;
        }
        self.waiting += 1;
    }

    /// A call no longer waits, after `latency` without an answer: it would have taken at least so long.
    pub(super) fn gave_up(&mut self, latency: Duration, now: Instant) {
        self.waiting = self.waiting.saturating_sub(1);
        if self.faded(now).is_some_and(|rtt| rtt < latency.as_secs_f64()) {
            self.observe(latency.as_secs_f64(), now);
        }
    }

    /// A call was answered after `latency`.
    pub(super) fn answered(&mut self, latency: Duration, now: Instant) {
        self.waiting = self.waiting.saturating_sub(1);
        self.silent_since = now;
        self.observe(latency.as_secs_f64(), now);
    }

    /// A call failed after `latency`, which counts as slow however fast it was.
    pub(super) fn failed(&mut self, latency: Duration, now: Instant) {
        self.answered(latency.max(self.penalty(now)), now);
    }

    /// The failure of a call whose answer had begun.
    pub(super) fn failed_late(&mut self, now: Instant) {
        self.observe(self.penalty(now).as_secs_f64(), now);
    }

    fn penalty(&self, now: Instant) -> Duration {
        let twice = Duration::from_secs_f64(2.0 * self.faded(now).unwrap_or(0.0));
        self.options.default_rtt.max(twice).min(LONGEST_PENALTY)
    }

    fn observe(&mut self, latency: f64, now: Instant) {
        if self.faded(now).is_none_or(|rtt| latency > rtt) {
            self.peak = latency;
            self.peaked = now;
        }
        let kept = kept(self.measured, now, self.options.decay);
        self.latencies = self.latencies * kept + latency;
        self.answers = self.answers * kept + 1.0;
        self.measured = now;
    }

    /// What the server said of itself. An occupancy that is no number counts as 0.
    pub(super) fn report(&mut self, mut load: ServerLoad, now: Instant) {
        load.occupancy = if load.occupancy.is_nan() { 0.0 } else { load.occupancy.clamp(0.0, 1.0) };
        self.reported = Some((load, now));
    }

    /// What the server said last, while it counts.
    pub(super) fn reported(&self, now: Instant) -> Option<ServerLoad> {
        let (load, at) = self.reported?;
        (now.saturating_duration_since(at) < self.options.decay).then_some(load)
    }

    /// The estimated latency in seconds; `None` before the first answer.
    pub(super) fn faded(&self, now: Instant) -> Option<f64> {
        if self.answers == 0.0 {
            return None;
        }
        let mean = self.latencies / self.answers * kept(self.measured, now, self.options.decay);
        Some(mean.max(self.peak * kept(self.peaked, now, self.options.peak_decay)))
    }

    /// The cost of one more call next to `in_flight` others.
    pub(super) fn cost(&self, in_flight: usize, weight: u32, now: Instant) -> f64 {
        let rtt = match self.faded(now) {
            Some(rtt) => rtt.max(UNTRIED),
            None if self.waiting == 0 => UNTRIED,
            None => self.options.default_rtt.as_secs_f64(),
        };
        let silent = match self.waiting {
            0 => 0.0,
            _ => now.saturating_duration_since(self.silent_since).as_secs_f64(),
        };
        let (delay, occupancy) = self
            .reported(now)
            .map_or((0.0, 0.0), |load| (load.queue_delay.as_secs_f64(), f64::from(load.occupancy)));
        let others = in_flight as f64 / f64::from(weight.max(1));
        rtt.max(silent).max(delay) * (others + 1.0) * (1.0 + occupancy)
    }
}

/// How much is left of what was at `then`.
fn kept(then: Instant, now: Instant, decay: Duration) -> f64 {
    let since = now.saturating_duration_since(then).as_secs_f64();
    (-since / decay.as_secs_f64().max(f64::MIN_POSITIVE)).exp()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn answer(load: &mut Load, latency: Duration, now: Instant) {
        load.begin(now);
        load.answered(latency, now);
    }

    fn close(a: f64, b: f64) -> bool {
        (a - b).abs() < b * 1e-6
    }

    #[tokio::test(start_paused = true)]
    async fn a_peak_counts_at_once_and_fades_to_the_mean() {
        let now = Instant::now();
        let mut load = Load::new(LoadOptions::default(), now);
        for _ in 0..9 {
            answer(&mut load, 10 * MS, now);
        }
        answer(&mut load, 110 * MS, now);
        assert!(close(load.cost(0, 1, now), 0.110));
        assert!(close(load.cost(3, 1, now), 0.440), "three in flight");
        let later = now + 250 * MS;
        assert!(close(load.cost(0, 1, later), 0.110 / 1.0_f64.exp()));
        let settled = now + 5000 * MS;
        assert!(close(load.cost(0, 1, settled), 0.020 / 1.0_f64.exp()), "the mean, which fades too");
        answer(&mut load, 10 * MS, settled);
        let (old, new) = (0.200 / 1.0_f64.exp(), 0.010);
        let expected = (old + new) / (10.0 / 1.0_f64.exp() + 1.0);
        assert!(close(load.cost(0, 1, settled), expected));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_of_everything_does_not_hide_who_is_slow() {
        let start = Instant::now();
        let mut loads = [5, 50].map(|ms| (Load::new(LoadOptions::default(), start), ms * MS));
        for n in 0..200 {
            let now = start + n * 50 * MS;
            for (load, latency) in &mut loads {
                // Once a second both take 300 ms.
                answer(load, if n % 20 == 0 { 300 * MS } else { *latency }, now);
            }
        }
        let now = start + 199 * 50 * MS;
        assert!(loads[1].0.cost(0, 1, now) > 2.0 * loads[0].0.cost(0, 1, now));
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_endpoint_is_tried_by_one_call_and_not_flooded() {
        let now = Instant::now();
        let mut load = Load::new(LoadOptions::default(), now);
        let mut known = Load::new(LoadOptions::default(), now);
        answer(&mut known, 5 * MS, now);
        assert!(load.cost(0, 1, now) < known.cost(0, 1, now));
        load.begin(now);
        assert!(load.cost(1, 1, now) > known.cost(4, 1, now));
        load.answered(5 * MS, now);
        assert!(close(load.cost(0, 1, now), known.cost(0, 1, now)));
        load.forget(now);
        assert!(load.cost(0, 1, now) < known.cost(0, 1, now), "a new connection is new");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_while_calls_wait_is_latency() {
        let now = Instant::now();
        let mut load = Load::new(LoadOptions::default(), now);
        answer(&mut load, MS, now);
        assert!(load.cost(0, 1, now + 900 * MS) < 0.001, "nobody waits");
        load.begin(now);
        assert!(close(load.cost(1, 1, now + 900 * MS), 1.8));
        load.gave_up(Duration::ZERO, now);
        assert!(load.cost(0, 1, now + 900 * MS) < 0.001);
        load.begin(now);
        load.gave_up(700 * MS, now + 700 * MS);
        assert!(close(load.cost(0, 1, now + 700 * MS), 0.7), "it would have taken at least so long");
    }

    #[tokio::test(start_paused = true)]
    async fn a_fast_failure_does_not_look_fast() {
        let now = Instant::now();
        let mut load = Load::new(LoadOptions::default(), now);
        answer(&mut load, 5 * MS, now);
        load.begin(now);
        load.failed(Duration::ZERO, now);
        assert!(close(load.cost(0, 1, now), 0.030));
        load.failed_late(now);
        assert!(close(load.cost(0, 1, now), 0.060));
        for _ in 0..20 {
            load.failed_late(now);
        }
        assert!(close(load.cost(0, 1, now), 10.0), "bounded");
    }

    #[tokio::test(start_paused = true)]
    async fn what_the_server_reports_counts_while_it_is_fresh() {
        let now = Instant::now();
        let mut load = Load::new(LoadOptions::default(), now);
        answer(&mut load, 5 * MS, now);
        load.report(ServerLoad { queue_delay: 40 * MS, occupancy: 0.5 }, now);
        assert!(close(load.cost(0, 1, now), 0.060));
        assert!(load.cost(0, 1, now + Duration::from_secs(6)) < 0.005);
        load.report(ServerLoad { queue_delay: Duration::ZERO, occupancy: f32::NAN }, now);
        assert!(close(load.cost(0, 1, now), 0.005), "what is no number is nothing");
    }

    #[tokio::test(start_paused = true)]
    async fn twice_the_weight_carries_twice_the_calls() {
        let now = Instant::now();
        let mut load = Load::new(LoadOptions::default(), now);
        answer(&mut load, 5 * MS, now);
        assert!(close(load.cost(8, 2, now), load.cost(4, 1, now)));
        assert!(close(load.cost(0, 2, now), load.cost(0, 1, now)));
    }
}
