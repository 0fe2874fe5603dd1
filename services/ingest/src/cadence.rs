//! When a client should send its next frame: less often while everything is safe (R4).

use std::time::Duration;

use moka::sync::Cache;
use sightline_proto::verdict::Level;

use crate::config::PolicyConfig;

/// Clients remembered at once; about 100 bytes each. A forgotten one starts over at the usual interval.
const MAX_CLIENTS: u64 = 200_000;
/// A client silent for this long starts over.
const FORGET_AFTER: Duration = Duration::from_secs(600);

/// Counts safe frames in a row by tenant, user and device.
#[derive(Debug, Clone)]
pub struct Cadence {
    safe_runs: Cache<(String, String, String), u32>,
    config: PolicyConfig,
}

impl Cadence {
    /// With the intervals of `config`.
    pub fn new(config: &PolicyConfig) -> Self {
        let safe_runs = Cache::builder().max_capacity(MAX_CLIENTS).time_to_idle(FORGET_AFTER).build();
        Self { safe_runs, config: config.clone() }
    }

    /// Notes a verdict and says how long the client should wait. From `SUGGESTIVE` on a frame is unsafe.
    pub fn next(&self, tenant: &str, user: &str, device: &str, level: Level) -> Duration {
        let client = (tenant.to_owned(), user.to_owned(), device.to_owned());
        if level.severity() >= Level::Suggestive.severity() {
            self.safe_runs.invalidate(&client);
            return self.config.capture_interval.0;
        }
        let entry = self
            .safe_runs
            .entry(client)
            .and_upsert_with(|seen| seen.map_or(0, |run| run.into_value()).saturating_add(1));
        match entry.into_value() {
            run if run >= self.config.quiet_after => self.config.quiet_interval.0,
            run if run >= self.config.calm_after => self.config.calm_interval.0,
            _ => self.config.capture_interval.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn safe_runs_slow_a_client_down_and_an_unsafe_frame_speeds_it_up() {
        let cadence = Cadence::new(&PolicyConfig::default());
        let next = |level| cadence.next("t", "ada", "phone", level).as_secs();
        let run: Vec<u64> = (0..13).map(|_| next(Level::None)).collect();
        assert_eq!(run, [5, 5, 5, 5, 5, 10, 10, 10, 10, 10, 10, 15, 15]);
        assert_eq!(next(Level::Suggestive), 5);
        assert_eq!(next(Level::Mild), 5);
        assert_eq!(cadence.next("t", "bob", "phone", Level::None).as_secs(), 5);
    }
}
