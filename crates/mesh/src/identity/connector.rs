//! The client's end of a handshake.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use rustls::{
    AlertDescription, ClientConfig, Error,
    client::Resumption,
    pki_types::{IpAddr, ServerName},
    sign::SingleCertAndKey,
    version::TLS13,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::client::{Address, BoxFuture, BoxedIo, Connect, TcpConnect};

use super::{
    acceptor::{NOT_IN_CA_FILE, explain},
    client::ClientTls,
    files::provider,
    source::{Identity, Presenter},
    spiffe::AllowList,
    verify::{Refusal, Servers, Trust},
};

/// Who we are to servers, for messages.
#[derive(Debug, Clone)]
enum Ours {
    /// A service of the mesh, by its certificate of now.
    Service(Arc<Identity>),
    /// Somebody outside, who shows this id, a certificate without one, or nothing.
    Client { shows: Arc<str>, unknown_authority: Arc<str> },
}

impl Ours {
    fn name(&self) -> String {
        match self {
            Self::Service(identity) => identity.id().map_or_else(|| NO_ID.to_owned(), |id| id.to_string()),
            Self::Client { shows, .. } => shows.to_string(),
        }
    }

    /// Ends the sentence on a server's authority that is not trusted.
    fn unknown_authority(&self) -> &str {
        match self {
            Self::Service(_) => NOT_IN_CA_FILE,
            Self::Client { unknown_authority, .. } => unknown_authority,
        }
    }

    /// What to do when a server asks for a certificate and there was none.
    fn way_out(&self) -> &'static str {
        match self {
            Self::Service(_) => "",
            Self::Client { .. } => ": name yours with --cert and --key",
        }
    }
}

const NO_ID: &str = "a certificate without a SPIFFE id";
const BY_HOST: &str = "a certificate for the host's name";

/// Makes TLS connections to one service: mutual ones between services, or those of a client outside. Cheap to clone.
#[derive(Clone)]
pub struct Connector {
    /// What TLS goes over.
    over: Arc<dyn Connect>,
    tls: TlsConnector,
    ours: Ours,
    /// Who must answer, for messages.
    expected: String,
    /// The name to ask for, instead of the host of each address.
    server_name: Option<ServerName<'static>>,
    timeout: Duration,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").field("expected", &self.expected).finish_non_exhaustive()
    }
}

