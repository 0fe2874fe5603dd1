//! The generic cell rate algorithm: a token bucket that needs one number per counter.
//!
//! Source: ITU-T I.371, Annex A.1 (the virtual scheduling algorithm), the same as in the ATM Forum's *Traffic
//! Management Specification 4.0* (af-tm-0056.000). A counter keeps its **theoretical arrival time** (TAT), when the
//! next hit would come if the caller kept exactly to the rate. With `T = per / limit` and `B = burst`, `n` hits at
//! time `t`:
//!
//! ```text
//! TAT' = max(t, TAT) + n·T        admitted when  t ≥ TAT' − B·T,  and then TAT := TAT'
//! ```
//!
//! which for `n = 1` is the specification's `t ≥ TAT − τ` with `τ = (B − 1)·T`. It follows that any window of length
//! `W` admits at most `B + W/T` hits, and that a refused caller may come back after exactly `TAT' − B·T − t`.
//!
//! Pure integer arithmetic in nanoseconds; nothing here reads a clock.

use std::time::Duration;

/// A point in time: nanoseconds since an origin that the store chooses. 64 bits last 584 years.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Tick(pub u64);

impl Tick {
    fn until(self, later: Self) -> Duration {
        Duration::from_nanos(later.0.saturating_sub(self.0))
    }
}

/// No hit may cost less, so that rounding `T` up to whole nanoseconds costs at most a thousandth of the rate.
const SHORTEST_INTERVAL: Duration = Duration::from_micros(1);
/// No `per`, and no refill of a whole burst, may take longer, so that the arithmetic cannot overflow.
const LONGEST_REFILL: Duration = Duration::from_secs(366 * 24 * 3600);

/// What is wrong with the numbers of a quota.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{field}` {problem}")]
pub struct QuotaError {
    /// `limit`, `per` or `burst`.
    pub field: &'static str,
    /// What it must be.
    pub problem: String,
}

/// More hits in one check than could ever come at once: waiting would not help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OverBurst;

/// What the algorithm says of one check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// There is room; once charged, the counter's theoretical arrival time is this.
    Admitted(Tick),
    /// There is none; after exactly this long there would be.
    Refused(Duration),
}

/// How a counter stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    /// Hits that may come at once now.
    pub remaining: u64,
    /// Until the counter is as if never used.
    pub reset_after: Duration,
}

/// So many hits per time, so many of them at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    burst: u64,
    /// `T`: nanoseconds that one hit costs.
    interval: u64,
    /// `B·T`: nanoseconds from an empty counter to a full one.
    refill: u64,
}

impl Quota {
    /// `limit` hits per `per`, `burst` of them at once. `T` is rounded up to whole nanoseconds: never more than asked for.
    ///
    /// # Errors
    /// [`QuotaError`] naming the number: a zero, more than one hit per microsecond, or longer than a year of 366 days.
    pub fn new(limit: u64, per: Duration, burst: u64) -> Result<Self, QuotaError> {
        let wrong = |field, problem: &str| Err(QuotaError { field, problem: problem.to_owned() });
        if limit == 0 {
            return wrong("limit", "must be greater than 0");
        }
        if per.is_zero() {
            return wrong("per", "must be longer than 0s");
        }
        if burst == 0 {
            return wrong("burst", "must be at least 1");
        }
        if per > LONGEST_REFILL {
            return wrong("per", "must be at most 366 days");
        }
        let interval = per.as_nanos().div_ceil(u128::from(limit));
        if per.as_nanos() < u128::from(limit) * SHORTEST_INTERVAL.as_nanos() {
            return wrong("limit", "must be at most one hit per microsecond of `per`");
        }
        let refill = interval * u128::from(burst);
        if refill > LONGEST_REFILL.as_nanos() {
            return wrong("burst", "must refill (burst × per / limit) within 366 days");
        }
        let nanoseconds = |value: u128| u64::try_from(value).expect("at most 366 days of nanoseconds");
        Ok(Self { burst, interval: nanoseconds(interval), refill: nanoseconds(refill) })
    }

    /// Hits that may come at once when nothing was used.
    pub fn burst(&self) -> u64 {
        self.burst
    }

    /// Whether `hits` have room on a counter whose theoretical arrival time is `tat`. A counter never used, or
    /// forgotten, has any `tat` that is not after `now`.
    ///
    /// # Errors
    /// [`OverBurst`] when `hits` can never have room.
    pub fn decide(&self, tat: Tick, now: Tick, hits: u32) -> Result<Outcome, OverBurst> {
        if u64::from(hits) > self.burst {
            return Err(OverBurst);
        }
        let cost = u64::from(hits).saturating_mul(self.interval);
        let charged = Tick(tat.max(now).0.saturating_add(cost));
        let admitted_at = Tick(charged.0.saturating_sub(self.refill));
        Ok(if now >= admitted_at {
            Outcome::Admitted(charged)
        } else {
            Outcome::Refused(now.until(admitted_at))
        })
    }

