//! TLS of somebody who calls from outside the mesh.

use std::{path::PathBuf, sync::Arc};

use rustls::{RootCertStore, pki_types::ServerName};

use super::{
    connector::name_of,
    files::{Material, TlsFiles},
    spiffe::AllowList,
};

/// What a caller outside the mesh trusts and shows; messages name the fields as the command line does (`--ca`). Files are
/// PEM and read once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientTls {
    /// The authorities of servers; unset: this machine's.
    pub ca: Option<PathBuf>,
    /// Our certificate with its intermediates, for servers that ask for one.
    pub cert: Option<PathBuf>,
    /// Its private key.
    pub key: Option<PathBuf>,
    /// Who must answer, instead of the address's host: a host's name, or a SPIFFE id.
    pub server_name: Option<String>,
}

impl ClientTls {
    /// Whether nothing is set: this machine's authorities, no certificate.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    pub(super) fn roots(&self) -> Result<Arc<RootCertStore>, String> {
        let Some(ca) = &self.ca else {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            return match roots.is_empty() {
                true => {
                    Err("this machine has no authorities to check servers with: name one with --ca".into())
                }
                false => Ok(Arc::new(roots)),
            };
        };
        let files = TlsFiles { setting: "--ca", cert: ca.clone(), key: ca.clone(), ca: Some(ca.clone()) };
        files.read_authorities().map_err(|error| error.to_string())
    }

    pub(super) fn certificate(&self) -> Result<Option<Material>, String> {
        match (&self.cert, &self.key) {
            (None, None) => Ok(None),
            (Some(cert), Some(key)) => {
                let files = TlsFiles { setting: "--cert", cert: cert.clone(), key: key.clone(), ca: None };
                files.read().map(Some).map_err(|error| error.to_string())
            }
            (Some(_), None) => Err("--cert needs --key, the certificate's private key".into()),
            (None, Some(_)) => Err("--key needs --cert, the certificate of that key".into()),
        }
    }

    /// Who must answer: an id, or a host's name other than the address's.
    pub(super) fn expected(&self) -> Result<(Option<AllowList>, Option<ServerName<'static>>), String> {
        match self.server_name.as_deref() {
            None => Ok((None, None)),
            Some(id) if id.starts_with("spiffe://") => {
                AllowList::new("--server-name", &[id]).map(|list| (Some(list), None))
            }
            Some(name) => {
                let named = name_of(name).map_err(|problem| format!("--server-name: {problem}"))?;
                Ok((None, Some(named)))
            }
        }
    }

    /// Ends the sentence on an authority that is not trusted.
    pub(super) fn unknown_authority(&self) -> String {
        match &self.ca {
            Some(ca) => format!("--ca {} does not hold", ca.display()),
            None => "this machine does not trust: name its certificate with --ca".to_owned(),
        }
    }
}
