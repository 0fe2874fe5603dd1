//! The whole configuration of a process.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use sightline_classifier::ClassifierConfig;
use sightline_config::Registry;
use sightline_ingest::{IngestConfig, PolicyConfig};
use sightline_mesh::auth::AuthConfig;
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
    }
}

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
        self.ingest.validate()?;
        self.policy.validate()?;
        self.ratelimiter.validate().map_err(|error| error.to_string())?;
        self.stats.validate()
    }

    /// As the commented TOML file that sets exactly these values.
    pub fn render(&self) -> String {
        let values = toml::Table::try_from(self).expect("a configuration is plain TOML");
        registry().render(&values)
    }
}
