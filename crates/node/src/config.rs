//! The whole configuration of a process.

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};
use sightline_classifier::ClassifierConfig;
use sightline_config::{HumanDuration, Registry};
use sightline_ingest::{IngestConfig, PolicyConfig};
use sightline_mesh::{
    auth::AuthConfig,
    client::{MeshConfig, discovery::DiscoveryConfig},
    identity::{EdgeTlsConfig, MeshTlsConfig},
    server::ServerConfig,
};
use sightline_ratelimiter::RateLimiterConfig;
use sightline_stats::StatsConfig;
use sightline_telemetry::TelemetryConfig;

sightline_config::settings! {
    /// What concerns the process as a whole.
    pub struct NodeSettings in "node" {
        /// Where embedded stores keep their files; made when missing.
        pub data_dir: PathBuf = "sightline-data".into(),
        /// Listen beyond loopback although nobody has to show a token. Only for closed networks.
        pub insecure: bool = false,
        /// Threads that serve calls. Unset: one where `serve` runs nothing but a rate limiter, which mostly waits for Redis and
        /// decides some 90,000 checks a second on one, for a quarter less CPU each than on two that hand calls to each
        /// other; else as many as cores.
        pub worker_threads: Option<usize> = None,
    }
}

/// More than machines have cores.
const MAX_WORKER_THREADS: usize = 1024;

/// How much longer the statistics must remember an event's id than ingest takes old frames: an event waits while the
/// statistics are away, and hours are what they can tell apart.
const DEDUPE_MARGIN: Duration = Duration::from_secs(3600);

/// One struct per section; a process reads those of its roles and checks all.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NodeConfig {
    /// `[node]`
    pub node: NodeSettings,
    /// `[telemetry]`
    pub telemetry: TelemetryConfig,
    /// `[auth]`
    pub auth: AuthConfig,
    /// `[edge_tls]`
    pub edge_tls: EdgeTlsConfig,
    /// `[tls]`
    pub tls: MeshTlsConfig,
    /// `[server]`
    pub server: ServerConfig,
    /// `[mesh]`
    pub mesh: MeshConfig,
    /// `[discovery]`
    pub discovery: DiscoveryConfig,
    /// `[ingest]`
    pub ingest: IngestConfig,
    /// `[policy]`
    pub policy: PolicyConfig,
    /// `[classifier]`
    pub classifier: ClassifierConfig,
    /// `[ratelimiter]`
    pub ratelimiter: RateLimiterConfig,
    /// `[stats]`
    pub stats: StatsConfig,
}

/// Every section and key there is.
pub fn registry() -> Registry {
    Registry::default()
        .with::<NodeSettings>()
        .with::<TelemetryConfig>()
        .with::<AuthConfig>()
        .with::<EdgeTlsConfig>()
        .with::<MeshTlsConfig>()
        .with::<ServerConfig>()
        .with::<MeshConfig>()
        .with::<DiscoveryConfig>()
        .with::<IngestConfig>()
        .with::<PolicyConfig>()
        .with::<ClassifierConfig>()
        .with::<RateLimiterConfig>()
        .with::<StatsConfig>()
}

impl NodeConfig {
    /// Checks what types cannot, in every section.
    ///
    /// # Errors
    /// A text naming the key.
    pub fn validate(&self) -> Result<(), String> {
        if self.node.worker_threads.is_some_and(|threads| !(1..=MAX_WORKER_THREADS).contains(&threads)) {
            return Err(format!("`node.worker_threads` must be from 1 to {MAX_WORKER_THREADS}"));
        }
        self.server.validate()?;
        self.mesh.validate()?;
        self.discovery.validate()?;
        self.ingest.validate()?;
        self.policy.validate()?;
        self.classifier.validate()?;
        self.ratelimiter.validate().map_err(|error| error.to_string())?;
        self.stats.validate()?;
        // Otherwise ingest would give a verdict that the statistics then refuse to count (P2).
        let least = sightline_ingest::MAX_AGE + DEDUPE_MARGIN;
        if self.stats.dedupe_window.0 < least {
            return Err(format!(
                "`stats.dedupe_window` must be at least {}: ingest takes frames that are up to {} old",
                HumanDuration(least),
                HumanDuration(sightline_ingest::MAX_AGE),
            ));
        }
        Ok(())
    }

    /// As the commented TOML file that sets exactly these values.
    pub fn render(&self) -> String {
        let values = toml::Table::try_from(self).expect("a configuration is plain TOML");
        registry().render(&values)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_remembered_longer_than_frames_are_taken() {
        let mut config = NodeConfig::default();
        assert_eq!(config.validate(), Ok(()));
        let least = sightline_ingest::MAX_AGE + DEDUPE_MARGIN;
        config.stats.dedupe_window = HumanDuration(least);
        assert_eq!(config.validate(), Ok(()));
        config.stats.dedupe_window = HumanDuration(least - Duration::from_secs(1));
        assert_eq!(
            config.validate().unwrap_err(),
            "`stats.dedupe_window` must be at least 6days 1h: ingest takes frames that are up to 6days old"
        );
    }

    #[test]
    fn every_section_with_rules_is_checked() {
        assert_eq!(NodeConfig::default().validate(), Ok(()));
        type Change = fn(&mut NodeConfig);
        let change: [(&str, Change); 4] = [
            ("`server.max_calls` (0)", |config| config.server.max_calls = 0),
            ("`classifier.stream_credits` (0)", |config| config.classifier.stream_credits = 0),
            ("`stats.max_batch_events` (5001)", |config| config.stats.max_batch_events = 5_001),
            ("`stats.query_threads`", |config| config.stats.query_threads = 0),
        ];
        for (setting, change) in change {
            let mut config = NodeConfig::default();
            change(&mut config);
            let said = config.validate().unwrap_err();
            assert!(said.starts_with(setting), "{said}");
        }
    }
}
