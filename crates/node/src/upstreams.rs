//! From settings to the services that a process calls: where they are, how they are reached, who they must be.

use std::{collections::HashMap, env, sync::Arc};

use sightline_mesh::{
    auth::service_token,
    client::{ClusterOptions, discovery::Targets},
};

use crate::{NodeConfig, NodeError, tls::Tls};

/// The services that ingest calls, each with the setting that says where it is.
pub(crate) const SERVICES: [&str; 3] = ["classifier", "ratelimiter", "stats"];

/// Makes options of clusters.
pub(crate) struct Upstreams<'a> {
    config: &'a NodeConfig,
    tls: &'a Tls,
    metadata: HashMap<&'static str, String>,
}

impl<'a> Upstreams<'a> {
    pub(crate) fn new(config: &'a NodeConfig, tls: &'a Tls) -> Result<Self, NodeError> {
        Ok(Self { config, tls, metadata: service_token(&config.auth)? })
    }

    /// How one of [`SERVICES`] is called.
    pub(crate) fn options(&self, service: &'static str) -> Result<ClusterOptions, NodeError> {
        let ingest = &self.config.ingest;
        let entries = match service {
            "classifier" => &ingest.classifier,
            "ratelimiter" => &ingest.ratelimiter,
            _ => &ingest.stats,
        };
        let setting = format!("`ingest.{service}`");
        let discover = self.config.discovery.options(|name| env::var(name).ok());
        let targets = Targets::parse(&setting, entries)?;
        let certified = targets.certificate_name();
        let discover = targets.discover(&setting, &discover)?;
        let mut options = ClusterOptions::over(service, discover).metadata(&self.metadata)?;
        options.mesh = self.config.mesh.options();
        if let Some(connector) = self.tls.connector(service)? {
            let named = self.config.tls.servers.contains_key(service);
            let connector = match certified.filter(|_| !named) {
                Some(name) => connector.asking_for(&name).map_err(NodeError::Config)?,
                None => connector,
            };
            options.connect = Arc::new(connector);
        }
        Ok(options)
    }
}
