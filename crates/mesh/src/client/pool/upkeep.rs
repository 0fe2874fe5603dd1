//! How many streams an endpoint has, and which are left. It does no IO and reads no clock.

use std::{collections::HashMap, time::Duration};

use rand::{Rng, rngs::SmallRng};
use tokio::time::Instant;

use super::{
    PoolOptions,
    book::{LineId, Standing},
    line::End,
};

/// A stream is added at most this often: its credits take a round trip to come, and then show whether they are enough.
const GROW_PAUSE: Duration = Duration::from_millis(20);
/// The first and the longest pause before a stream is opened after one that could not be, or that ended at once.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));
/// A server that asked to go is left alone for so long: by then it says that it stops, or has closed the connection.
const DRAINED: Duration = Duration::from_millis(100);
/// A stream that lived for so long was a good one: the next is opened after the first pause.
const GOOD: Duration = Duration::from_secs(1);
/// How often it is looked at without a reason.
const LOOK: Duration = Duration::from_secs(1);
/// By how much of the age of a stream its end is moved, either way.
const AGE_JITTER: f64 = 0.2;

/// What there is to do now.
#[derive(Debug, PartialEq)]
pub(super) struct Todo {
    /// Streams to open.
    pub(super) open: usize,
    /// Streams to leave: they finish what they carry.
    pub(super) leave: Vec<LineId>,
    /// When to look again.
    pub(super) next: Instant,
}

/// The streams of one endpoint.
pub(super) struct Upkeep {
    options: PoolOptions,
    rng: SmallRng,
    /// Streams wanted.
    target: usize,
    grown: Instant,
    expires: HashMap<LineId, Instant>,
    backoff: Duration,
    not_before: Instant,
}

impl Upkeep {
    pub(super) fn new(options: PoolOptions, rng: SmallRng, now: Instant) -> Self {
        let target = options.min_streams.max(1);
        let (expires, backoff) = (HashMap::new(), BACKOFF.0);
        Self { options, rng, target, grown: now, expires, backoff, not_before: now }
    }

    /// Looks at the endpoint's `lines`, oldest first, and the number that are being opened. `pressed`: a message found no
    /// credit, and the server is not full.
    pub(super) fn look(&mut self, now: Instant, lines: &[Standing], opening: usize, pressed: bool) -> Todo {
        self.expires.retain(|id, _| lines.iter().any(|line| line.line == *id));
        for line in lines {
            let jitter = 1.0 + AGE_JITTER * self.rng.random_range(-1.0..1.0);
            let age = self.options.max_age.mul_f64(jitter);
            self.expires.entry(line.line).or_insert(now + age);
        }
        let (aged, fresh): (Vec<&Standing>, Vec<&Standing>) =
            lines.iter().filter(|line| !line.leaving).partition(|line| self.expires[&line.line] <= now);
        let most = self.options.max_streams.max(self.options.min_streams).max(1);
        if pressed
            && opening == 0
            && fresh.len() >= self.target
            && self.target < most
            && now >= self.grown + GROW_PAUSE
        {
            self.target += 1;
            self.grown = now;
        }
        let mut leave = Vec::new();
        if let Some(idle) = self.idle(now, &fresh) {
            self.target -= 1;
            leave.push(idle);
        }
        let missing = self.target.saturating_sub(fresh.len() - leave.len() + opening);
        if missing == 0 && opening == 0 && fresh.iter().all(|line| line.ready) {
            // Each has its successor, and that its credits.
            leave.extend(aged.iter().map(|line| line.line));
        }
        let open = if now >= self.not_before { missing } else { 0 };
        Todo { open, leave, next: self.next(now, missing > open) }
    }

    /// The youngest stream beyond the least, if no message needed it for long.
    fn idle(&self, now: Instant, fresh: &[&Standing]) -> Option<LineId> {
        if self.target <= self.options.min_streams.max(1) || fresh.len() < self.target {
            return None;
        }
        let idle = |line: &&Standing| line.unanswered == 0 && now >= line.used + self.options.idle;
        fresh.last().copied().filter(idle).map(|line| line.line)
    }

    fn next(&self, now: Instant, held_back: bool) -> Instant {
        let mut next = now + LOOK;
        if let Some(first) = self.expires.values().filter(|at| **at > now).min() {
            next = next.min(*first);
        }
        if held_back {
            next = next.min(self.not_before);
        }
        next
    }

