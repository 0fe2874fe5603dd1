//! Talking to a running mesh.

use std::{
    future::Future,
    io,
    path::Path,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context as TaskContext, Poll},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use sightline_mesh::{
    RpcError,
    client::{Address, BoxFuture, BoxedIo, Connect, TcpConnect, Transport, TransportOptions},
    identity::{ClientTls, Connector},
};
use tokio::sync::Mutex;
use tonic::{
    Request, Status,
    body::Body,
    codegen::{Service, http},
    metadata::MetadataValue,
};

use crate::args::{Remote, Tls};

/// A server is asked for a sign of life this rarely, because balancers before it may count pings as an attack; every call
/// has a deadline anyway.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// A connection, and what goes with every request.
pub(crate) struct Connection {
    pub(crate) channel: Line,
    token: Option<String>,
    timeout: Duration,
}

impl Connection {
    /// Connects, or says which service is not there and how to start it, or why the two do not trust each other.
    pub(crate) async fn open(service: &str, endpoint: &str, remote: &Remote) -> Result<Self> {
        let timeout: Duration = remote.timeout.into();
        let dialer = Dialer::new("--endpoint", endpoint, &remote.tls, b"h2", timeout).await?;
        let options = TransportOptions {
            connect_timeout: timeout,
            keepalive_interval: KEEPALIVE,
            keepalive_timeout: KEEPALIVE,
            ..TransportOptions::default()
        };
        let connected = Transport::connect(&*dialer.connect, &dialer.address, &options).await;
        let transport = connected.map_err(|status| match dialer.has_reached() {
            true => anyhow!("the {service} service at {endpoint}: {}", status.message()),
            false => {
                anyhow!("no {service} service answers at {endpoint}: start one (`sightline dev`), or set --endpoint")
            }
        })?;
        let token = remote.token_file.as_deref().map(read_token).transpose()?;
        let channel = Line { current: Arc::new(Mutex::new(transport)), dialer, options };
        Ok(Self { channel, token, timeout })
    }

    /// A request with deadline and token.
    pub(crate) fn request<T>(&self, message: T) -> Result<Request<T>> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        if let Some(token) = &self.token {
            let value =
                MetadataValue::try_from(format!("Bearer {token}")).context("the token is not plain ASCII")?;
            request.metadata_mut().insert("authorization", value);
        }
        Ok(request)
    }
}

/// One connection at a time, made anew when the server has asked for its end. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Line {
    current: Arc<Mutex<Transport>>,
    dialer: Dialer,
    options: TransportOptions,
}

impl Line {
    async fn transport(&self) -> Result<Transport, Status> {
        let mut current = self.current.lock().await;
        if !current.is_open() {
            *current = Transport::connect(&*self.dialer.connect, &self.dialer.address, &self.options).await?;
        }
        Ok(current.clone())
    }
}

impl Service<http::Request<Body>> for Line {
    type Response = http::Response<Body>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut TaskContext<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let line = self.clone();
        Box::pin(async move { line.transport().await?.call(request).await })
    }
}

/// Makes connections to one address.
#[derive(Clone)]
pub(crate) struct Dialer {
    /// `host:port`, as it was given.
    pub(crate) address: Address,
    pub(crate) connect: Arc<dyn Connect>,
    reach: Arc<Reach>,
}

impl Dialer {
    /// To an address such as `https://host:7401`; `option` names it in errors, `protocol` is spoken over TLS. Without a
    /// scheme it is `http`, with options of TLS `https`.
    pub(crate) async fn new(
        option: &str,
        text: &str,
        tls: &Tls,
        protocol: &'static [u8],
        timeout: Duration,
    ) -> Result<Self> {
        let Tls { ca, cert, key, server_name } = tls.clone();
        let tls = ClientTls { ca, cert, key, server_name };
        let fail = || format!("{option} {text:?} is not an address such as http://127.0.0.1:7401");
        let scheme = if tls.is_default() { "http" } else { "https" };
        let full = if text.contains("://") { text.to_owned() } else { format!("{scheme}://{text}") };
        let uri: http::Uri = full.parse().with_context(fail)?;
        let authority = uri.authority().with_context(fail)?;
        let (port, secure) = match uri.scheme_str() {
            Some("https") => (443, true),
            Some("http") if tls.is_default() => (80, false),
            Some("http") => bail!(
                "{option} {text} is plain HTTP, and --ca, --cert, --key or --server-name (or SIGHTLINE_CLIENT_… in the \
                 environment) is given: write https://, or leave them out"
            ),
            _ => bail!(fail()),
        };
        let port = authority.port_u16().unwrap_or(port);
        let address = Address::new(&format!("{}:{port}", authority.host())).with_context(fail)?;
        let reach = Arc::<Reach>::default();
        let connect: Arc<dyn Connect> = if secure {
            let making = tokio::task::spawn_blocking(move || Connector::client(&tls, protocol, timeout));
            let connector = making.await?.map_err(|problem| anyhow!(problem))?;
            Arc::new(connector.over(Arc::<Reach>::clone(&reach)))
        } else {
            Arc::<Reach>::clone(&reach)
        };
        Ok(Self { address, connect, reach })
    }

    /// Whether there is somebody, whatever became of it then.
    pub(crate) fn has_reached(&self) -> bool {
        self.reach.reached.load(Ordering::Relaxed)
    }
}

/// TCP that remembers whether it came about.
#[derive(Debug, Default)]
struct Reach {
    reached: AtomicBool,
}

impl Connect for Reach {
    fn connect<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, io::Result<BoxedIo>> {
        Box::pin(async move {
            let io = TcpConnect::default().connect(address).await?;
            self.reached.store(true, Ordering::Relaxed);
            Ok(io)
        })
    }
}

fn read_token(path: &Path) -> Result<String> {
    let token = std::fs::read_to_string(path).with_context(|| format!("--token-file {}", path.display()))?;
    match token.trim() {
        "" => bail!("--token-file {} is empty", path.display()),
        token => Ok(token.to_owned()),
    }
}

/// A status as one line: what the server said, and its reason.
pub(crate) fn explain(status: &Status) -> anyhow::Error {
    let error = RpcError::from_status(status);
    anyhow!("{} ({})", error.message, error.reason)
}