impl Connector {
    /// Shows our certificate and verifies the server's: its SPIFFE id by `expected`, or without a list the host's name.
    /// TLS 1.3, HTTP/2. `timeout` is for one handshake. Sessions are not resumed, so that each connection is verified.
    ///
    /// # Errors
    /// A text, when `identity` was loaded without authorities.
    pub fn mutual(
        identity: &Arc<Identity>,
        expected: Option<AllowList>,
        timeout: Duration,
    ) -> Result<Self, String> {
        if !identity.checks_peers() {
            return Err("calls over TLS need authorities to verify servers with".to_owned());
        }
        let text = match &expected {
            Some(list) => list.to_string(),
            None => BY_HOST.to_owned(),
        };
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&TLS13])
            .expect("the provider has suites of TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Servers::new(
                Trust::Current(Arc::clone(identity)),
                expected,
            )))
            .with_client_cert_resolver(Arc::new(Presenter(Arc::clone(identity))));
        config.alpn_protocols = vec![b"h2".to_vec()];
        config.resumption = Resumption::disabled();
        Ok(Self {
            over: Arc::new(TcpConnect::default()),
            tls: TlsConnector::from(Arc::new(config)),
            ours: Ours::Service(Arc::clone(identity)),
            expected: text,
            server_name: None,
            timeout,
        })
    }

    /// For a caller outside the mesh, such as the command line: TLS 1.2 and 1.3, `protocol` as ALPN names it (`h2`,
    /// `http/1.1`). `timeout` is for one handshake. Blocks on the disk.
    ///
    /// # Errors
    /// A text naming the option.
    pub fn client(tls: &ClientTls, protocol: &[u8], timeout: Duration) -> Result<Self, String> {
        let roots = tls.roots()?;
        let (expected, server_name) = tls.expected()?;
        let own = tls.certificate()?;
        let shows = match &own {
            None => "a caller without a certificate".to_owned(),
            Some(own) => own.id.as_ref().map_or_else(|| NO_ID.to_owned(), ToString::to_string),
        };
        let text = match (&expected, &tls.server_name) {
            (Some(list), _) => list.to_string(),
            (None, Some(name)) => format!("a certificate for {name:?} (--server-name)"),
            (None, None) => format!("{BY_HOST} (--server-name asks for another)"),
        };
        let builder = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("the provider has suites of TLS 1.2 and 1.3")
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Servers::new(Trust::Fixed(roots), expected)));
        let mut config = match own {
            None => builder.with_no_client_auth(),
            Some(own) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own.certified))),
        };
        config.alpn_protocols = vec![protocol.to_vec()];
        let unknown_authority = tls.unknown_authority().into();
        Ok(Self {
            over: Arc::new(TcpConnect::default()),
            tls: TlsConnector::from(Arc::new(config)),
            ours: Ours::Client { shows: shows.into(), unknown_authority },
            expected: text,
            server_name,
            timeout,
        })
    }

    /// Asks for this name, and verifies it where no list says who must answer: discovery gives addresses of replicas,
    /// the certificate names their service.
    ///
    /// # Errors
    /// A text for a name that is no host's.
    pub fn asking_for(mut self, host: &str) -> Result<Self, String> {
        self.server_name = Some(name_of(host)?);
        Ok(self)
    }

    /// Goes over other connections than those of TCP with its defaults.
    #[must_use]
    pub fn over(mut self, connect: Arc<dyn Connect>) -> Self {
        self.over = connect;
        self
    }

    /// Does the handshake over `stream`, which was connected to `authority` (`host:port`).
    ///
    /// # Errors
    /// Of the handshake, saying who was expected. A server may still refuse *us* after it, with the first answer: that
    /// error comes from reading, and says so too.
    pub async fn handshake<IO>(&self, authority: &str, stream: IO) -> io::Result<Secured<IO>>
    where
        IO: AsyncRead + AsyncWrite + Unpin,
    {
        let host = authority.rsplit_once(':').map_or(authority, |(host, _)| host);
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => name_of(host).map_err(|problem| io::Error::new(io::ErrorKind::InvalidInput, problem))?,
        };
        match tokio::time::timeout(self.timeout, self.tls.connect(name, stream)).await {
            Ok(Ok(stream)) => Ok(Secured { stream, ours: self.ours.clone() }),
            Ok(Err(error)) => Err(self.explain(authority, error)),
            Err(_) => Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("the TLS handshake with {authority} took longer than {:?}", self.timeout),
            )),
        }
    }

    fn explain(&self, authority: &str, error: io::Error) -> io::Error {
        let expected = &self.expected;
        let text = if let Some(refusal) = Refusal::of(&error) {
            format!("{authority} is not who it must be: {refusal}")
        } else {
            match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
                Some(Error::InvalidCertificate(problem)) => {
                    format!(
                        "{authority} is not trusted: {}; expected {expected}",
                        explain(problem, self.ours.unknown_authority())
                    )
                }
                Some(Error::AlertReceived(alert)) => return refused(&self.ours, *alert),
                Some(Error::InvalidMessage(_)) => format!("{authority} does not speak TLS ({error})"),
                Some(_) => format!("the TLS handshake with {authority} failed: {error}"),
                None => return error,
            }
        };
        io::Error::new(io::ErrorKind::PermissionDenied, text)
    }
}

impl Connect for Connector {
    fn connect<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, io::Result<BoxedIo>> {
        Box::pin(async move {
            let stream = self.over.connect(address).await?;
            let secured = self.handshake(&address.authority, stream).await?;
            Ok(Box::new(secured) as BoxedIo)
        })
    }

    fn scheme(&self) -> http::uri::Scheme {
        http::uri::Scheme::HTTPS
    }
}

/// The host of an authority as TLS names it; an IPv6 address may stand in brackets.
pub(super) fn name_of(host: &str) -> Result<ServerName<'static>, String> {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    match bare.parse::<std::net::IpAddr>() {
        Ok(address) => Ok(ServerName::IpAddress(IpAddr::from(address))),
        Err(_) => {
            ServerName::try_from(bare.to_owned()).map_err(|_| format!("{host:?} is not the name of a host"))
        }
    }
}

/// What a server's alert means for us.
fn refused(who: &Ours, alert: AlertDescription) -> io::Error {
    let ours = who.name();
    let why = match alert {
        AlertDescription::CertificateUnknown | AlertDescription::AccessDenied => {
            format!("we are {ours}, and it is not on the server's list of callers")
        }
        AlertDescription::UnknownCA => "the server does not hold our authority".to_owned(),
        AlertDescription::CertificateExpired => "our certificate has expired".to_owned(),
        AlertDescription::CertificateRequired => {
            format!("the server asks for a certificate{}", who.way_out())
        }
        other => format!("it sent the alert {other:?} (we are {ours})"),
    };
    io::Error::new(io::ErrorKind::PermissionDenied, format!("the server refused the connection: {why}"))
}

/// A connection after its handshake. In TLS 1.3 a client is done before the server has looked at its certificate: a
/// refusal arrives with the first bytes, and is turned into an error that says what it means.
#[derive(Debug)]
pub struct Secured<IO> {
    stream: TlsStream<IO>,
    ours: Ours,
}

impl<IO> Secured<IO> {
    fn explain(&self, error: io::Error) -> io::Error {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(Error::AlertReceived(alert)) => refused(&self.ours, *alert),
            _ => error,
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncRead for Secured<IO> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let read = ready!(Pin::new(&mut self.stream).poll_read(context, buffer));
        Poll::Ready(read.map_err(|error| self.explain(error)))
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Secured<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
