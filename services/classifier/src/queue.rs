//! The bounded queue before a model's executors.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use sightline_mesh::{Deadline, WaitEstimate};
use tokio::time::Instant as Moment;

use crate::{error::ClassifierError, events, traces::Traced};

/// What became of one tensor.
#[derive(Debug)]
pub struct Done {
    /// Probabilities in the order of the model's classes.
    pub scores: Vec<f32>,
    /// Waiting for an executor.
    pub queued: Duration,
    /// The run the tensor was part of.
    pub inference: Duration,
    /// Tensors in that run.
    pub batch_size: usize,
}

/// Receives the outcome; called exactly once, on an executor thread or by the caller that drops the queue.
pub type Reply = Box<dyn FnOnce(Result<Done, ClassifierError>) + Send>;

/// One tensor waiting for an executor.
pub struct Entry {
    /// As the model's input says.
    pub pixels: Bytes,
    /// After this nobody waits.
    pub deadline: Deadline,
    /// Set when the caller went away.
    pub cancelled: Arc<AtomicBool>,
    /// Since when it waits.
    pub since: Instant,
    /// Its spans.
    pub traced: Traced,
    /// Who waits.
    pub reply: Reply,
}

impl Entry {
    /// Why this entry is not worth running at `moment`.
    pub(crate) fn futile(&self, moment: Moment) -> Option<ClassifierError> {
        if self.cancelled.load(Ordering::Relaxed) {
            Some(ClassifierError::Cancelled)
        } else if self.deadline.instant() <= moment {
            Some(ClassifierError::Expired)
        } else {
            None
        }
    }
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Entry>,
    /// Executors that wait for work now.
    idle: usize,
    closed: bool,
    wait: WaitEstimate,
}

/// First in, first out, with at most `capacity` entries.
pub struct Queue {
    model: String,
    capacity: usize,
    state: Mutex<State>,
    filled: Condvar,
}

impl Queue {
    /// An empty queue for a model.
    pub fn new(model: impl Into<String>, capacity: usize) -> Self {
        Self { model: model.into(), capacity, state: Mutex::default(), filled: Condvar::new() }
    }

    /// Entries that wait.
    pub fn depth(&self) -> usize {
        self.lock().waiting.len()
    }

    /// Puts an entry at the end.
    ///
    /// # Errors
    /// The entry comes back with [`ClassifierError::QueueFull`], [`ClassifierError::QueueLong`] when more than half of its
    /// time would be over when its turn came, or [`ClassifierError::Draining`]; its reply was not called.
    #[allow(clippy::result_large_err)] // the entry comes back by value, and the caller answers it at once
    pub fn push(&self, entry: Entry) -> Result<(), (Entry, ClassifierError)> {
        let mut state = self.lock();
        if state.closed {
            return Err((entry, ClassifierError::Draining));
        }
        if state.waiting.len() >= self.capacity {
            let full = ClassifierError::QueueFull { model: self.model.clone(), capacity: self.capacity };
            return Err((entry, full));
        }
        let wait = state.wait.behind(state.waiting.len());
        if wait > entry.deadline.remaining() / 2 {
            return Err((entry, ClassifierError::QueueLong { model: self.model.clone(), wait }));
        }
        state.waiting.push_back(entry);
        events::queue_depth(&self.model, state.waiting.len());
        drop(state);
        self.filled.notify_one();
        Ok(())
    }

    /// Waits for work and seals a batch of at most `max` entries: this executor's share of what waits, so that idle
    /// executors beside it have work too. Futile entries are answered and left out; one moment decides for all of
    /// them, and how much time it left to those in the batch is counted. `None` when the queue was closed and is empty.
    pub fn take(&self, max: usize) -> Option<Vec<Entry>> {
        let mut batch = Vec::new();
        let mut futile = Vec::new();
        let mut state = self.lock();
        let sealed = loop {
            let sealed = Moment::now();
            let share = state.waiting.len().div_ceil(state.idle + 1).min(max);
            while batch.len() < share {
                let Some(mut entry) = state.waiting.pop_front() else { break };
                entry.traced.dequeued();
                events::dequeued(entry.since.elapsed());
                match entry.futile(sealed) {
                    Some(why) => futile.push((entry, why)),
                    None => batch.push(entry),
                }
            }
            if !batch.is_empty() || !futile.is_empty() || state.closed {
                break sealed;
            }
            state.idle += 1;
            state = self.filled.wait(state).expect("no holder panics");
            state.idle -= 1;
        };
        events::queue_depth(&self.model, state.waiting.len());
        let others = !state.waiting.is_empty();
        state.wait.left(batch.len() + futile.len(), others, sealed);
        let over = state.closed && state.waiting.is_empty();
        drop(state);
        events::sealed(batch.iter().map(|entry| entry.deadline.instant()), sealed);
        for (entry, why) in futile {
            (entry.reply)(Err(why));
        }
        if batch.is_empty() && over { None } else { Some(batch) }
    }

