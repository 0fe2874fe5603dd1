//! The section `[ratelimiter]`.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use sightline_config::{HumanDuration, ServerUrl};

sightline_config::settings! {
    /// The rate limiter: which rules, and how much memory their counters may take.
    pub struct RateLimiterConfig in "ratelimiter" {
        /// Where it listens.
        pub listen: SocketAddr = SocketAddr::from((Ipv4Addr::LOCALHOST, 7403)),
        /// The rules: the preset "production" or "dev", or the path of a TOML file of [[rule]] tables.
        pub rules: String = "production".into(),
        /// Where counters live that all replicas share: redis://user:password@host:6379/0, redis+cluster://a:6379,b:6379 or
        /// redis+sentinel://a:26379,b:26379/master; with rediss, TLS. Unset: in this process, for a single replica.
        pub redis_url: Option<ServerUrl> = None,
        /// The CA that signed Redis's certificate, in PEM. Unset: those that the system trusts.
        pub redis_ca_file: Option<PathBuf> = None,
        /// No check waits longer for Redis; then each rule does what its `when_away` says. 3 ms are many round trips within
        /// a data centre, and leave 2 ms, of which a timer may take one, of the 5 in which a check is answered when Redis is away.
        pub redis_timeout: HumanDuration = HumanDuration::from_millis(3),
        /// What its keys in Redis begin with. Meshes that share a Redis need different ones.
        pub redis_prefix: String = "sightline:limit:".into(),
        /// Checks that share one round trip at most. Beyond 64 a check costs Redis no less, and it does nothing else meanwhile.
        pub redis_batch: usize = 64,
        /// Checks that may wait for a round trip: at 64 a trip, 64 trips, far more than fit into `redis_timeout`.
        pub redis_queue: usize = 4096,
        /// How much longer than it needs a counter's key is kept in Redis when its time to live is set, which costs Redis more
        /// than counting: one that is charged every few seconds sets it once in this time. The price is memory, about 150
        /// bytes, for so much longer after its last charge.
        pub redis_keep: HumanDuration = HumanDuration::from_secs(60),
        /// Counters at their limit that are remembered, so that a caller who hammers is refused without asking Redis; 32 bytes
        /// each, 8 MB. 0: none.
        pub deny_cache: usize = 262_144,
        /// Replicas that share the limits of `local_share` rules while Redis is away. Unset: as many as said in Redis that
        /// they are alive, when it was last heard of.
        pub replicas: Option<u32> = None,
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

/// Redis serves nobody else while it decides a batch.
const MAX_BATCH: usize = 1024;
/// More replicas than a mesh has.
const MAX_REPLICAS: u32 = 500;
/// Keys of counters out of use are only memory.
const MAX_KEEP: Duration = Duration::from_secs(24 * 3600);

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
        let least_one = [
            ("max_in_flight", self.max_in_flight),
            ("redis_batch", self.redis_batch),
            ("redis_queue", self.redis_queue),
        ];
        if let Some((field, _)) = least_one.iter().find(|(_, value)| *value == 0) {
            return wrong(field, "must be at least 1".into());
        }
        if self.redis_batch > MAX_BATCH {
            return wrong("redis_batch", format!("is {}; it must be at most {MAX_BATCH}", self.redis_batch));
        }
        if self.redis_timeout.is_zero() {
            return wrong("redis_timeout", "must be longer than 0s".into());
        }
        if self.redis_keep.0 > MAX_KEEP {
            return wrong("redis_keep", "must be at most 24h: idle counters would fill Redis".into());
        }
        if self.redis_prefix.contains(['{', '}']) {
            return wrong(
                "redis_prefix",
                "must have no { or }: a Cluster would read it as the hash tag".into(),
            );
        }
        if self.replicas.is_some_and(|replicas| !(1..=MAX_REPLICAS).contains(&replicas)) {
            return wrong("replicas", format!("must be from 1 to {MAX_REPLICAS}"));
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
            (
                RateLimiterConfig { redis_batch: 1025, ..good.clone() },
                "`ratelimiter.redis_batch` is 1025; it must be at most 1024",
            ),
            (
                RateLimiterConfig { redis_timeout: HumanDuration::from_secs(0), ..good.clone() },
                "`ratelimiter.redis_timeout` must be longer than 0s",
            ),
            (
                RateLimiterConfig { redis_keep: HumanDuration::from_secs(86_401), ..good.clone() },
                "`ratelimiter.redis_keep` must be at most 24h: idle counters would fill Redis",
            ),
            (
                RateLimiterConfig { redis_prefix: "a{b".into(), ..good.clone() },
                "`ratelimiter.redis_prefix` must have no { or }: a Cluster would read it as the hash tag",
            ),
            (
                RateLimiterConfig { replicas: Some(0), ..good.clone() },
                "`ratelimiter.replicas` must be from 1 to 500",
            ),
        ] {
            assert_eq!(config.validate().unwrap_err().to_string(), message);
        }
    }
}
