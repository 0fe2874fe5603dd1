//! How long somebody who joins a line now will wait.

use std::time::Duration;

use tokio::time::Instant;

/// What each further place that was left counts for: the last dozens decide. Until there are as many, all count the same.
const WEIGHT: f64 = 1.0 / 32.0;
/// Places that say something of the pace: fewer may all have been left late, because the machine was busy elsewhere.
const ENOUGH: f64 = 8.0;

/// The pace at which a line moves while there is one, and from it how long a line is in time.
///
/// For those who would wait longer than their answer is of use to them: they are better told at once, when the line is
/// made of others who will still have their answers in time (M. Welsh, D. Culler, "Adaptive Overload Control for Busy
/// Internet Servers", USITS 2003). A line served in order that takes everybody in ends with nobody being served in time,
/// because whoever comes to its head has waited for nearly all of the time there was.
#[derive(Debug, Default)]
pub struct WaitEstimate {
    /// Seconds between two that leave it.
    pace: f64,
    /// Places that this is the mean of, at most `1 / WEIGHT`.
    seen: f64,
    /// When the line last moved, if somebody was left in it: an empty one has no pace.
    moved: Option<Instant>,
}

impl WaitEstimate {
    /// So many left the line; `others` still wait.
    pub fn left(&mut self, count: usize, others: bool, now: Instant) {
        if let Some(moved) = self.moved
            && count > 0
        {
            let each = now.saturating_duration_since(moved).as_secs_f64() / count as f64;
            let all = self.seen + count as f64;
            let old = match all <= 1.0 / WEIGHT {
                true => self.seen / all,
                false => (1.0 - WEIGHT).powf(count as f64),
            };
            self.pace = old * self.pace + (1.0 - old) * each;
            self.seen = all.min(1.0 / WEIGHT);
        }
        self.moved = others.then_some(now);
    }

    /// How long who joins behind so many others will wait. Zero while little is known, and for an empty line: so
    /// there is always somebody by whom the pace is learnt.
    pub fn behind(&self, others: usize) -> Duration {
        // More than this is not worth telling apart.
        const LONGEST: f64 = 3600.0;
        if self.seen < ENOUGH {
            return Duration::ZERO;
        }
        Duration::from_secs_f64((self.pace * others as f64).min(LONGEST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_line_is_as_long_as_it_lately_took_to_move() {
        let (mut wait, mut now) = (WaitEstimate::default(), Instant::now());
        wait.left(1, true, now);
        assert_eq!(wait.behind(1000), Duration::ZERO, "nothing is known");
        for _ in 0..200 {
            now += 40 * MS;
            wait.left(4, true, now);
        }
        assert_eq!((wait.behind(50).as_millis(), wait.behind(0)), (500, Duration::ZERO));
        for _ in 0..200 {
            now += 2 * MS;
            wait.left(1, true, now);
        }
        assert!((100..=105).contains(&wait.behind(50).as_millis()), "{:?}", wait.behind(50));
    }

    #[test]
    fn the_time_without_a_line_does_not_count() {
        let (mut wait, mut now) = (WaitEstimate::default(), Instant::now());
        for _ in 0..8 {
            wait.left(1, true, now);
            wait.left(1, false, now + 10 * MS);
            now += Duration::from_secs(100);
        }
        assert_eq!(wait.behind(10).as_millis(), 100);
    }

    #[test]
    fn one_that_leaves_late_says_little() {
        let (mut wait, mut now) = (WaitEstimate::default(), Instant::now());
        wait.left(1, true, now);
        now += 100 * MS;
        wait.left(1, true, now);
        assert_eq!(wait.behind(1000), Duration::ZERO, "the first alone says nothing");
        for _ in 0..19 {
            now += MS;
            wait.left(1, true, now);
        }
        let behind = wait.behind(1000).as_millis();
        assert!((5900..=6000).contains(&behind), "{behind}: a twentieth of the first's");
    }
}
