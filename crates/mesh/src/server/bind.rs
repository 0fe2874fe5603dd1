//! A listener, or an error that names the setting.

use std::{io, net::SocketAddr};

use tokio::net::TcpListener;

/// Why a listener could not be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Another process has the port.
    #[error(
        "`{setting}`: {address} is in use by another process; stop it, choose another port, or 0 for any free one"
    )]
    InUse {
        /// The configuration key.
        setting: String,
        /// The address asked for.
        address: SocketAddr,
    },
    /// Anything else the system said.
    #[error("`{setting}`: cannot listen on {address}: {source}")]
    Other {
        /// The configuration key.
        setting: String,
        /// The address asked for.
        address: SocketAddr,
        /// The system's word.
        source: io::Error,
    },
}

/// Listens on `address`; `setting` is the configuration key that an error names.
///
/// # Errors
/// [`BindError`].
pub async fn bind(setting: &str, address: SocketAddr) -> Result<TcpListener, BindError> {
    let setting = setting.to_owned();
    TcpListener::bind(address).await.map_err(|source| match source.kind() {
        io::ErrorKind::AddrInUse => BindError::InUse { setting, address },
        _ => BindError::Other { setting, address, source },
    })
}
