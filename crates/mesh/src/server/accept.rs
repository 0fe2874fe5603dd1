//! What is done with a connection before HTTP begins on it: nothing, or TLS.

use std::{fmt, io, net::SocketAddr, sync::Arc};

use crate::io::{BoxFuture, BoxedIo};

/// Who is at the other end of a connection, proven (a SPIFFE id of a verified certificate). In the extensions of every
/// request of that connection; absent where nothing was proven.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PeerIdentity(pub Arc<str>);

/// A connection on which HTTP may begin.
pub struct Accepted {
    /// What HTTP reads and writes.
    pub io: BoxedIo,
    /// Who it is, where that was proven.
    pub identity: Option<PeerIdentity>,
}

impl fmt::Debug for Accepted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Accepted").field("identity", &self.identity).finish_non_exhaustive()
    }
}

/// Makes of a fresh connection one that HTTP may use. It runs in the connection's own task, bounded by
/// [`ServerConfig::handshake_timeout`](super::ServerConfig), so that a slow handshake holds nobody up.
pub trait Accept: fmt::Debug + Send + Sync + 'static {
    /// An error ends the connection; it is logged at debug and counted.
    fn accept<'a>(&'a self, io: BoxedIo, peer: SocketAddr) -> BoxFuture<'a, io::Result<Accepted>>;
}

/// The connection as it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct Plain;

impl Accept for Plain {
    fn accept<'a>(&'a self, io: BoxedIo, _peer: SocketAddr) -> BoxFuture<'a, io::Result<Accepted>> {
        Box::pin(std::future::ready(Ok(Accepted { io, identity: None })))
    }
}
