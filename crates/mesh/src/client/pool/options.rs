//! How a pool behaves: settings, their defaults and why.

use std::time::Duration;

use super::super::call::{RetryBudgetOptions, ThrottleOptions};

/// How a pool behaves.
#[derive(Debug, Clone, Copy)]
pub struct PoolOptions {
    /// Streams to each replica, always: 1. More carry no more over the same connection.
    pub min_streams: usize,
    /// Streams to each replica at most: 4. Each brings credits of its own, so this bounds what one client may leave
    /// unanswered at one replica.
    pub max_streams: usize,
    /// A stream beyond the least that no message needed for this long is ended: 30 s.
    pub idle: Duration,
    /// A stream is replaced at this age, by up to a fifth earlier or later so that those of a fleet do not end together: 10
    /// minutes. What it carries is finished.
    pub max_age: Duration,
    /// How many times one message may be sent to a server that may act on it, the first time included: 3.
    pub max_attempts: usize,
    /// How long a caller waits while no stream is open at all, deadline permitting: 2 s.
    pub patience: Duration,
    /// Callers that may wait for a credit: 16,384. Past it they hear `RESOURCE_EXHAUSTED` at once, as do those whose turn
    /// would come when more than half of their time is over.
    pub max_waiting: usize,
    /// When a message that is not answered is sent to another replica too.
    pub stall: StallOptions,
    /// What bounds messages sent again.
    pub budget: RetryBudgetOptions,
    /// When messages are held back because the service sheds. Its window is 3 s, not a channel's two minutes: messages are many,
    /// and when a surge is over, all of them should be sent again soon.
    pub throttle: ThrottleOptions,
    /// Where random choices start: the same seed and the same events give the same choices. `None` in production.
    pub seed: Option<u64>,
}

impl Default for PoolOptions {
    fn default() -> Self {
        Self {
            min_streams: 1,
            max_streams: 4,
            idle: Duration::from_secs(30),
            max_age: Duration::from_secs(600),
            max_attempts: 3,
            patience: Duration::from_secs(2),
            max_waiting: 16_384,
            stall: StallOptions::default(),
            budget: RetryBudgetOptions::default(),
            throttle: ThrottleOptions { window: Duration::from_secs(3), ..ThrottleOptions::default() },
            seed: None,
        }
    }
}

/// When a message counts as stalled: after `factor` times the `quantile` of the latest latencies, between `floor` and
/// `ceiling`, and never later than half of the time its caller still has.
#[derive(Debug, Clone, Copy)]
pub struct StallOptions {
    /// Of the latencies of answers over all replicas: 0.95. Fewer than one message in twenty is slower.
    pub quantile: f64,
    /// Of that: 2. What takes twice as long as nearly all others is likely to be lost.
    pub factor: f64,
    /// Never sooner: 20 ms, so that the scheduling of a busy machine is not taken for a stall.
    pub floor: Duration,
    /// Never later: 1 s. Then a replica that hangs is found in well under the 4 s that its connection takes to fail.
    pub ceiling: Duration,
}

impl Default for StallOptions {
    fn default() -> Self {
        Self {
            quantile: 0.95,
            factor: 2.0,
            floor: Duration::from_millis(20),
            ceiling: Duration::from_secs(1),
        }
    }
}
