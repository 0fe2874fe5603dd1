//! Where the API server is and who we are, as a pod's service account says.
//!
//! Both files are read again when they are needed: the kubelet replaces the token well before it ends (an hour), and the
//! certificate authority may be rotated.

use std::{
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{
    ClientConfig, RootCertStore,
    crypto::ring,
    pki_types::{CertificateDer, pem::PemObject},
};
use tokio::task::spawn_blocking;

/// Where the kubelet puts a service account.
const FOLDER: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The longest token or bundle of certificates that is read.
const MAX_FILE: u64 = 1 << 20;

/// Where the API server is and who we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Access {
    /// A host name or address; its certificate must say the same.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Certificates, in PEM, of the authorities that its own comes from.
    pub ca_file: PathBuf,
    /// Holds the bearer token.
    pub token_file: PathBuf,
}

impl Access {
    /// What every pod is given: `variable` reads the environment. `None` outside Kubernetes.
    pub fn in_cluster(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let host = variable("KUBERNETES_SERVICE_HOST").filter(|host| !host.is_empty())?;
        let port = variable("KUBERNETES_SERVICE_PORT")?.parse().ok()?;
        let folder = Path::new(FOLDER);
        Some(Self { host, port, ca_file: folder.join("ca.crt"), token_file: folder.join("token") })
    }

    /// `host:port`, IPv6 in brackets.
    pub(super) fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }

    /// The token as it is now.
    pub(super) async fn token(&self) -> Result<String, String> {
        let bytes = read(self.token_file.clone()).await?;
        let text = String::from_utf8(bytes).map_err(|_| "is no text".to_owned());
        let text = text.map_err(|problem| format!("{} {problem}", self.token_file.display()))?;
        Ok(text.trim().to_owned())
    }

    /// TLS that trusts the authorities as they are now, and speaks HTTP/2.
    pub(super) async fn tls(&self) -> Result<Arc<ClientConfig>, String> {
        let shown = self.ca_file.display();
        let pem = read(self.ca_file.clone()).await?;
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(&pem) {
            let certificate = certificate.map_err(|error| format!("{shown} is not PEM: {error}"))?;
            roots.add(certificate).map_err(|error| format!("{shown}: {error}"))?;
        }
        if roots.is_empty() {
            return Err(format!("{shown} holds no certificate"));
        }
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(|error| format!("preparing TLS: {error}"))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }
}

async fn read(path: PathBuf) -> Result<Vec<u8>, String> {
    let shown = path.display().to_string();
    let read = move || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        File::open(path)?.take(MAX_FILE).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let result = spawn_blocking(read).await.map_err(|error| format!("reading {shown}: {error}"))?;
    result.map_err(|error| format!("reading {shown}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_knows_its_cluster() {
        let variables = |host: &'static str| {
            move |name: &str| match name {
                "KUBERNETES_SERVICE_HOST" => Some(host.to_owned()),
                "KUBERNETES_SERVICE_PORT" => Some("443".to_owned()),
                _ => None,
            }
        };
        let access = Access::in_cluster(variables("10.96.0.1")).unwrap();
        assert_eq!(access.authority(), "10.96.0.1:443");
        assert_eq!(access.token_file, Path::new("/var/run/secrets/kubernetes.io/serviceaccount/token"));
        assert_eq!(Access::in_cluster(variables("fd00::1")).unwrap().authority(), "[fd00::1]:443");
        assert_eq!(Access::in_cluster(variables("")), None);
        assert_eq!(Access::in_cluster(|_| None), None);
    }
}
