//! Talking to a running mesh.

use std::{path::Path, time::Duration};

use anyhow::{Context, Result, anyhow, bail};
use sightline_mesh::RpcError;
use tonic::{
    Request, Status,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};

use crate::args::Remote;

/// A connection, and what goes with every request.
pub(crate) struct Connection {
    pub(crate) channel: Channel,
    token: Option<String>,
    timeout: Duration,
}

impl Connection {
    /// Connects, or says which service is not there and how to start it.
    pub(crate) async fn open(service: &str, endpoint: &str, remote: &Remote) -> Result<Self> {
        let timeout: Duration = remote.timeout.into();
        let uri = if endpoint.contains("://") { endpoint.to_owned() } else { format!("http://{endpoint}") };
        let channel = Endpoint::from_shared(uri)
            .with_context(|| format!("--endpoint {endpoint:?} is not an address such as http://127.0.0.1:7401"))?
            .connect_timeout(timeout)
            .connect()
            .await
            .map_err(|_| {
                anyhow!("no {service} service answers at {endpoint}: start one (`sightline dev`), or set --endpoint")
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
