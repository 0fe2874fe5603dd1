//! Whether a process would start with a configuration, found out without starting one.

use std::net::SocketAddr;

use sightline_mesh::auth::Verifier;
use sightline_model::manifest::Manifest;
use sightline_ratelimiter::rules::RuleSet;

use crate::{
    NodeConfig, NodeError, Role,
    tls::Tls,
    upstreams::{SERVICES, Upstreams},
};

/// Checks what can be checked without a port, a model in memory or a store: values, keys, rules, addresses, manifests.
/// Called inside a tokio runtime.
///
/// # Errors
/// [`NodeError`], the one with which the process would end.
pub fn check(config: &NodeConfig) -> Result<(), NodeError> {
    config.validate().map_err(NodeError::Config)?;
    config.telemetry.validate().map_err(|error| NodeError::Config(error.to_string()))?;
    let verifier = Verifier::from_config(&config.auth)?;
    let tls = Tls::load(config)?;
    for role in Role::ALL {
        let (setting, address) = role.listen(config);
        check_reach(config, verifier.is_some() || tls.is_mutual(role), setting, address)?;
        // A process of other roles needs no list for this one.
        if config.tls.callers.contains_key(role.name()) {
            tls.acceptor(role)?;
        }
        tls.connector(role.name())?;
    }
    RuleSet::load(&config.ratelimiter.rules).map_err(|error| NodeError::RateLimiter(error.into()))?;
    let upstreams = Upstreams::new(config, &tls)?;
    for service in SERVICES {
        upstreams.options(service)?;
    }
    for folder in &config.classifier.models {
        Manifest::load(folder).map_err(|error| NodeError::Config(format!("`classifier.models`: {error}")))?;
    }
    Ok(())
}

/// Beyond loopback somebody has to show a token, or between services a certificate, unless the operator says otherwise.
pub(crate) fn check_reach(
    config: &NodeConfig,
    is_guarded: bool,
    setting: &'static str,
    address: SocketAddr,
) -> Result<(), NodeError> {
    if !is_guarded && !config.node.insecure && !address.ip().is_loopback() {
        return Err(NodeError::Insecure { setting, address });
    }
    Ok(())
}
