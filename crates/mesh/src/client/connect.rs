//! How a connection to an address is made.

use std::{fmt, io, time::Duration};

use socket2::SockRef;
use tokio::net::TcpStream;

use super::Address;
pub use crate::io::{BoxFuture, BoxedIo, Io};

/// Makes connections: TCP, TLS over it, or a simulated network. How long it may take is bounded by its caller.
pub trait Connect: fmt::Debug + Send + Sync + 'static {
    /// Connects to one address.
    fn connect<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, io::Result<BoxedIo>>;

    /// `http`, or `https` where the connection is encrypted.
    fn scheme(&self) -> http::uri::Scheme {
        http::uri::Scheme::HTTP
    }
}

/// Plain TCP.
#[derive(Debug, Clone, Copy)]
pub struct TcpConnect {
    /// Bytes that the peer's kernel has not confirmed for so long end the connection (`TCP_USER_TIMEOUT`, Linux). It finds a
    /// black hole while we send; keepalive pings find it while we wait. `None` leaves it to the system (about 15 minutes).
    pub user_timeout: Option<Duration>,
}

impl Default for TcpConnect {
    fn default() -> Self {
        Self { user_timeout: Some(Duration::from_secs(4)) }
    }
}

impl Connect for TcpConnect {
    fn connect<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, io::Result<BoxedIo>> {
        Box::pin(async move {
            let stream = TcpStream::connect(address.authority.as_str()).await?;
            stream.set_nodelay(true)?;
            #[cfg(target_os = "linux")]
            SockRef::from(&stream).set_tcp_user_timeout(self.user_timeout)?;
            Ok(Box::new(stream) as BoxedIo)
        })
    }
}
