//! Whether a peer is who it must be: its chain, by webpki, and its SPIFFE id, by a list.

use std::{fmt, io, sync::Arc};

use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
    client::{
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_cert_signed_by_trust_anchor, verify_server_name,
    },
    crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        ParsedCertificate,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
};

use super::{
    files::provider,
    source::Identity,
    spiffe::{AllowList, SpiffeError, SpiffeId},
};

/// What both traits of verifiers ask beside the chain: rustls' own checks of signatures, by `self.algorithms`.
macro_rules! signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls12_signature(message, cert, dss, &self.algorithms)
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            verify_tls13_signature(message, cert, dss, &self.algorithms)
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            self.algorithms.supported_schemes()
        }
    };
}

/// Why a peer whose certificate comes from the right authority is refused all the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It is somebody else.
    #[error("the peer is {id}, which is not on the list {list}")]
    NotListed {
        /// Who it is.
        id: SpiffeId,
        /// Who it might have been, with the setting.
        list: String,
    },
    /// It is nobody.
    #[error("{problem}; expected one of {list}")]
    Nameless {
        /// What is wrong with its certificate.
        problem: SpiffeError,
        /// Who it might have been, with the setting.
        list: String,
    },
}

impl Refusal {
    /// Checks a verified certificate against a list.
    pub(super) fn check(certificate: &CertificateDer<'_>, list: &AllowList) -> Result<SpiffeId, Self> {
        match SpiffeId::of_certificate(certificate) {
            Ok(id) if list.takes(&id) => Ok(id),
            Ok(id) => Err(Self::NotListed { id, list: list.to_string() }),
            Err(problem) => Err(Self::Nameless { problem, list: list.to_string() }),
        }
    }

    /// The refusal inside an error of a handshake, if that is what it failed of.
    pub fn of(error: &io::Error) -> Option<&Self> {
        match error.get_ref()?.downcast_ref::<Error>()? {
            Error::InvalidCertificate(CertificateError::Other(OtherError(other))) => other.downcast_ref(),
            _ => None,
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        CertificateError::Other(OtherError(Arc::new(refusal))).into()
    }
}

/// Verifies clients of a server: the chain against the current authorities, the id against the list.
pub(super) struct Clients {
    identity: Arc<Identity>,
    list: AllowList,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Clients {
    pub(super) fn new(identity: Arc<Identity>, list: AllowList) -> Self {
        Self { identity, list, algorithms: provider().signature_verification_algorithms }
    }
}

impl fmt::Debug for Clients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Clients({})", self.list)
    }
}

impl ClientCertVerifier for Clients {
    /// None: authorities change while we serve, and a client sends the one certificate that it has.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let material = self.identity.material();
        let chains = material.clients.as_ref().ok_or_else(|| Error::General("no authorities".into()))?;
        let verified = chains.verify_client_cert(end_entity, intermediates, now)?;
        Refusal::check(end_entity, &self.list)?;
        Ok(verified)
    }

    signatures!();
}

/// The authorities that a server's certificate must come from.
pub(super) enum Trust {
    /// Those that an identity's files hold now.
    Current(Arc<Identity>),
    /// Those that were read once.
    Fixed(Arc<RootCertStore>),
}

impl Trust {
    fn roots(&self) -> Arc<RootCertStore> {
        match self {
            Self::Current(identity) => Arc::clone(&identity.material().roots),
            Self::Fixed(roots) => Arc::clone(roots),
        }
    }
}

/// Verifies the server that a client reached: the chain against the authorities, then the id against a list, or the
/// host's name where there is none.
pub(super) struct Servers {
    trust: Trust,
    expected: Option<AllowList>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Servers {
    pub(super) fn new(trust: Trust, expected: Option<AllowList>) -> Self {
        Self { trust, expected, algorithms: provider().signature_verification_algorithms }
    }
}

impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.expected {
            Some(list) => write!(f, "Servers({list})"),
            None => f.write_str("Servers(by host name)"),
        }
    }
}

impl ServerCertVerifier for Servers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(
            &parsed,
            &self.trust.roots(),
            intermediates,
            now,
            self.algorithms.all,
        )?;
        match &self.expected {
            Some(list) => drop(Refusal::check(end_entity, list)?),
            None => verify_server_name(&parsed, server_name)?,
        }
        Ok(ServerCertVerified::assertion())
    }

    signatures!();
}
