//! One small document over HTTP/1.1, bounded in time and size.

use std::{path::Path, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{CertificateDer, ServerName, pem::PemObject},
};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

use super::keys::MAX_KEYS_BYTES;
use crate::{identity::provider, io::Io};

/// What an answer's head may take.
const MAX_HEAD_BYTES: usize = 32 << 10;

/// Where the document is and how it is fetched.
pub(super) struct Fetch {
    uri: Uri,
    authority: String,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    timeout: Duration,
}

impl Fetch {
    /// Prepares; `authorities` is a PEM file instead of the system's. Blocks on the disk.
    pub(super) fn new(url: &str, authorities: Option<&Path>, timeout: Duration) -> Result<Self, String> {
        let uri: Uri = url.parse().map_err(|error| format!("is not a URL: {error}"))?;
        let example = "must be a URL such as \"https://issuer.example/.well-known/jwks.json\"";
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| example.to_owned())?;
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err("must not hold a password: keys are public".to_owned());
        }
        let (port, tls) = match uri.scheme_str() {
            Some("http") => (80, None),
            Some("https") => {
                let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
                let name = ServerName::try_from(bare).map_err(|_| example.to_owned())?;
                (443, Some((connector(authorities)?, name)))
            }
            _ => return Err(example.to_owned()),
        };
        let authority = format!("{host}:{}", uri.port_u16().unwrap_or(port));
        Ok(Self { uri, authority, tls, timeout })
    }

    /// How long one fetch may take.
    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Fetches it. Redirections are not followed: the operator names the place that keys are believed from.
    pub(super) async fn get(&self) -> Result<Bytes, String> {
        tokio::time::timeout(self.timeout, self.exchange())
            .await
            .map_err(|_| format!("no answer within {:?}", self.timeout))?
    }

    async fn exchange(&self) -> Result<Bytes, String> {
        let stream = TcpStream::connect(&self.authority).await.map_err(|error| error.to_string())?;
        let stream: Box<dyn Io> = match &self.tls {
            None => Box::new(stream),
            Some((tls, name)) => {
                let stream = tls.connect(name.clone(), stream).await;
                Box::new(stream.map_err(|error| format!("TLS: {error}"))?)
            }
        };
        let (mut sender, connection) = hyper::client::conn::http1::Builder::new()
            .max_buf_size(MAX_HEAD_BYTES)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        let _driver = AbortOnDropHandle::new(tokio::spawn(async move { drop(connection.await) }));
        let path = self.uri.path_and_query().map_or("/", |path| path.as_str());
        let request = Request::get(path)
            .header(header::HOST, self.uri.authority().map_or("", |authority| authority.as_str()))
            .header(header::ACCEPT, "application/jwk-set+json, application/json")
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        let response = sender.send_request(request).await.map_err(|error| error.to_string())?;
        if response.status() != StatusCode::OK {
            return Err(format!("the answer is {}", response.status()));
        }
        let body = Limited::new(response.into_body(), MAX_KEYS_BYTES).collect().await;
        let body = body
            .map_err(|error| format!("the answer ended early or is over {MAX_KEYS_BYTES} bytes: {error}"))?;
        Ok(body.to_bytes())
    }
}

fn connector(authorities: Option<&Path>) -> Result<TlsConnector, String> {
    let mut roots = RootCertStore::empty();
    match authorities {
        Some(path) => {
            let fail = |problem: String| format!("`auth.jwks_ca_file` ({}): {problem}", path.display());
            let all = CertificateDer::pem_file_iter(path).map_err(|error| fail(error.to_string()))?;
            for authority in all {
                let authority = authority.map_err(|error| fail(error.to_string()))?;
                roots.add(authority).map_err(|error| fail(error.to_string()))?;
            }
            if roots.is_empty() {
                return Err(fail("holds no certificate".into()));
            }
        }
        None => {
            // Single bad certificates among the system's are usual and left out.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(
                    "this system has no authorities to verify https with: set `auth.jwks_ca_file`".into()
                );
            }
        }
    }
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsConnector::from(Arc::new(config)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_urls_that_can_be_fetched_are_taken() {
        let refused = |url: &str| Fetch::new(url, None, Duration::from_secs(1)).err().unwrap();
        for bad in ["", "keys.json", "ftp://issuer/keys", "/keys", "https://", "http:///keys"] {
            assert!(refused(bad).contains("URL"), "{bad}");
        }
        assert!(refused("http://user:secret@issuer/keys").contains("must not hold a password"));
        let fetch = Fetch::new("http://[::1]/keys", None, Duration::from_secs(1)).unwrap();
        assert_eq!(fetch.authority, "[::1]:80");
    }
}
