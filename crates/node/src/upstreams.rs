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
        let discover = Targets::parse(&setting, entries)?.discover(&setting, &discover)?;
        let mut options = ClusterOptions::over(service, discover).metadata(&self.metadata)?;
        options.mesh = self.config.mesh.options();
        if let Some(connector) = self.tls.connector(service)? {
            let named = self.config.tls.servers.contains_key(service);
            let connector = match entries.first().filter(|_| !named) {
                // Addresses found by a name are numbers; the certificate has the name.
                Some(entry) => connector.asking_for(host(entry)).map_err(NodeError::Config)?,
                None => connector,
            };
            options.connect = Arc::new(connector);
        }
        Ok(options)
    }
}

/// `dns://stats.mesh:7404` → `stats.mesh`.
fn host(entry: &str) -> &str {
    let rest = entry.split_once("://").map_or(entry, |(_, rest)| rest);
    let authority = rest.split('/').next().unwrap_or(rest);
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => host.trim_matches(['[', ']']),
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_what_certificates_name() {
        for (entry, wanted) in [
            ("http://10.0.0.1:7404", "10.0.0.1"),
            ("dns://stats.mesh:7404", "stats.mesh"),
            ("https://[::1]:7404", "::1"),
            ("127.0.0.1:7404", "127.0.0.1"),
            ("https://stats", "stats"),
        ] {
            assert_eq!(host(entry), wanted, "{entry}");
        }
    }
}
