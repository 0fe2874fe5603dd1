//! The server's end of a handshake, bounded in time and number.
//!
//! - `mesh_handshakes_total{server, outcome}`: `ok`, `timeout`, `busy`, `identity` (not on the list), `certificate` (none, or
//!   one that does not verify), `protocol` (not TLS, no common version), `closed` (went away).
//! - `mesh_handshake_seconds{server}`: how long the good ones took.
//! - `mesh_identity_refused_total{server, identity, list}`: peers of our authority that are not on the list.

use std::{
    collections::BTreeSet,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use metrics::{Histogram, counter, describe_counter, describe_histogram, histogram};
use rustls::{
    CertificateError, Error, ServerConfig,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    version::TLS13,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::Semaphore,
    time::Instant,
};
use tokio_rustls::{LazyConfigAcceptor, server::TlsStream};
use tracing::debug;

use crate::{
    io::{BoxFuture, BoxedIo},
    server::{Accept, Accepted, PeerIdentity},
};

use super::{
    complaints::Complaints,
    files::provider,
    source::{Identity, Presenter},
    spiffe::{AllowList, SpiffeId},
    verify::{Clients, Refusal},
};

/// Identities that get a label of their own in `mesh_identity_refused_total`; later ones count as `other`. They come
/// from our own authority, so this is a bound for the day when it signs too much.
const MAX_LABELS: usize = 64;
/// How long a peer that is refused may take to close its end.
const PARTING: Duration = Duration::from_secs(1);
/// Kilobytes of it that are read meanwhile: a client's first flight of HTTP/2.
const PARTING_READS: usize = 64;

/// How many handshakes a listener does, and how long each may take.
#[derive(Debug, Clone, Copy)]
pub struct HandshakeLimits {
    /// From the connection to the end of the handshake.
    pub timeout: Duration,
    /// At once, each counted from the whole of the client's first message: whoever says nothing has no place. Connections
    /// beyond it are closed, so that a flood of them costs a file descriptor each for a moment only.
    pub at_once: usize,
}

/// Accepts TLS connections. Cheap to clone.
#[derive(Clone)]
pub struct Acceptor {
    server: &'static str,
    tls: Arc<ServerConfig>,
    list: Option<AllowList>,
    limits: HandshakeLimits,
    permits: Arc<Semaphore>,
    labels: Arc<Mutex<BTreeSet<SpiffeId>>>,
    complaints: Complaints,
    duration: Histogram,
}

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { server, list, limits, .. } = self;
        f.debug_struct("Acceptor")
            .field("server", server)
            .field("list", list)
            .field("limits", limits)
            .finish()
    }
}

impl Acceptor {
    /// For the public edge: everybody may connect. TLS 1.2 and 1.3, HTTP/2 and HTTP/1.1; sessions may be resumed, by tickets
    /// of a key that changes every six hours.
    pub fn edge(server: &'static str, identity: &Arc<Identity>, limits: HandshakeLimits) -> Self {
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("the provider has suites of TLS 1.2 and 1.3")
            .with_client_cert_verifier(WebPkiClientVerifier::no_client_auth())
            .with_cert_resolver(Arc::new(Presenter(Arc::clone(identity))));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // Without a source of random numbers there is no TLS at all; without tickets, only no resumption.
        if let Ok(ticketer) = rustls::crypto::ring::Ticketer::new() {
            config.ticketer = ticketer;
        }
        Self::new(server, config, None, limits)
    }

