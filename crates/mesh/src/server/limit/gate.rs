//! A bounded number of unary calls at once, and a bounded queue before them.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use metrics::Gauge;
use tokio::{
    sync::oneshot,
    time::{Instant, timeout},
};

use super::{concurrency::Concurrency, patience::Patience};
use crate::server::ServerConfig;

/// Lets unary calls in. A place belongs to the call until its answer is ready, or its caller is gone.
#[derive(Debug)]
pub(super) struct Gate {
    state: Mutex<State>,
    max_queued: usize,
    /// Shows how many places there are.
    shown: Gauge,
}

#[derive(Debug)]
struct State {
    in_flight: usize,
    concurrency: Concurrency,
    patience: Patience,
    waiting: VecDeque<oneshot::Sender<Place>>,
}

/// Why a call was not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Crowded {
    /// As many wait as may.
    Full,
    /// It has waited as long as it may.
    Waited,
}

impl Gate {
    pub(super) fn new(config: &ServerConfig, shown: Gauge) -> Arc<Self> {
        let target = config.latency_target.0;
        let state = State {
            in_flight: 0,
            concurrency: Concurrency::new(config.min_calls, config.max_calls, target),
            patience: Patience::new(config.queue_timeout.0),
            waiting: VecDeque::new(),
        };
        shown.set(state.concurrency.limit() as f64);
        Arc::new(Self { state: Mutex::new(state), max_queued: config.max_queued_calls, shown })
    }

    /// Waits for a place, no longer than `longest`.
    pub(super) async fn enter(self: &Arc<Self>, longest: Duration) -> Result<Place, Crowded> {
        let (place, patience) = {
            let (mut state, now) = (self.lock(), Instant::now());
            state.forget_those_who_left(self.max_queued);
            if state.waiting.is_empty() && state.in_flight < state.concurrency.limit() {
                state.in_flight += 1;
                return Ok(self.place(now));
            }
            if state.waiting.len() >= self.max_queued {
                return Err(Crowded::Full);
            }
            let queue_is_empty = state.waiting.is_empty();
            let patience = state.patience.of_next(now, queue_is_empty);
            let (give, place) = oneshot::channel();
            state.waiting.push_back(give);
            (place, patience)
        };
        match timeout(patience.min(longest), place).await {
            Ok(Ok(place)) => Ok(place),
            _ => Err(Crowded::Waited),
        }
    }

    /// How many places there are now.
    pub(super) fn limit(&self) -> usize {
        self.lock().concurrency.limit()
    }

    fn place(self: &Arc<Self>, since: Instant) -> Place {
        Place { gate: Arc::clone(self), since, ended: false }
    }

    /// Counts a call that has ended, and gives places to those who wait.
    fn leave(self: &Arc<Self>, latency: Duration, ended: bool) {
        let now = Instant::now();
        // What is sent to one who has just left comes back, and is dropped outside of the lock.
        let mut given = Vec::new();
        {
            let mut state = self.lock();
            // How long a call would have taken whose caller left is not known; that it took too long may be.
            if ended || state.concurrency.is_late(latency) {
                let (in_flight, before) = (state.in_flight, state.concurrency.limit());
                state.concurrency.ended(now, latency, in_flight);
                let limit = state.concurrency.limit();
                if limit != before {
                    self.shown.set(limit as f64);
                }
            }
            state.in_flight -= 1;
            while state.in_flight < state.concurrency.limit() {
                let Some(next) = state.waiting.pop_front() else { break };
                if !next.is_closed() {
                    state.in_flight += 1;
                    given.push(next);
                }
            }
        }
        for next in given {
            drop(next.send(self.place(now)));
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn forget_those_who_left(&mut self, max_queued: usize) {
        while self.waiting.front().is_some_and(oneshot::Sender::is_closed) {
            self.waiting.pop_front();
        }
        if self.waiting.len() >= max_queued {
            self.waiting.retain(|waiting| !waiting.is_closed());
        }
    }
}

/// A place at work, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    gate: Arc<Gate>,
    since: Instant,
    ended: bool,
}

impl Place {
    /// The answer is ready.
    pub(super) fn ended(mut self) {
        self.ended = true;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gate.leave(self.since.elapsed(), self.ended);
    }
}

#[cfg(test)]
mod tests {
    use sightline_config::HumanDuration;

