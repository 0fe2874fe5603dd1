//! Talking to a running mesh.

use std::{
    io,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use sightline_mesh::{
    RpcError,
    client::{Address, BoxFuture, BoxedIo, Channel, Connect, TcpConnect, discovery::Targets},
    identity::{ClientTls, Connector},
};
use tonic::{Request, Status, codegen::http, metadata::MetadataValue};

use crate::{
    args::{Remote, Tls},
    replicas,
};

/// The way to a service, and what goes with every request.
pub(crate) struct Connection {
    pub(crate) channel: Channel,
    token: Option<String>,
    timeout: Duration,
}

impl Connection {
    /// Connects to one of the replicas that `endpoint` names, or says which service is not there and how to start it, or
    /// why the two do not trust each other.
    pub(crate) async fn open(service: &'static str, endpoint: &str, remote: &Remote) -> Result<Self> {
        let timeout: Duration = remote.timeout.into();
        let (text, tls) = first_of(endpoint, &remote.tls)?;
        let dialer = Dialer::new("--endpoint", &text, &tls, b"h2", timeout).await?;
        let reached = replicas::channel(service, endpoint, Arc::clone(&dialer.connect), timeout).await?;
        let channel = reached.map_err(|nobody| match dialer.has_reached() {
            true => anyhow!("the {service} service at {endpoint}: {}", nobody.problem),
            false => anyhow!(
                "no {service} service answers at {endpoint}: start one (`sightline dev`), or set --endpoint"
            ),
        })?;
        let token = remote.token_file.as_deref().map(read_token).transpose()?;
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

/// What the entries of an endpoint have in common: the first as an address, and how it is trusted. A name that is looked up
/// is what the replicas' certificates carry.
fn first_of(endpoint: &str, tls: &Tls) -> Result<(String, Tls)> {
    let entries: Vec<&str> = endpoint.split(',').map(str::trim).collect();
    let first = entries[0];
    let secure = |entry: &str| entry.split_once("://").map(|(scheme, _)| scheme == "https");
    // One without a scheme is as the first.
    if let Some(other) =
        entries.iter().find(|entry| secure(entry).is_some_and(|it| it != secure(first).unwrap_or(it)))
    {
        bail!("--endpoint: {first} and {other} are not both https: write the same scheme for all");
    }
    if matches!(first.split_once("://"), None | Some(("http" | "https", _))) {
        return Ok((first.to_owned(), tls.clone()));
    }
    let targets = Targets::parse("--endpoint", &[first.to_owned()]).with_context(|| {
        format!("--endpoint {endpoint:?} is not an address such as http://127.0.0.1:7401")
    })?;
    let name = targets.certificate_name().unwrap_or_default();
    let mut tls = tls.clone();
    if ClientTls::from(tls.clone()).is_default() {
        return Ok((name, tls));
    }
    tls.server_name.get_or_insert_with(|| name.clone());
    Ok((name, tls))
}

impl From<Tls> for ClientTls {
    fn from(Tls { ca, cert, key, server_name }: Tls) -> Self {
        Self { ca, cert, key, server_name }
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
        let tls = ClientTls::from(tls.clone());
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