    /// A stream has ended, or could not be opened.
    pub(super) fn ended(&mut self, end: End, now: Instant) {
        if matches!(end, End::After(lived) if lived >= GOOD) {
            self.backoff = BACKOFF.0;
        }
        let pause = self.backoff.mul_f64(self.rng.random_range(0.5..1.5));
        self.not_before = self.not_before.max(now + pause);
        self.backoff = (self.backoff * 2).min(BACKOFF.1);
    }

    /// The server asked its client to go.
    pub(super) fn drained(&mut self, now: Instant) {
        self.not_before = self.not_before.max(now + DRAINED);
    }

    /// The endpoint has a new connection: what held the last one back is over.
    pub(super) fn reconnected(&mut self, now: Instant) {
        self.backoff = BACKOFF.0;
        self.not_before = now;
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::{
        super::book::tests::{self as fixture, Fake},
        *,
    };

    const OPTIONS: fn() -> PoolOptions =
        || PoolOptions { min_streams: 1, max_streams: 3, ..PoolOptions::default() };

    fn upkeep(options: PoolOptions) -> (Upkeep, Instant) {
        let now = Instant::now();
        (Upkeep::new(options, SmallRng::seed_from_u64(7), now), now)
    }

    /// So many open streams, last used at `used`.
    fn standings(count: usize, used: Instant) -> Vec<Standing> {
        let mut book = fixture::book();
        let fake = Fake::new();
        for _ in 0..count {
            book.open(fake.clone(), 8, used);
        }
        book.of(fake.id())
    }

    #[tokio::test(start_paused = true)]
    async fn pressure_adds_a_stream_at_a_time_up_to_the_bound() {
        let (mut upkeep, mut now) = upkeep(OPTIONS());
        assert_eq!(upkeep.look(now, &[], 0, false).open, 1);
        for open in [1, 2] {
            now += GROW_PAUSE;
            assert_eq!(upkeep.look(now, &standings(open, now), 0, true).open, 1);
            assert_eq!(upkeep.look(now, &standings(open, now), 1, true).open, 0, "one is being opened");
        }
        now += GROW_PAUSE;
        assert_eq!(upkeep.look(now, &standings(3, now), 0, true).open, 0, "the bound");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_is_not_needed_is_left_and_the_least_stays() {
        let (mut upkeep, now) = upkeep(OPTIONS());
        upkeep.target = 3;
        let lines = standings(3, now);
        assert_eq!(upkeep.look(now, &lines, 0, false).leave, []);
        let later = now + OPTIONS().idle;
        assert_eq!(upkeep.look(later, &lines, 0, false).leave, [lines[2].line]);
        assert_eq!(upkeep.look(later, &lines[..2], 0, false).leave, [lines[1].line]);
        assert_eq!(
            upkeep.look(later, &lines[..1], 0, false),
            Todo { open: 0, leave: vec![], next: later + LOOK }
        );
    }

    #[tokio::test(start_paused = true)]
    async fn an_old_stream_is_left_when_its_successor_is_open() {
        let (mut upkeep, now) = upkeep(OPTIONS());
        let lines = standings(2, now);
        assert_eq!(upkeep.look(now, &lines[..1], 0, false).open, 0);
        let old = now + OPTIONS().max_age.mul_f64(1.0 + AGE_JITTER);
        let first = upkeep.look(old, &lines[..1], 0, false);
        assert_eq!((first.open, first.leave), (1, vec![]));
        assert_eq!(upkeep.look(old, &lines[..1], 1, false).leave, [], "it is being opened");
        let without_credits = [lines[0], Standing { ready: false, credits: 0, ..lines[1] }];
        assert_eq!(upkeep.look(old, &without_credits, 0, false).leave, []);
        let second = upkeep.look(old, &lines, 0, false);
        assert_eq!((second.open, second.leave), (0, vec![lines[0].line]));
    }

    #[tokio::test(start_paused = true)]
    async fn streams_that_cannot_be_opened_are_tried_ever_less_often() {
        let (mut upkeep, mut now) = upkeep(OPTIONS());
        let mut pauses = Vec::new();
        for _ in 0..12 {
            upkeep.ended(End::Unopened, now);
            let todo = upkeep.look(now, &[], 0, false);
            assert_eq!(todo.open, 0);
            let until = upkeep.not_before;
            assert_eq!(todo.next, until.min(now + LOOK));
            pauses.push(until - now);
            now = until;
            assert_eq!(upkeep.look(now, &[], 0, false).open, 1);
        }
        assert!(pauses[0] <= BACKOFF.0.mul_f64(1.5) && pauses[11] >= BACKOFF.1 / 2, "{pauses:?}");
        upkeep.ended(End::After(GOOD), now);
        assert!(upkeep.not_before - now <= BACKOFF.0.mul_f64(1.5));
    }
}
