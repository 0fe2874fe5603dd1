//! Why a process did not start. Every message names the setting or file and the way out.

use std::{net::SocketAddr, path::PathBuf};

use sightline_mesh::{
    auth::AuthError,
    client::{EndpointError, discovery::TargetError},
    server::BindError,
};

/// See the module.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// A value that cannot be.
    #[error("{0}")]
    Config(String),
    /// Beyond loopback without keys.
    #[error(
        "`{setting}` is {address}, beyond loopback, and no key is configured to check tokens with: set \
         `auth.jwks_file`, `auth.jwks_url`, `auth.public_key_file` or `auth.secret_file`, between services also \
         `tls.cert_file`, or pass --insecure on a closed network"
    )]
    Insecure {
        /// The configuration key.
        setting: &'static str,
        /// The address asked for.
        address: SocketAddr,
    },
    /// A port that cannot be had.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// Keys that cannot be used.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// An address that is none.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// Where a service is.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// The shared cache.
    #[error("`ingest.cache_redis_url`: {0}")]
    Cache(#[from] sightline_ingest::shared::TargetError),
    /// The data folder.
    #[error("`node.data_dir`: cannot make {}: {source}", path.display())]
    DataDir {
        /// The folder.
        path: PathBuf,
        /// The system's word.
        source: std::io::Error,
    },
    /// The classifier.
    #[error(transparent)]
    Classifier(#[from] sightline_classifier::StartError),
    /// The classifier's device.
    #[error("{0}")]
    Backend(String),
    /// The rate limiter.
    #[error(transparent)]
    RateLimiter(#[from] sightline_ratelimiter::BuildError),
    /// Where ingest keeps events on disk.
    #[error(transparent)]
    Spool(#[from] sightline_ingest::spool::SpoolError),
    /// The statistics.
    #[error(transparent)]
    Stats(#[from] sightline_stats::BuildError),
    /// A server ended by itself.
    #[error("the {role} server ended: {problem}")]
    Ended {
        /// Which.
        role: &'static str,
        /// What it said.
        problem: String,
    },
    /// Not ready in time.
    #[error("not ready after {0:?}: {1}")]
    NotReady(std::time::Duration, String),
}
