//! TLS of a process: its certificates, who may call its roles, and whom it calls.

use std::sync::Arc;

use sightline_mesh::identity::{Acceptor, Connector, Identity};
use sightline_telemetry::dependencies::Dependencies;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use crate::{NodeConfig, NodeError, Role};

/// What `[edge_tls]` and `[tls]` name, read and checked.
#[derive(Debug, Default)]
pub(crate) struct Tls {
    config: NodeConfig,
    edge: Option<Arc<Identity>>,
    mesh: Option<Arc<Identity>>,
}

impl Tls {
    /// Reads the files. Blocks on the disk, for a start.
    pub(crate) fn load(config: &NodeConfig) -> Result<Self, NodeError> {
        let names = Role::ALL.map(Role::name);
        let edge = config.edge_tls.identity().map_err(NodeError::Config)?;
        let mesh = config.tls.identity(&names).map_err(NodeError::Config)?;
        for (section, timeout, identity) in [
            ("edge_tls", config.edge_tls.handshake_timeout, &edge),
            ("tls", config.tls.handshake_timeout, &mesh),
        ] {
            if identity.is_some() && timeout > config.server.handshake_timeout {
                return Err(NodeError::Config(format!(
                    "`{section}.handshake_timeout` ({timeout}) is more than `server.handshake_timeout` ({}), after which \
                     the connection is closed",
                    config.server.handshake_timeout
                )));
            }
        }
        let tls = Self { config: config.clone(), edge, mesh };
        if tls.mesh.is_none() {
            tls.check_schemes()?;
        }
        Ok(tls)
    }

    /// An `https` address is no wish that could be ignored.
    fn check_schemes(&self) -> Result<(), NodeError> {
        let ingest = &self.config.ingest;
        for (role, uris) in [
            (Role::Classifier, &ingest.classifier),
            (Role::Ratelimiter, &ingest.ratelimiter),
            (Role::Stats, &ingest.stats),
        ] {
            if let Some(uri) = uris.iter().find(|uri| uri.starts_with("https://")) {
                return Err(NodeError::Config(format!(
                    "`ingest.{}`: {uri} asks for TLS: set `tls.cert_file`, `tls.key_file` and `tls.ca_file`",
                    role.name()
                )));
            }
        }
        Ok(())
    }

    /// Whether callers of a role prove who they are by certificates.
    pub(crate) fn is_mutual(&self, role: Role) -> bool {
        role != Role::Ingest && self.mesh.is_some()
    }

    /// For a role's listener; `None` for plain HTTP.
    pub(crate) fn acceptor(&self, role: Role) -> Result<Option<Acceptor>, NodeError> {
        match (role, &self.edge, &self.mesh) {
            (Role::Ingest, Some(edge), _) => {
                Ok(Some(Acceptor::edge(role.name(), edge, self.config.edge_tls.limits())))
            }
            (Role::Ingest, None, _) | (_, _, None) => Ok(None),
            (_, _, Some(mesh)) => {
                let list = self.config.tls.callers_of(role.name()).map_err(NodeError::Config)?;
                let acceptor = Acceptor::mutual(role.name(), mesh, list, self.config.tls.limits());
                acceptor.map(Some).map_err(NodeError::Config)
            }
        }
    }

    /// For calls to a service; `None` for plain HTTP/2.
    pub(crate) fn connector(&self, service: &str) -> Result<Option<Connector>, NodeError> {
        let Some(mesh) = &self.mesh else { return Ok(None) };
        let expected = self.config.tls.servers_of(service).map_err(NodeError::Config)?;
        let connector = Connector::mutual(mesh, expected, self.config.tls.handshake_timeout.0);
        connector.map(Some).map_err(NodeError::Config)
    }

    /// Looks at the files for as long as the handles live, and at once on SIGHUP.
    pub(crate) fn watch(&self, dependencies: &Dependencies) -> Vec<AbortOnDropHandle<()>> {
        let mut tasks = Vec::new();
        if let Some(edge) = &self.edge {
            let dependency = dependencies.register("edge_tls");
            tasks.push(edge.watch(self.config.edge_tls.reload_interval.0, dependency));
        }
        if let Some(mesh) = &self.mesh {
            tasks.push(mesh.watch(self.config.tls.reload_interval.0, dependencies.register("tls")));
        }
        let identities: Vec<_> = self.edge.iter().chain(&self.mesh).cloned().collect();
        if !identities.is_empty() {
            tasks.push(AbortOnDropHandle::new(tokio::spawn(look_on_hangup(identities))));
        }
        tasks
    }
}

/// SIGHUP ends a process that does not listen for it: only one that has files to look at does.
async fn look_on_hangup(identities: Vec<Arc<Identity>>) {
    let mut hangups = match signal(SignalKind::hangup()) {
        Ok(hangups) => hangups,
        Err(error) => return warn!("SIGHUP is not listened for: {error}"),
    };
    while hangups.recv().await.is_some() {
        for identity in &identities {
            identity.look_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_https_address_without_certificates_is_refused() {
        let mut config = NodeConfig::default();
        assert!(Tls::load(&config).is_ok());
        config.ingest.stats = vec!["http://a:1".into(), "https://b:1".into()];
        let said = Tls::load(&config).unwrap_err().to_string();
        assert!(said.starts_with("`ingest.stats`: https://b:1 asks for TLS"), "{said}");
    }

    #[test]
    fn how_long_a_handshake_may_take_is_compared_where_there_is_one() {
        let mut config = NodeConfig::default();
        config.server.handshake_timeout = sightline_config::HumanDuration::from_secs(1);
        assert!(Tls::load(&config).is_ok());
        let folder = tempfile::tempdir().unwrap();
        let signed = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let write = |name: &str, text: String| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            Some(path)
        };
        config.edge_tls.cert_file = write("tls.crt", signed.cert.pem());
        config.edge_tls.key_file = write("tls.key", signed.signing_key.serialize_pem());
        let said = Tls::load(&config).unwrap_err().to_string();
        assert!(said.starts_with("`edge_tls.handshake_timeout` (10s) is more than"), "{said}");
        config.edge_tls.handshake_timeout = config.server.handshake_timeout;
        assert!(Tls::load(&config).is_ok());
    }

    #[test]
    fn names_of_services_are_those_of_the_roles() {
        let mut config = NodeConfig::default();
        config.tls.callers.insert("statistics".into(), vec!["spiffe://a/*".into()]);
        let said = Tls::load(&config).unwrap_err().to_string();
        assert!(
            said.contains("\"statistics\", which is none of ratelimiter, classifier, stats, ingest"),
            "{said}"
        );
    }
}