    /// How long `hits` have to wait on a counter that is as if never used after `reset_after`.
    pub fn wait(&self, reset_after: Duration, hits: u32) -> Duration {
        let cost = Duration::from_nanos(self.interval.saturating_mul(hits.into()));
        (reset_after + cost).saturating_sub(Duration::from_nanos(self.refill))
    }

    /// In whole microseconds, both rounded so that never more is admitted than asked for.
    pub fn in_micros(&self) -> Micros {
        let interval = self.interval.div_ceil(1000);
        Micros { interval, refill: interval * self.burst, burst: self.burst }
    }

    /// Whether rounding up to microseconds costs more than a hundredth of the rate.
    pub fn is_coarse_in_micros(&self) -> bool {
        let rounded = self.interval.div_ceil(1000) * 1000;
        (rounded - self.interval) * 100 > self.interval
    }

    /// One of `parts` equal parts: `T` times as long, and as much less at once, but never less than `hits` at once:
    /// else a check of that size could not pass however long it waits.
    #[must_use]
    pub fn share(&self, parts: u32, hits: u32) -> Self {
        let parts = u64::from(parts.max(1));
        let burst = (self.burst / parts).max(u64::from(hits)).max(1);
        let interval = self.interval.saturating_mul(parts);
        Self { burst, interval, refill: interval.saturating_mul(burst) }
    }

    /// How a counter with this theoretical arrival time stands.
    pub fn standing(&self, tat: Tick, now: Tick) -> Standing {
        let used = tat.0.saturating_sub(now.0);
        Standing { remaining: self.refill.saturating_sub(used) / self.interval, reset_after: now.until(tat) }
    }
}

/// A [`Quota`] for a store whose clock counts microseconds. `T` is rounded up, so a rate that is no whole number of
/// microseconds per hit is a little lower; rates up to 10,000 hits a second lose less than a hundredth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Micros {
    /// `T`.
    pub interval: u64,
    /// `B·T`.
    pub refill: u64,
    burst: u64,
}

impl Micros {
    /// How a counter stands whose theoretical arrival time is `used` microseconds away.
    pub fn standing(&self, used: u64) -> Standing {
        let remaining = (self.refill.saturating_sub(used) / self.interval).min(self.burst);
        Standing { remaining, reset_after: Duration::from_micros(used) }
    }

    /// How long `hits` have to wait there; zero when they have room.
    pub fn wait(&self, used: u64, hits: u32) -> Duration {
        let charged = used + u64::from(hits) * self.interval;
        Duration::from_micros(charged.saturating_sub(self.refill))
    }
}

#[cfg(test)]
mod tests {
    use rand::{Rng, SeedableRng, rngs::StdRng};

    use super::*;

    fn quota(limit: u64, per: Duration, burst: u64) -> Quota {
        Quota::new(limit, per, burst).unwrap()
    }

    fn any_quota(random: &mut StdRng) -> Quota {
        let limit = random.random_range(1..=1000);
        let per = Duration::from_nanos(random.random_range(1_000_000..=60_000_000_000));
        quota(limit, per, random.random_range(1..=50))
    }

    /// Arrivals that are sometimes idle, sometimes far over the rate.
    fn advance(random: &mut StdRng, quota: &Quota, now: Tick) -> Tick {
        let longest = if random.random_bool(0.02) { quota.refill * 2 } else { quota.interval };
        Tick(now.0 + random.random_range(0..=longest))
    }

    #[test]
    fn the_numbers_are_checked_by_name() {
        let second = Duration::from_secs(1);
        for (limit, per, burst, field) in [
            (0, second, 1, "limit"),
            (1, Duration::ZERO, 1, "per"),
            (1, second, 0, "burst"),
            (1, second * 400 * 24 * 3600, 1, "per"),
            (1_000_001, second, 1, "limit"),
            (u64::MAX, second, 1, "limit"),
            (1, second, u64::MAX, "burst"),
        ] {
            assert_eq!(Quota::new(limit, per, burst).unwrap_err().field, field);
        }
        assert_eq!(quota(1_000_000, second, 1).interval, 1000);
        assert_eq!(quota(3, second, 1).interval, 333_333_334, "rounded up: never more than 3 a second");
    }

