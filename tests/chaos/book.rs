//! What became of every frame.

use std::{
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::time::Instant;

/// Answers are counted in windows this long, one beginning every `STEP`.
pub const WINDOW: Duration = Duration::from_secs(1);
const STEP: Duration = Duration::from_millis(50);
/// What counts as the full rate: a shared machine hiccups.
const FULL: f64 = 0.9;
/// An answer that took longer than this is one that the fault has delayed.
pub const SLOW: Duration = Duration::from_millis(500);

#[derive(Debug, Clone, Copy)]
struct Frame {
    /// When it was to be sent, whatever held its client up then.
    born: Instant,
    answered: Option<Instant>,
    answers: u32,
}

/// All frames of a load.
#[derive(Debug, Default)]
pub struct Book {
    frames: Mutex<Vec<Frame>>,
    failures: Mutex<Vec<String>>,
    moved: AtomicUsize,
}

impl Book {
    /// A frame is to be sent.
    pub fn born(&self, born: Instant) -> u64 {
        let mut frames = self.frames.lock().unwrap();
        frames.push(Frame { born, answered: None, answers: 0 });
        frames.len() as u64 - 1
    }

    /// It has its verdict.
    pub fn answered(&self, frame: u64) {
        let mut frames = self.frames.lock().unwrap();
        let frame = &mut frames[frame as usize];
        frame.answered = Some(Instant::now());
        frame.answers += 1;
    }

    /// A client saw something that it should not have.
    pub fn failed(&self, what: impl Into<String>) {
        self.failures.lock().unwrap().push(what.into());
    }

    /// A server that drains gave a frame back, as the protocol says.
    pub fn moved(&self) {
        self.moved.fetch_add(1, Ordering::Relaxed);
    }

    /// Frames that were given back.
    pub fn moves(&self) -> usize {
        self.moved.load(Ordering::Relaxed)
    }

    /// Fails unless every frame was answered exactly once, and nothing else happened. Says how many there were.
    pub fn check(&self) -> u64 {
        let failures = self.failures.lock().unwrap();
        let first: Vec<_> = failures.iter().take(5).collect();
        assert!(failures.is_empty(), "{} client-visible errors: {first:#?}", failures.len());
        let frames = self.frames.lock().unwrap();
        for (number, frame) in frames.iter().enumerate() {
            assert_eq!(frame.answers, 1, "answers to frame {number} of {}", frames.len());
        }
        frames.len() as u64
    }

    /// How long after `fault` answers came at the full rate again and without delay.
    pub fn recovered_after(&self, fault: Instant, rate: f64) -> Recovery {
        let frames = self.frames.lock().unwrap();
        let now = Instant::now();
        let mut answers: Vec<Instant> = frames.iter().filter_map(|frame| frame.answered).collect();
        answers.sort_unstable();
        let full = rate * WINDOW.as_secs_f64() * FULL;
        let mut recovery = Recovery::default();
        let mut begin = fault;
        // What was answered without delay is answered by now.
        while begin + WINDOW + SLOW <= now {
            let before = |end: Instant| answers.partition_point(|answer| *answer < end);
            let count = before(begin + WINDOW) - before(begin);
            if (count as f64) < full {
                recovery.rate = begin + STEP - fault;
            }
            begin += STEP;
        }
        for frame in frames.iter() {
            let took = frame.answered.unwrap_or(now) - frame.born;
            let end = frame.answered.unwrap_or(now);
            if end > fault {
                recovery.slowest = recovery.slowest.max(took);
            }
            if end > fault && took > SLOW {
                recovery.delays = recovery.delays.max(end - fault);
            }
        }
        recovery
    }

    /// Answers per second since `from`, and their latency in the middle and at 99 %.
    pub fn pace(&self, from: Instant) -> (f64, Duration, Duration) {
        let frames = self.frames.lock().unwrap();
        let later = frames.iter().filter(|frame| frame.born >= from);
        let mut took: Vec<Duration> = later.filter_map(|frame| Some(frame.answered? - frame.born)).collect();
        took.sort_unstable();
        assert!(!took.is_empty(), "nothing was answered");
        let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize];
        (took.len() as f64 / from.elapsed().as_secs_f64(), at(0.5), at(0.99))
    }
}

/// What a fault cost.
#[derive(Debug, Clone, Copy, Default)]
pub struct Recovery {
    /// Until answers came at the full rate.
    pub rate: Duration,
    /// Until the last answer that had been delayed.
    pub delays: Duration,
    /// The longest that a frame took.
    pub slowest: Duration,
}

impl Recovery {
    /// Until all was as before.
    pub fn all(self) -> Duration {
        self.rate.max(self.delays)
    }
}
