//! Calling other services.

mod pool;
mod report;

use std::{collections::HashMap, sync::Arc, time::Duration};

pub use pool::{Lane, Message, PoolOptions, StreamPool};
use report::Report;
pub use report::Without;
use sightline_telemetry::{
    dependencies::Dependency,
    trace::{TRACEPARENT, traceparent},
};
use tonic::{
    Request,
    metadata::{AsciiMetadataKey, AsciiMetadataValue},
    transport::{Channel, Endpoint},
};

/// HTTP/2 flow-control windows for answers: scores, decisions and acknowledgements are small, lists of models larger.
const STREAM_WINDOW: u32 = 1 << 20;
/// See [`STREAM_WINDOW`].
const CONNECTION_WINDOW: u32 = 4 << 20;
/// A silent connection is asked for a sign of life this often, and given up after as long again.
const KEEPALIVE: Duration = Duration::from_secs(10);
/// A replica that takes longer to accept a connection is as good as down.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

/// An address that is no address.
#[derive(Debug, thiserror::Error)]
#[error("{uri:?} is not an address such as \"http://127.0.0.1:7401\": {problem}")]
pub struct EndpointError {
    uri: String,
    problem: String,
}

/// The replicas of one service, each a lazily made connection of its own.
#[derive(Debug, Clone)]
pub struct Endpoints {
    service: &'static str,
    channels: Vec<(String, Channel)>,
    metadata: Vec<(AsciiMetadataKey, AsciiMetadataValue)>,
    report: Option<Arc<Report>>,
}

impl Endpoints {
    /// Prepares connections to `uris` (`http://host:port`); none is made yet. `metadata` goes with every call.
    ///
    /// # Errors
    /// [`EndpointError`] for an address or metadata that cannot be used, and for an empty list.
    pub fn new(
        service: &'static str,
        uris: &[String],
        metadata: &HashMap<&'static str, String>,
    ) -> Result<Self, EndpointError> {
        let fail = |uri: &str, problem: String| EndpointError { uri: uri.to_owned(), problem };
        if uris.is_empty() {
            return Err(fail("", format!("no address of {service} is configured")));
        }
        let mut channels = Vec::new();
        for uri in uris {
            let with_scheme = if uri.contains("://") { uri.clone() } else { format!("http://{uri}") };
            let endpoint = Endpoint::from_shared(with_scheme)
                .map_err(|error| fail(uri, error.to_string()))?
                .connect_timeout(CONNECT_TIMEOUT)
                .tcp_nodelay(true)
                .http2_keep_alive_interval(KEEPALIVE)
                .keep_alive_timeout(KEEPALIVE)
                .keep_alive_while_idle(true)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW);
            channels.push((uri.clone(), endpoint.connect_lazy()));
        }
        let metadata = metadata
            .iter()
            .map(|(key, value)| {
                let value = value.parse().map_err(|_| fail(key, "metadata must be ASCII".into()))?;
                Ok((AsciiMetadataKey::from_static(key), value))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { service, channels, metadata, report: None })
    }

    /// A pool over these replicas says how its streams are.
    #[must_use]
    pub fn reporting(mut self, dependency: Dependency, without: Without) -> Self {
        self.report = Some(Arc::new(Report::new(dependency, without)));
        self
    }

    /// The service's name, for messages and metrics.
    pub fn service(&self) -> &'static str {
        self.service
    }

    /// Every replica's address and connection.
    pub fn channels(&self) -> impl Iterator<Item = (&str, Channel)> {
        self.channels.iter().map(|(uri, channel)| (uri.as_str(), channel.clone()))
    }

    /// A request that carries this process's metadata, and the current trace where it is kept.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        for (key, value) in &self.metadata {
            request.metadata_mut().insert(key.clone(), value.clone());
        }
        if let Some(value) =
            Some(traceparent()).filter(|text| !text.is_empty()).and_then(|text| text.parse().ok())
        {
            request.metadata_mut().insert(TRACEPARENT, value);
        }
        request
    }
}
