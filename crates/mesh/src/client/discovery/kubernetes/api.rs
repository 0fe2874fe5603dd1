//! Two requests to the API server: list the slices of a Service, and watch them.
//!
//! Over one HTTP/2 connection, as client-go does: its pings find an API server that went away without a word, which a
//! silent watch would not.

use std::{sync::Arc, time::Duration};

use bytes::{Buf, Bytes, BytesMut};
use http::{Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{body::Incoming, client::conn::http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::ServerName;
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::TlsConnector;
use tokio_util::{sync::CancellationToken, sync::DropGuard};

use super::{
    KubernetesOptions,
    slices::{Event, List, Slice, Status},
};

/// Slices asked for in one page of a list: a page of full slices (100 endpoints each) stays under a megabyte or two.
const PAGE: usize = 50;
/// Pages of one list: with full slices far more endpoints than `max_addresses` allows.
const MAX_PAGES: usize = 1000;

/// Why a request brought nothing.
#[derive(Debug)]
pub(super) enum Problem {
    /// What is known is too old for the server to go on from (410).
    Gone,
    /// The service account has not the right (403).
    Forbidden(String),
    /// Anything else: no connection, no token, no sense in the answer.
    Away(String),
}

impl Problem {
    fn of(status: StatusCode, said: &Status) -> Self {
        let text = format!("the API server answered {}: {}", status.as_u16(), said.message);
        match status {
            StatusCode::GONE => Self::Gone,
            StatusCode::FORBIDDEN => Self::Forbidden(said.message.clone()),
            StatusCode::UNAUTHORIZED => Self::Away(format!("{text} (is the token file the pod's own?)")),
            _ => Self::Away(text),
        }
    }

    /// What a watch told in an event.
    pub(super) fn told(status: &Status) -> Self {
        let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        match status.reason.as_str() {
            "Expired" | "Gone" => Self::Gone,
            _ => Self::of(code, status),
        }
    }
}

/// One connection to the API server.
pub(super) struct Api {
    options: Arc<KubernetesOptions>,
    path: String,
    sender: http2::SendRequest<Empty<Bytes>>,
    _driver: DropGuard,
}

impl Api {
    /// Connects.
    pub(super) async fn connect(
        options: Arc<KubernetesOptions>,
        namespace: &str,
        service: &str,
    ) -> Result<Self, Problem> {
        let path = format!(
            "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices\
             ?labelSelector=kubernetes.io%2Fservice-name%3D{service}"
        );
        let bound = options.connect_timeout;
        let authority = options.access.authority();
        match timeout(bound, handshake(&options)).await {
            Ok(Ok((sender, driver))) => Ok(Self { options, path, sender, _driver: driver }),
            Ok(Err(problem)) => {
                Err(Problem::Away(format!("connecting to the API server {authority}: {problem}")))
            }
            Err(_) => {
                Err(Problem::Away(format!("no connection to the API server {authority} within {bound:?}")))
            }
        }
    }

    /// Every slice, and the version from which a watch goes on.
    pub(super) async fn list(&mut self) -> Result<(Vec<Slice>, String), Problem> {
        let mut slices = Vec::new();
        let mut next = None::<String>;
        for _ in 0..MAX_PAGES {
            let from = next.map(|token| format!("&continue={token}")).unwrap_or_default();
            let page = self.page(&format!("&limit={PAGE}{from}")).await?;
            slices.extend(page.items);
            next = page.metadata.next.filter(|token| !token.is_empty());
            if next.is_none() {
                return Ok((slices, page.metadata.resource_version));
            }
        }
        Err(Problem::Away(format!("a list of more than {MAX_PAGES} pages")))
    }

    async fn page(&mut self, query: &str) -> Result<List, Problem> {
        let bound = self.options.request_timeout;
        let whole = async {
            let answer = self.send(query).await?;
            let body = Limited::new(answer.into_body(), self.options.max_message).collect().await;
            let body = body.map_err(|error| Problem::Away(format!("reading a list: {error}")))?;
            serde_json::from_reader(body.aggregate().reader())
                .map_err(|error| Problem::Away(format!("a list that cannot be read: {error}")))
        };
        timeout(bound, whole).await.unwrap_or_else(|_| Err(late("a list", bound)))
    }

    /// Changes after `version`, until the server ends the watch when it has lasted that long.
    pub(super) async fn watch(&mut self, version: &str, lasts: Duration) -> Result<Watch, Problem> {
        let bound = self.options.request_timeout;
        let seconds = lasts.as_secs().max(1);
        let query = format!(
            "&watch=true&allowWatchBookmarks=true&resourceVersion={version}&timeoutSeconds={seconds}"
        );
        let answer =
            timeout(bound, self.send(&query)).await.unwrap_or_else(|_| Err(late("a watch", bound)))?;
        // The server ends it in time; this is for one that forgets to.
        let until = tokio::time::Instant::now() + lasts + bound;
        Ok(Watch {
            body: answer.into_body(),
            buffer: BytesMut::new(),
            scanned: 0,
            max: self.options.max_message,
            until,
        })
    }

    async fn send(&mut self, query: &str) -> Result<Response<Incoming>, Problem> {
        let token = self.options.access.token().await.map_err(Problem::Away)?;
        let uri = format!("https://{}{}{query}", self.options.access.authority(), self.path);
        let mut bearer = header::HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| Problem::Away("the token file holds what is no token".into()))?;
        bearer.set_sensitive(true);
        let request = Request::get(uri)
            .header(header::AUTHORIZATION, bearer)
            .header(header::ACCEPT, "application/json")
            .header(header::USER_AGENT, concat!("sightline-mesh/", env!("CARGO_PKG_VERSION")))
            .body(Empty::new())
            .map_err(|error| Problem::Away(format!("a request that cannot be made: {error}")))?;
        let answer = self.sender.send_request(request).await;
        let answer = answer.map_err(|error| Problem::Away(format!("asking the API server: {error}")))?;
        match answer.status() {
            StatusCode::OK => Ok(answer),
            status => {
                let body = Limited::new(answer.into_body(), self.options.max_message).collect().await;
                let said = body.ok().and_then(|body| serde_json::from_reader(body.aggregate().reader()).ok());
                Err(Problem::of(status, &said.unwrap_or_default()))
            }
        }
    }
}

fn late(what: &str, bound: Duration) -> Problem {
    Problem::Away(format!("{what} took longer than {bound:?}"))
}

/// TCP, TLS, HTTP/2. Its driver ends with the guard.
async fn handshake(
    options: &KubernetesOptions,
) -> Result<(http2::SendRequest<Empty<Bytes>>, DropGuard), String> {
    let access = &options.access;
    let tls = access.tls().await?;
    let name = ServerName::try_from(access.host.clone())
        .map_err(|_| format!("{:?} is neither a host name nor an address", access.host))?;
    let tcp =
        TcpStream::connect((access.host.as_str(), access.port)).await.map_err(|error| error.to_string())?;
    tcp.set_nodelay(true).map_err(|error| error.to_string())?;
    let stream = TlsConnector::from(tls).connect(name, tcp).await.map_err(|error| error.to_string())?;
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err("it does not speak HTTP/2".into());
    }
    let (sender, driver) = http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .keep_alive_interval(options.keepalive_interval)
        .keep_alive_timeout(options.keepalive_timeout)
        .keep_alive_while_idle(true)
        .handshake(TokioIo::new(stream))
        .await
        .map_err(|error| error.to_string())?;
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    // Why it ended is what the request in flight is told.
    tokio::spawn(async move { stopped.run_until_cancelled(driver).await });
    Ok((sender, stop.drop_guard()))
}

