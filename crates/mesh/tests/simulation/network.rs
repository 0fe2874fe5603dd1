//! Connections over the simulated network.

use std::{
    collections::BTreeSet,
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use sightline_mesh::{
    client::{Address, AddressStream, BoxFuture, BoxedIo, Connect, Discover},
    server::Listen,
};
use tokio::sync::watch;
use tokio_stream::{StreamExt, wrappers::WatchStream};
use turmoil::net::{TcpListener, TcpStream};

/// Where every replica listens.
pub const PORT: u16 = 7000;

/// Who discovery finds. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Names(Arc<watch::Sender<BTreeSet<String>>>);

impl Names {
    pub fn set(&self, authority: String, found: bool) {
        self.0.send_modify(|names| {
            if found {
                names.insert(authority);
            } else {
                names.remove(&authority);
            }
        });
    }
}

impl Discover for Names {
    fn describe(&self) -> String {
        "the simulation".into()
    }

    fn watch(&self) -> AddressStream {
        let addresses =
            |names: BTreeSet<String>| Ok(names.iter().map(|name| Address::new(name).unwrap()).collect());
        Box::pin(WatchStream::new(self.0.subscribe()).map(addresses))
    }
}

/// Connects to hosts by name.
#[derive(Debug, Default)]
pub struct SimConnect {
    begun: AtomicUsize,
    made: AtomicUsize,
}

impl SimConnect {
    /// Tries that came to nothing: turmoil keeps a socket of each.
    pub fn failed(&self) -> usize {
        self.begun.load(Ordering::SeqCst) - self.made.load(Ordering::SeqCst)
    }
}

impl Connect for SimConnect {
    fn connect<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, io::Result<BoxedIo>> {
        Box::pin(async move {
            self.begun.fetch_add(1, Ordering::SeqCst);
            let stream = TcpStream::connect(address.authority.as_str()).await?;
            self.made.fetch_add(1, Ordering::SeqCst);
            Ok(Box::new(stream) as BoxedIo)
        })
    }
}

/// A listener on the current host.
pub struct SimListen(TcpListener);

impl SimListen {
    pub async fn bind() -> io::Result<Self> {
        Ok(Self(TcpListener::bind(("0.0.0.0", PORT)).await?))
    }
}

impl Listen for SimListen {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(BoxedIo, SocketAddr)>> {
        Box::pin(async {
            let (stream, peer) = self.0.accept().await?;
            Ok((Box::new(stream) as BoxedIo, peer))
        })
    }

    fn local_address(&self) -> Option<SocketAddr> {
        self.0.local_addr().ok()
    }
}