    use super::*;

    fn gate(max_calls: usize, max_queued_calls: usize) -> Arc<Gate> {
        let queue_timeout = HumanDuration::from_millis(100);
        let config = ServerConfig { max_calls, max_queued_calls, queue_timeout, ..ServerConfig::default() };
        Gate::new(&config, Gauge::noop())
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn past_the_places_calls_queue_and_past_the_queue_they_are_refused_at_once() {
        let gate = gate(1, 1);
        let first = gate.enter(LONG).await.unwrap();
        let second = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move { gate.enter(LONG).await.map(|place| (Instant::now(), place)) }
        });
        tokio::task::yield_now().await;
        let now = Instant::now();
        assert_eq!(gate.enter(LONG).await.unwrap_err(), Crowded::Full);
        assert_eq!(Instant::now(), now);
        tokio::time::advance(Duration::from_millis(50)).await;
        first.ended();
        let (entered, second) = second.await.unwrap().unwrap();
        assert_eq!(entered.duration_since(now).as_millis(), 50);
        drop(second);
        drop(gate.enter(LONG).await.unwrap());
        assert_eq!(gate.lock().in_flight, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_longer_than_the_queue_allows_or_the_caller_has() {
        let gate = gate(1, 8);
        let _first = gate.enter(LONG).await.unwrap();
        for (longest, waited) in [(LONG, 100), (Duration::from_millis(30), 30)] {
            let now = Instant::now();
            assert_eq!(gate.enter(longest).await.unwrap_err(), Crowded::Waited);
            assert_eq!(now.elapsed().as_millis(), waited);
        }
        assert_eq!(gate.lock().in_flight, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_leaves_the_queue_makes_room_and_is_given_no_place() {
        let gate = gate(1, 1);
        let first = gate.enter(LONG).await.unwrap();
        {
            let mut gone = Box::pin(gate.enter(LONG));
            assert!(timeout(Duration::from_millis(1), &mut gone).await.is_err());
        }
        let waits = tokio::spawn({
            let gate = Arc::clone(&gate);
            async move { gate.enter(LONG).await.map(drop) }
        });
        tokio::task::yield_now().await;
        first.ended();
        assert_eq!(waits.await.unwrap(), Ok(()));
        assert_eq!(gate.lock().in_flight, 0);
    }

    /// 16 workers of 20 ms each behind 32 places, offered five times the 800 calls a second that they can do.
    #[tokio::test(start_paused = true)]
    async fn five_times_the_capacity_costs_none_of_it_and_keeps_calls_in_time() {
        let gate = gate(32, 64);
        let workers = Arc::new(tokio::sync::Semaphore::new(16));
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..10_000 {
            let (gate, workers) = (Arc::clone(&gate), Arc::clone(&workers));
            calls.spawn(async move {
                let began = Instant::now();
                let place = gate.enter(LONG).await.ok()?;
                let worker = workers.acquire().await.ok()?;
                tokio::time::sleep(Duration::from_millis(20)).await;
                drop(worker);
                place.ended();
                Some(began.elapsed())
            });
            tokio::time::sleep(Duration::from_micros(250)).await;
        }
        let mut good: Vec<Duration> = calls.join_all().await.into_iter().flatten().collect();
        good.sort();
        // 2.5 s at 800/s.
        assert!(good.len() >= 1_900, "{}", good.len());
        let p99 = good[good.len() * 99 / 100];
        assert!(p99 <= Duration::from_millis(150), "{p99:?}");
    }
}