    /// Takes no more entries; what waits is still run.
    pub fn close(&self) {
        self.lock().closed = true;
        self.filled.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no holder panics")
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, sync_channel};

    use super::*;

    fn entry(timeout: Duration) -> (Entry, Receiver<Result<Done, ClassifierError>>, Arc<AtomicBool>) {
        let (send, receive) = sync_channel(1);
        let cancelled = Arc::new(AtomicBool::new(false));
        let entry = Entry {
            pixels: Bytes::new(),
            deadline: Deadline::after(timeout),
            cancelled: Arc::clone(&cancelled),
            since: Instant::now(),
            traced: Traced::default(),
            reply: Box::new(move |result| send.send(result).unwrap()),
        };
        (entry, receive, cancelled)
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn a_full_queue_turns_entries_away() {
        let queue = Queue::new("m", 2);
        assert!(queue.push(entry(LONG).0).is_ok());
        assert!(queue.push(entry(LONG).0).is_ok());
        let (_, error) = queue.push(entry(LONG).0).err().unwrap();
        assert!(matches!(error, ClassifierError::QueueFull { capacity: 2, .. }));
        assert_eq!(queue.take(8).unwrap().len(), 2);
        assert!(queue.push(entry(LONG).0).is_ok());
    }

    #[test]
    fn an_entry_whose_turn_would_come_too_late_is_turned_away_and_an_empty_queue_takes_all() {
        const SHORT: Duration = Duration::from_millis(50);
        let (queue, now) = (Queue::new("m", 8), Moment::now());
        for ago in (0..=8).rev() {
            queue.lock().wait.left(1, ago > 0, now - Duration::from_millis(10 * ago));
        }
        for _ in 0..3 {
            assert!(queue.push(entry(SHORT).0).is_ok(), "ten milliseconds each");
        }
        let (_, error) = queue.push(entry(SHORT).0).err().unwrap();
        assert!(
            matches!(error, ClassifierError::QueueLong { wait, .. } if wait == Duration::from_millis(30))
        );
        assert!(queue.push(entry(LONG).0).is_ok());
    }

    #[test]
    fn expired_and_cancelled_entries_are_answered_without_a_run() {
        let queue = Queue::new("m", 8);
        let (expired, expired_reply, _) = entry(Duration::ZERO);
        let (cancelled, cancelled_reply, cancel) = entry(LONG);
        let (live, _live_reply, _) = entry(LONG);
        for entry in [expired, cancelled, live] {
            assert!(queue.push(entry).is_ok());
        }
        cancel.store(true, Ordering::Relaxed);
        assert_eq!(queue.take(8).unwrap().len(), 1);
        assert!(matches!(expired_reply.recv().unwrap(), Err(ClassifierError::Expired)));
        assert!(matches!(cancelled_reply.recv().unwrap(), Err(ClassifierError::Cancelled)));
    }

    #[test]
    fn an_abandoned_entry_keeps_its_place_until_it_leaves_the_queue() {
        let queue = Queue::new("m", 1);
        let (first, _reply, cancel) = entry(LONG);
        assert!(queue.push(first).is_ok());
        cancel.store(true, Ordering::Relaxed);
        assert!(queue.push(entry(LONG).0).is_err(), "the cancelled entry's pixels are still in memory");
    }

    #[test]
    fn a_closed_queue_gives_what_it_holds_and_then_ends() {
        let queue = Queue::new("m", 8);
        assert!(queue.push(entry(LONG).0).is_ok());
        queue.close();
        assert!(matches!(queue.push(entry(LONG).0).err().unwrap().1, ClassifierError::Draining));
        assert_eq!(queue.take(8).unwrap().len(), 1);
        assert!(queue.take(8).is_none());
    }

    #[test]
    fn work_is_shared_with_idle_executors() {
        let queue = Arc::new(Queue::new("m", 64));
        let other = {
            let queue = Arc::clone(&queue);
            std::thread::spawn(move || queue.take(8).unwrap().len())
        };
        while queue.lock().idle == 0 {
            std::thread::yield_now();
        }
        let mut state = queue.lock();
        for _ in 0..4 {
            state.waiting.push_back(entry(LONG).0);
        }
        drop(state);
        let mine = queue.take(8).unwrap().len();
        queue.filled.notify_one();
        assert_eq!((mine, other.join().unwrap()), (2, 2));
    }
}
