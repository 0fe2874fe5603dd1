//! Whether a process would start with a configuration, found out without starting one.

use std::net::SocketAddr;

use sightline_mesh::{
    auth::{Verifier, service_token},
    client::Endpoints,
};
use sightline_model::manifest::Manifest;
use sightline_ratelimiter::rules::RuleSet;

use crate::{NodeConfig, NodeError, Role};

/// Checks what can be checked without a port, a model in memory or a store: values, keys, rules, addresses, manifests.
/// Called inside a tokio runtime.
///
/// # Errors
/// [`NodeError`], the one with which the process would end.
pub fn check(config: &NodeConfig) -> Result<(), NodeError> {
    config.validate().map_err(NodeError::Config)?;
    config.telemetry.validate().map_err(|error| NodeError::Config(error.to_string()))?;
    let verifier = Verifier::from_config(&config.auth)?;
    for role in Role::ALL {
        let (setting, address) = role.listen(config);
        check_reach(config, verifier.is_some(), setting, address)?;
    }
    RuleSet::load(&config.ratelimiter.rules).map_err(|error| NodeError::RateLimiter(error.into()))?;
    let metadata = service_token(&config.auth)?;
    let ingest = &config.ingest;
    for (service, uris) in
        [("classifier", &ingest.classifier), ("ratelimiter", &ingest.ratelimiter), ("stats", &ingest.stats)]
    {
        Endpoints::new(service, uris, &metadata)?;
    }
    for folder in &config.classifier.models {
        Manifest::load(folder).map_err(|error| NodeError::Config(format!("`classifier.models`: {error}")))?;
    }
    Ok(())
}

/// Beyond loopback somebody has to show a token, unless the operator says otherwise.
pub(crate) fn check_reach(
    config: &NodeConfig,
    has_keys: bool,
    setting: &'static str,
    address: SocketAddr,
) -> Result<(), NodeError> {
    if !has_keys && !config.node.insecure && !address.ip().is_loopback() {
        return Err(NodeError::Insecure { setting, address });
    }
    Ok(())
}