    #[test]
    fn no_window_admits_more_than_burst_and_rate() {
        let mut random = StdRng::seed_from_u64(7403);
        for _ in 0..50 {
            let quota = any_quota(&mut random);
            let (mut tat, mut now) = (Tick(0), Tick(1 << 40));
            let mut admitted: Vec<(u64, u64)> = Vec::new();
            for _ in 0..400 {
                now = advance(&mut random, &quota, now);
                let hits = random.random_range(1..=u32::try_from(quota.burst).unwrap());
                if let Outcome::Admitted(charged) = quota.decide(tat, now, hits).unwrap() {
                    tat = charged;
                    admitted.push((now.0, u64::from(hits)));
                }
            }
            for (first, (start, _)) in admitted.iter().enumerate() {
                let mut sum = 0;
                for (end, hits) in &admitted[first..] {
                    sum += hits;
                    let most = quota.burst + (end - start) / quota.interval;
                    assert!(sum <= most, "{sum} > {most} in {} ns by {quota:?}", end - start);
                }
            }
        }
    }

    #[test]
    fn retry_after_is_exact_to_the_nanosecond() {
        let mut random = StdRng::seed_from_u64(5);
        let mut refusals = 0;
        for _ in 0..50 {
            let quota = any_quota(&mut random);
            let (mut tat, mut now) = (Tick(0), Tick(9));
            for _ in 0..200 {
                now = advance(&mut random, &quota, now);
                let hits = random.random_range(1..=u32::try_from(quota.burst).unwrap());
                match quota.decide(tat, now, hits).unwrap() {
                    Outcome::Admitted(charged) => tat = charged,
                    Outcome::Refused(after) => {
                        refusals += 1;
                        let then = now.0 + u64::try_from(after.as_nanos()).unwrap();
                        let at = |at| quota.decide(tat, Tick(at), hits).unwrap();
                        assert!(matches!(at(then), Outcome::Admitted(_)));
                        assert_eq!(at(then - 1), Outcome::Refused(Duration::from_nanos(1)));
                    }
                }
            }
        }
        assert!(refusals > 1000, "the arrivals must go over the rate: {refusals}");
    }

    #[test]
    fn remaining_is_what_may_still_come_at_once() {
        let mut random = StdRng::seed_from_u64(11);
        for _ in 0..2000 {
            let quota = any_quota(&mut random);
            let now = Tick(1 << 40);
            let tat = Tick(now.0 + random.random_range(0..=quota.refill));
            let remaining = u32::try_from(quota.standing(tat, now).remaining).unwrap();
            let admits = |hits| matches!(quota.decide(tat, now, hits), Ok(Outcome::Admitted(_)));
            assert!(remaining == 0 || admits(remaining));
            assert!(!admits(remaining + 1));
        }
    }

    #[test]
    fn microseconds_never_allow_more_than_asked_for() {
        let mut random = StdRng::seed_from_u64(3);
        for _ in 0..2000 {
            let quota = any_quota(&mut random);
            let micros = quota.in_micros();
            assert!(
                micros.interval * 1000 >= quota.interval && micros.interval * 1000 < quota.interval + 1000
            );
            assert_eq!(micros.refill, micros.interval * quota.burst);
            let used = random.random_range(0..=micros.refill);
            let remaining = u32::try_from(micros.standing(used).remaining).unwrap();
            assert_eq!(micros.wait(used, remaining), Duration::ZERO);
            assert!(micros.wait(used, remaining + 1) > Duration::ZERO);
        }
        let second = Duration::from_secs(1);
        assert!(!quota(10_000, second, 1).is_coarse_in_micros());
        assert!(!quota(3, second, 1).is_coarse_in_micros());
        assert!(quota(300_000, second, 1).is_coarse_in_micros(), "3.3 µs become 4");
    }

    #[test]
    fn shares_together_are_no_more_than_the_whole() {
        let whole = quota(100, Duration::from_secs(1), 50);
        let share = whole.share(3, 1);
        assert_eq!((share.burst, share.interval), (16, 3 * whole.interval));
        assert_eq!(quota(1, Duration::from_secs(5), 1).share(3, 1).burst, 1, "one at a time still passes");
        assert_eq!(whole.share(3, 40).burst, 40);
        assert_eq!(whole.share(0, 1), whole);
    }

    #[test]
    fn more_than_the_burst_never_has_room() {
        let quota = quota(100, Duration::from_secs(1), 5);
        assert_eq!(quota.decide(Tick(0), Tick(u64::MAX / 2), 6), Err(OverBurst));
        assert_eq!(quota.standing(Tick(0), Tick(1)), Standing { remaining: 5, reset_after: Duration::ZERO });
    }
}
