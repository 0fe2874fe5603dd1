//! What stands in the PEM files: a chain, its key, and the authorities that peers are checked against.

use std::{
    fs,
    io::Read,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustls::{
    RootCertStore,
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    server::{WebPkiClientVerifier, danger::ClientCertVerifier},
    sign::CertifiedKey,
};
use sha2::{Digest, Sha256};
use x509_cert::{Certificate, der::Decode};

use super::spiffe::SpiffeId;

/// The largest PEM file: a bundle of a few hundred authorities is half of it.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// The files of one identity, all PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The setting that names `cert`, for messages; its section is that of the others.
    pub setting: &'static str,
    /// Our certificate first, then the intermediates up to, and without, the authority.
    pub cert: PathBuf,
    /// The private key of the first certificate: PKCS#8, PKCS#1 or SEC1, without a password.
    pub key: PathBuf,
    /// The authorities that peers' certificates must come from; without them peers are not asked for one.
    pub ca: Option<PathBuf>,
}

/// Why files cannot be used; names the setting and the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{setting}`: {}: {problem}", path.display())]
pub struct TlsError {
    setting: &'static str,
    path: PathBuf,
    problem: String,
}

/// From when to when a certificate may be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// First moment.
    pub not_before: SystemTime,
    /// Last moment.
    pub not_after: SystemTime,
}

impl Validity {
    /// Seconds until it ends, negative after that.
    pub fn seconds_left(&self, now: SystemTime) -> f64 {
        match self.not_after.duration_since(now) {
            Ok(left) => left.as_secs_f64(),
            Err(past) => -past.duration().as_secs_f64(),
        }
    }

    /// Whether less than a third of its life is left: whoever renews (cert-manager, by default) has had its turn.
    pub fn is_due(&self, now: SystemTime) -> bool {
        let life = self.not_after.duration_since(self.not_before).unwrap_or(Duration::ZERO);
        self.seconds_left(now) < life.as_secs_f64() / 3.0
    }
}

/// Files, read and found to fit each other.
pub(crate) struct Material {
    pub(crate) certified: Arc<CertifiedKey>,
    pub(crate) roots: Arc<RootCertStore>,
    /// Verifies chains of clients; none without authorities.
    pub(crate) clients: Option<Arc<dyn ClientCertVerifier>>,
    pub(crate) validity: Validity,
    /// Our own name, if the certificate has one.
    pub(crate) id: Option<SpiffeId>,
    /// Of all files' content: tells whether they changed.
    pub(crate) digest: [u8; 32],
}

/// The one provider of cryptography in this crate; the process's default is never asked for.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

impl TlsFiles {
    /// Reads the files and checks that they belong together and may be used now. Blocks on the disk.
    ///
    /// # Errors
    /// [`TlsError`] naming the file.
    pub(crate) fn read(&self) -> Result<Material, TlsError> {
        let [cert, key] = [self.load(&self.cert)?, self.load(&self.key)?];
        let ca = self.ca.as_ref().map(|path| self.load(path)).transpose()?;
        let mut hash = Sha256::new();
        for content in [Some(&cert), Some(&key), ca.as_ref()].into_iter().flatten() {
            hash.update((content.len() as u64).to_be_bytes());
            hash.update(content);
        }
        let chain = self.certificates(&self.cert, &cert)?;
        let leaf = Certificate::from_der(&chain[0]).map_err(|error| {
            self.fail(&self.cert, format!("its first certificate cannot be read: {error}"))
        })?;
        let validity = self.check_validity(&leaf)?;
        let id = SpiffeId::of_certificate(&chain[0]).ok();
        let key = PrivateKeyDer::from_pem_slice(&key).map_err(|_| {
            self.fail(&self.key, "holds no private key (PKCS#8, PKCS#1 or SEC1, without a password)")
        })?;
        let certified = CertifiedKey::from_der(chain, key, &provider()).map_err(|error| {
            self.fail(&self.key, format!("is not the key of {}: {error}", self.cert.display()))
        })?;
        let (roots, clients) = self.authorities(ca.as_deref())?;
        Ok(Material {
            certified: Arc::new(certified),
            roots,
            clients,
            validity,
            id,
            digest: hash.finalize().into(),
        })
    }

