//! How long a call may wait for a place: controlled delay.
//!
//! B. Maurer, "Fail at Scale", ACM Queue 13(8), 2015, after CoDel (RFC 8289): a queue that was empty lately holds a burst,
//! and whoever waits in it may wait long; a queue that has not been empty for an interval is standing, serves nobody
//! better than a short one, and is kept short by letting nobody wait longer than a fraction of the interval.

use std::time::Duration;

use tokio::time::Instant;

/// What part of the interval a standing queue may delay: 5 ms of 100 ms, as in the source.
const STANDING: u32 = 20;

#[derive(Debug)]
pub(super) struct Patience {
    interval: Duration,
    /// When the queue was last seen empty.
    empty: Option<Instant>,
}

impl Patience {
    pub(super) fn new(interval: Duration) -> Self {
        Self { interval, empty: None }
    }

    /// For the call that joins the queue now.
    pub(super) fn of_next(&mut self, now: Instant, queue_is_empty: bool) -> Duration {
        if queue_is_empty || self.empty.is_none() {
            self.empty = Some(now);
        }
        match self.empty {
            Some(empty) if now.duration_since(empty) > self.interval => self.interval / STANDING,
            _ => self.interval,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_may_wait_and_a_standing_queue_may_not() {
        let interval = Duration::from_millis(100);
        let (mut patience, start) = (Patience::new(interval), Instant::now());
        let mut at = |ms, empty| patience.of_next(start + Duration::from_millis(ms), empty).as_millis();
        assert_eq!((at(0, true), at(100, false)), (100, 100));
        assert_eq!((at(101, false), at(5000, false)), (5, 5));
        assert_eq!((at(5001, true), at(5100, false), at(5102, false)), (100, 100, 5));
    }
}
