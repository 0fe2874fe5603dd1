//! What the log says of refused connections: each is counted in the metrics, not each is a line.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::sleep;
use tracing::warn;

/// After a line in full, others are put together in one for so long: a replica without its certificate tries again and
/// again, and a scanner as often as it likes.
const INTERVAL: Duration = Duration::from_secs(10);

/// The refusals of one listener. The first is told at once and in full, those after it once per interval and summed up,
/// until an interval passes without any.
#[derive(Debug, Clone)]
pub(super) struct Complaints {
    server: &'static str,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Whether a task waits to sum up.
    waiting: bool,
    /// How many were not told, by kind.
    untold: BTreeMap<&'static str, u64>,
    /// The last of them.
    last: Option<(SocketAddr, String)>,
}

impl Complaints {
    pub(super) fn new(server: &'static str) -> Self {
        Self { server, state: Arc::default() }
    }

    /// A peer was refused; `kind` is that of the metric.
    pub(super) fn about(&self, peer: SocketAddr, kind: &'static str, why: String) {
        let first = self.with(|state| state.note(peer, kind, why));
        let Some(why) = first else { return };
        let server = self.server;
        warn!(server, %peer, "refused: {why}");
        let complaints = self.clone();
        tokio::spawn(async move {
            loop {
                sleep(INTERVAL).await;
                let Some(summary) = complaints.with(State::sum_up) else { return };
                warn!(server, "{summary}");
            }
        });
    }

    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl State {
    /// Gives the reason back when it is to be told now.
    fn note(&mut self, peer: SocketAddr, kind: &'static str, why: String) -> Option<String> {
        if !self.waiting {
            self.waiting = true;
            return Some(why);
        }
        *self.untold.entry(kind).or_default() += 1;
        self.last = Some((peer, why));
        None
    }

    /// What happened since; `None` when nothing did, and the next is told at once again.
    fn sum_up(&mut self) -> Option<String> {
        let Some((peer, why)) = self.last.take() else {
            self.waiting = false;
            return None;
        };
        let kinds = std::mem::take(&mut self.untold);
        let count: u64 = kinds.values().sum();
        let kinds: Vec<_> = kinds.iter().map(|(kind, count)| format!("{kind} {count}")).collect();
        let kinds = kinds.join(", ");
        Some(format!("refused {count} more in the last {INTERVAL:?} ({kinds}); the last, {peer}: {why}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_and_the_others_are_summed_up() {
        let mut state = State::default();
        let peer = |port| SocketAddr::from(([192, 0, 2, 1], port));
        assert_eq!(state.note(peer(1), "identity", "first".into()).as_deref(), Some("first"));
        for port in 2..1000 {
            let kind = if port % 2 == 0 { "identity" } else { "certificate" };
            assert_eq!(state.note(peer(port), kind, format!("number {port}")), None);
        }
        let summary = "refused 998 more in the last 10s (certificate 499, identity 499); the last, 192.0.2.1:999: number 999";
        assert_eq!(state.sum_up().as_deref(), Some(summary));
        // Still within an interval of the last line: no line of its own.
        assert_eq!(state.note(peer(1), "identity", "again".into()), None);
        assert!(state.sum_up().unwrap().starts_with("refused 1 more"));
        assert_eq!(state.sum_up(), None);
        assert_eq!(state.note(peer(1), "identity", "later".into()).as_deref(), Some("later"));
    }
}
