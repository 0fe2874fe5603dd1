//! Whether waiting for an endpoint makes sense.

use std::time::Duration;

use tokio::time::Instant;

/// Shut when no endpoint was usable for longer than a bound: then whoever calls is told at once. Open again with the first
/// usable one. As linkerd's failfast.
#[derive(Debug)]
pub(super) struct Gate {
    patience: Duration,
    none_since: Option<Instant>,
}

impl Gate {
    /// Nothing is usable yet.
    pub(super) fn new(patience: Duration, now: Instant) -> Self {
        Self { patience, none_since: Some(now) }
    }

    /// Whether an endpoint is usable now.
    pub(super) fn set(&mut self, usable: bool, now: Instant) {
        self.none_since = if usable { None } else { self.none_since.or(Some(now)) };
    }

    /// When it shuts or shut, if nothing becomes usable before; `None` while something is.
    pub(super) fn shuts(&self) -> Option<Instant> {
        self.none_since.map(|since| since + self.patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_shuts_after_the_bound_and_opens_with_the_first_endpoint() {
        let (s, now) = (Duration::from_secs(1), Instant::now());
        let mut gate = Gate::new(3 * s, now);
        assert_eq!(gate.shuts(), Some(now + 3 * s), "also when nothing ever was usable");
        gate.set(true, now + s);
        assert_eq!(gate.shuts(), None);
        gate.set(false, now + 5 * s);
        gate.set(false, now + 7 * s);
        assert_eq!(gate.shuts(), Some(now + 8 * s), "counted from the first moment without");
        gate.set(true, now + 20 * s);
        assert_eq!(gate.shuts(), None);
    }
}