/// Events, one JSON object a line.
pub(super) struct Watch {
    body: Incoming,
    buffer: BytesMut,
    /// So much of the buffer holds no end of a line.
    scanned: usize,
    max: usize,
    until: tokio::time::Instant,
}

impl Watch {
    /// The next event; `None` when the server ended the watch.
    pub(super) async fn next(&mut self) -> Result<Option<Event>, Problem> {
        loop {
            if let Some(line) = self.line() {
                let event = serde_json::from_slice(&line);
                return event.map(Some).map_err(|error| {
                    Problem::Away(format!("an event of a watch that cannot be read: {error}"))
                });
            }
            if self.buffer.len() > self.max {
                return Err(Problem::Away(format!("an event of more than {} bytes", self.max)));
            }
            let Ok(frame) = tokio::time::timeout_at(self.until, self.body.frame()).await else {
                return Err(Problem::Away("a watch that does not end".into()));
            };
            match frame {
                None => return Ok(None),
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        self.buffer.extend_from_slice(data);
                    }
                }
                Some(Err(error)) => {
                    return Err(Problem::Away(format!("the API server's watch broke: {error}")));
                }
            }
        }
    }

    fn line(&mut self) -> Option<BytesMut> {
        let Some(end) = self.buffer[self.scanned..].iter().position(|byte| *byte == b'\n') else {
            self.scanned = self.buffer.len();
            return None;
        };
        let line = self.buffer.split_to(self.scanned + end + 1);
        self.scanned = 0;
        Some(line)
    }
}