    /// The certificate would take the name from whoever has one.
    pub(crate) fn nameless(&self) -> TlsError {
        let problem = "the certificate does not name exactly one SPIFFE id, and the certificate before it names one: \
                       issue it with the URI among its subject's alternative names";
        self.fail(&self.cert, problem)
    }

    /// The authorities alone. Blocks on the disk.
    ///
    /// # Errors
    /// [`TlsError`] naming the file.
    pub(super) fn read_authorities(&self) -> Result<Arc<RootCertStore>, TlsError> {
        let pem = self.ca.as_ref().map(|path| self.load(path)).transpose()?;
        Ok(self.authorities(pem.as_deref())?.0)
    }

    fn fail(&self, path: &Path, problem: impl Into<String>) -> TlsError {
        TlsError { setting: self.setting, path: path.to_owned(), problem: problem.into() }
    }

    fn load(&self, path: &Path) -> Result<Vec<u8>, TlsError> {
        let mut content = Vec::new();
        let read =
            fs::File::open(path).and_then(|file| file.take(MAX_FILE_BYTES + 1).read_to_end(&mut content));
        match read {
            Err(error) => Err(self.fail(path, error.to_string())),
            Ok(_) if content.len() as u64 > MAX_FILE_BYTES => {
                Err(self.fail(path, format!("is larger than {MAX_FILE_BYTES} bytes")))
            }
            Ok(_) => Ok(content),
        }
    }

    fn certificates(&self, path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
        match read {
            Ok(chain) if chain.is_empty() => Err(self.fail(path, "holds no certificate (BEGIN CERTIFICATE)")),
            Ok(chain) => Ok(chain),
            Err(error) => Err(self.fail(path, format!("is not PEM: {error}"))),
        }
    }

    fn check_validity(&self, leaf: &Certificate) -> Result<Validity, TlsError> {
        let (validity, now) = (validity_of(leaf), SystemTime::now());
        let ago = |duration: Duration| humantime(duration);
        if let Ok(past) = now.duration_since(validity.not_after) {
            return Err(self.fail(&self.cert, format!("the certificate expired {} ago: renew it", ago(past))));
        }
        if let Ok(ahead) = validity.not_before.duration_since(now)
            && !ahead.is_zero()
        {
            let text = format!("the certificate is not valid for another {}: check the clocks", ago(ahead));
            return Err(self.fail(&self.cert, text));
        }
        Ok(validity)
    }

    #[allow(clippy::type_complexity)]
    fn authorities(
        &self,
        pem: Option<&[u8]>,
    ) -> Result<(Arc<RootCertStore>, Option<Arc<dyn ClientCertVerifier>>), TlsError> {
        let mut roots = RootCertStore::empty();
        let (Some(path), Some(pem)) = (&self.ca, pem) else { return Ok((Arc::new(roots), None)) };
        for authority in self.certificates(path, pem)? {
            roots
                .add(authority)
                .map_err(|error| self.fail(path, format!("a certificate is no authority: {error}")))?;
        }
        let roots = Arc::new(roots);
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider())
            .build()
            .map_err(|error| self.fail(path, error.to_string()))?;
        Ok((roots, Some(clients)))
    }
}

fn validity_of(certificate: &Certificate) -> Validity {
    let validity = &certificate.tbs_certificate.validity;
    Validity {
        not_before: UNIX_EPOCH + validity.not_before.to_unix_duration(),
        not_after: UNIX_EPOCH + validity.not_after.to_unix_duration(),
    }
}

/// Whole seconds are enough for people.
pub(super) fn humantime(duration: Duration) -> String {
    sightline_config::HumanDuration(Duration::from_secs(duration.as_secs())).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_due_in_the_last_third_of_its_life() {
        let start = UNIX_EPOCH + Duration::from_secs(1_000_000);
        let validity = Validity { not_before: start, not_after: start + Duration::from_secs(300) };
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(!validity.is_due(at(199)));
        assert!(validity.is_due(at(201)));
        assert!(validity.is_due(at(400)));
        assert_eq!(validity.seconds_left(at(290)), 10.0);
        assert_eq!(validity.seconds_left(at(310)), -10.0);
    }
}
