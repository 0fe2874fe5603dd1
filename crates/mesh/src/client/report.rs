//! Says how the streams to a service are, for `/healthz` and `grpc.health.v1`.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use sightline_telemetry::dependencies::{Condition, Dependency};
use tokio::time::{Instant, sleep};

/// How often it is looked at.
const LOOK: Duration = Duration::from_millis(250);
/// How long a process that starts may connect before that is worth saying.
const START: Duration = Duration::from_secs(3);

/// What is missing while no replica can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Without {
    /// Calls fail.
    Fails,
    /// The caller goes on with less.
    GoesOn,
}

/// Where the state of a service's streams is reported, and what went wrong last.
#[derive(Debug)]
pub(super) struct Report {
    dependency: Dependency,
    without: Without,
}

/// Why the last stream ended or could not be opened. Addresses and codes, nothing that a caller sent.
#[derive(Debug, Default)]
pub(super) struct LastProblem(Mutex<String>);

impl LastProblem {
    pub(super) fn set(&self, problem: String) {
        *self.lock() = problem;
    }

    fn get(&self) -> String {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Report {
    pub(super) fn new(dependency: Dependency, without: Without) -> Self {
        Self { dependency, without }
    }

    fn condition(&self, open: usize, of: usize, problem: &str) -> Condition {
        match (open, self.without) {
            (open, _) if open >= of => Condition::Healthy,
            (0, Without::Fails) => Condition::Down(format!("no stream is open: {problem}")),
            (0, Without::GoesOn) => Condition::Degraded(format!("no stream is open: {problem}")),
            _ => Condition::Degraded(format!("{open} of {of} streams are open: {problem}")),
        }
    }

    /// Reports how many of `of` streams are open, for as long as it is polled.
    pub(super) async fn keep(&self, open: impl Fn() -> usize, of: usize, problem: &LastProblem) {
        let since = Instant::now();
        loop {
            sleep(LOOK).await;
            let open = open();
            if open < of && since.elapsed() < START {
                continue;
            }
            self.dependency.report(self.condition(open, of, &problem.get()));
        }
    }
}

#[cfg(test)]
mod tests {
    use sightline_telemetry::dependencies::Dependencies;

    use super::*;

    #[test]
    fn a_service_without_streams_is_down_or_missed() {
        let all = Dependencies::default();
        let report = |without| Report::new(all.register("stats"), without);
        assert_eq!(report(Without::Fails).condition(2, 2, ""), Condition::Healthy);
        let some = Condition::Degraded("1 of 2 streams are open: refused".into());
        assert_eq!(report(Without::Fails).condition(1, 2, "refused"), some);
        let down = Condition::Down("no stream is open: refused".into());
        assert_eq!(report(Without::Fails).condition(0, 2, "refused"), down);
        let missed = Condition::Degraded("no stream is open: refused".into());
        assert_eq!(report(Without::GoesOn).condition(0, 2, "refused"), missed);
    }
}