    /// For other services: they must show a certificate of our authorities whose SPIFFE id is on the list. TLS 1.3, HTTP/2.
    /// Sessions are not resumed: a resumed one would skip the check of certificate and list.
    ///
    /// # Errors
    /// A text, when `identity` was loaded without authorities.
    pub fn mutual(
        server: &'static str,
        identity: &Arc<Identity>,
        list: AllowList,
        limits: HandshakeLimits,
    ) -> Result<Self, String> {
        if !identity.checks_peers() {
            return Err(format!(
                "{} asks for SPIFFE ids, but there is no authority to verify them with",
                list.setting()
            ));
        }
        let clients = Arc::new(Clients::new(Arc::clone(identity), list.clone()));
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has suites of TLS 1.3")
            .with_client_cert_verifier(clients)
            .with_cert_resolver(Arc::new(Presenter(Arc::clone(identity))));
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self::new(server, config, Some(list), limits))
    }

    fn new(
        server: &'static str,
        config: ServerConfig,
        list: Option<AllowList>,
        limits: HandshakeLimits,
    ) -> Self {
        describe_counter!("mesh_handshakes_total", "TLS handshakes of servers, by server and outcome");
        describe_counter!(
            "mesh_identity_refused_total",
            "Peers of our authority that are not on the server's list"
        );
        describe_histogram!("mesh_handshake_seconds", "Good TLS handshakes of servers");
        Self {
            server,
            tls: Arc::new(config),
            list,
            limits,
            permits: Arc::new(Semaphore::new(limits.at_once)),
            labels: Arc::default(),
            complaints: Complaints::new(server),
            duration: histogram!("mesh_handshake_seconds", "server" => server),
        }
    }

    /// Does the handshake. The error has been counted, and is in the log where somebody should look: refusals in full or,
    /// when there are many, summed up every ten seconds.
    ///
    /// # Errors
    /// Of the handshake; `PermissionDenied` with a [`Refusal`] for a peer that is not on the list, `TimedOut`, and
    /// `ConnectionRefused` when too many are under way.
    pub async fn handshake<IO>(
        &self,
        stream: IO,
        peer: SocketAddr,
    ) -> io::Result<(TlsStream<IO>, Option<PeerIdentity>)>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let since = Instant::now();
        let stream = match tokio::time::timeout(self.limits.timeout, self.shake(stream)).await {
            Err(_) => {
                self.count("timeout");
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("the handshake took longer than {:?}", self.limits.timeout),
                ));
            }
            Ok(Err(Failed::Busy)) => {
                self.count("busy");
                let most = self.limits.at_once;
                return Err(io::Error::new(
                    io::ErrorKind::ConnectionRefused,
                    format!("{most} handshakes are under way"),
                ));
            }
            Ok(Err(Failed::Handshake(error, stream))) => {
                let error = self.failed(peer, error);
                if let Some(stream) = stream {
                    part(stream).await;
                }
                return Err(error);
            }
            Ok(Ok(stream)) => stream,
        };
        let identity = match &self.list {
            None => None,
            // The verifier has let it in by this list already.
            Some(list) => Some(PeerIdentity(id_of(&stream, list)?.shared())),
        };
        self.count("ok");
        self.duration.record(since.elapsed());
        Ok((stream, identity))
    }

    /// Waits for the client's first message, which costs us nothing but its bytes; the rest needs a place.
    async fn shake<IO>(&self, stream: IO) -> Result<TlsStream<IO>, Failed<IO>>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let mut hello = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), stream);
        let started = match (&mut hello).await {
            Ok(started) => started,
            Err(error) => return Err(Failed::Handshake(error, hello.take_io())),
        };
        let _place = self.permits.try_acquire().map_err(|_| Failed::Busy)?;
        let handshake = started.into_stream(Arc::clone(&self.tls)).into_fallible();
        handshake.await.map_err(|(error, stream)| Failed::Handshake(error, Some(stream)))
    }

    fn failed(&self, peer: SocketAddr, error: io::Error) -> io::Error {
        let server = self.server;
        if let Some(refusal) = Refusal::of(&error).cloned() {
            self.count("identity");
            self.count_refused(&refusal);
            self.complaints.about(peer, "identity", refusal.to_string());
            return io::Error::new(io::ErrorKind::PermissionDenied, refusal);
        }
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(Error::NoCertificatesPresented) => {
                self.count("certificate");
                let list = self.list.as_ref().map(ToString::to_string).unwrap_or_default();
                let why = format!("it shows no certificate; expected one of {list}");
                self.complaints.about(peer, "certificate", why);
            }
            Some(Error::InvalidCertificate(problem)) => {
                self.count("certificate");
                self.complaints.about(peer, "certificate", explain(problem, NOT_IN_CA_FILE));
            }
            // Anybody can send these, so they are no line in the log for each.
            Some(problem) => {
                self.count("protocol");
                debug!(server, %peer, "the handshake failed: {problem}");
            }
            None => {
                self.count("closed");
                debug!(server, %peer, "the handshake was not finished: {error}");
            }
        }
        error
    }

    fn count(&self, outcome: &'static str) {
        counter!("mesh_handshakes_total", "server" => self.server, "outcome" => outcome).increment(1);
    }

    fn count_refused(&self, refusal: &Refusal) {
        let identity = match refusal {
            Refusal::Nameless { .. } => "none".to_owned(),
            Refusal::NotListed { id, .. } => {
                let mut labels = self.labels.lock().unwrap_or_else(PoisonError::into_inner);
                if labels.len() < MAX_LABELS {
                    labels.insert(id.clone());
                }
                if labels.contains(id) { id.to_string() } else { "other".to_owned() }
            }
        };
        let list = self.list.as_ref().map(|list| list.setting().to_owned()).unwrap_or_default();
        counter!("mesh_identity_refused_total", "server" => self.server, "identity" => identity, "list" => list)
            .increment(1);
    }
}

/// Why there is no connection.
enum Failed<IO> {
    /// Too many handshakes are under way.
    Busy,
    /// The handshake has failed; what it was on, where that is left.
    Handshake(io::Error, Option<IO>),
}

impl Accept for Acceptor {
    fn accept<'a>(&'a self, io: BoxedIo, peer: SocketAddr) -> BoxFuture<'a, io::Result<Accepted>> {
        Box::pin(async move {
            let (stream, identity) = self.handshake(io, peer).await?;
            Ok(Accepted { io: Box::new(stream), identity })
        })
    }
}

/// Ends a connection so that the peer can read why: closed with bytes of the peer unread, the system would take the
/// alert back (RST), and the peer would see a reset.
async fn part(mut stream: impl AsyncRead + AsyncWrite + Unpin) {
    let parting = async {
        stream.shutdown().await.ok();
        let mut unread = [0; 1024];
        for _ in 0..PARTING_READS {
            if !matches!(stream.read(&mut unread).await, Ok(1..)) {
                break;
            }
        }
    };
    tokio::time::timeout(PARTING, parting).await.ok();
}

fn id_of<IO>(stream: &TlsStream<IO>, list: &AllowList) -> io::Result<SpiffeId> {
    let certificate = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let certificate = certificate.ok_or_else(|| io::Error::other("the peer has shown no certificate"))?;
    Refusal::check(certificate, list)
        .map_err(|refusal| io::Error::new(io::ErrorKind::PermissionDenied, refusal))
}

/// What is said of an authority that a service does not know.
pub(super) const NOT_IN_CA_FILE: &str = "our `ca_file` does not hold";

/// A certificate's problem, with the way out where there is one. `unknown` ends the sentence on an authority that is not
/// trusted.
pub(super) fn explain(problem: &CertificateError, unknown: &str) -> String {
    match problem {
        CertificateError::UnknownIssuer => format!("its certificate comes from an authority that {unknown}"),
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "its certificate has expired: renew it".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "its certificate is not valid yet: check the clocks".to_owned()
        }
        other => Error::InvalidCertificate(other.clone()).to_string(),
    }
}
