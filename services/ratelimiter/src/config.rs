//! The section `[ratelimiter]`.

use std::net::{Ipv4Addr, SocketAddr};

use sightline_config::HumanDuration;

sightline_config::settings! {
    /// The rate limiter: which rules, and how much memory their counters may take.
    pub struct RateLimiterConfig in "ratelimiter" {
        /// Where it listens.
        pub listen: SocketAddr = SocketAddr::from((Ipv4Addr::LOCALHOST, 7403)),
        /// The rules: the preset "production" or "dev", or the path of a TOML file of [[rule]] tables.
        pub rules: String = "production".into(),
        /// Counters kept at most, about 80 bytes each. 250,000 users under three rules each and as many addresses make
        /// a million; beyond it the counter nearest to being full again is forgotten.
        pub max_keys: usize = 1_000_000,
        /// How often counters that are as if never used are forgotten.
        pub idle_sweep: HumanDuration = HumanDuration::from_secs(10),
        /// Checks of one stream that may be undecided at once.
        pub max_in_flight: usize = 256,
        /// How long a drain may take.
        pub drain_timeout: HumanDuration = HumanDuration::from_secs(10),
    }
}

/// The memory store's shards times the most rules that may apply to a check: then the counters of one check always fit.
const MIN_KEYS: usize = crate::store::memory::SHARDS * crate::rules::MAX_RULES;

/// A value that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`ratelimiter.{field}` {problem}")]
pub struct ValueError {
    /// The key.
    pub field: &'static str,
    /// What it must be.
    pub problem: String,
}

impl RateLimiterConfig {
    /// Checks what the types do not; the rules are checked when they are read.
    ///
    /// # Errors
    /// [`ValueError`] naming the key.
    pub fn validate(&self) -> Result<(), ValueError> {
        let wrong = |field, problem: String| Err(ValueError { field, problem });
        if self.max_keys < MIN_KEYS {
            return wrong("max_keys", format!("is {}; it must be at least {MIN_KEYS}", self.max_keys));
        }
        if self.idle_sweep.is_zero() {
            return wrong("idle_sweep", "must be longer than 0s".into());
        }
        if self.max_in_flight == 0 {
            return wrong("max_in_flight", "must be at least 1".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid_and_mistakes_are_named() {
        let good = RateLimiterConfig::default();
        assert_eq!(good.validate(), Ok(()));
        for (config, message) in [
            (
                RateLimiterConfig { max_keys: 1, ..good.clone() },
                "`ratelimiter.max_keys` is 1; it must be at least 4096",
            ),
            (
                RateLimiterConfig { idle_sweep: HumanDuration::from_secs(0), ..good.clone() },
                "`ratelimiter.idle_sweep` must be longer than 0s",
            ),
            (
                RateLimiterConfig { max_in_flight: 0, ..good.clone() },
                "`ratelimiter.max_in_flight` must be at least 1",
            ),
        ] {
            assert_eq!(config.validate().unwrap_err().to_string(), message);
        }
    }
}
