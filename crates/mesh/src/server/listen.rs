//! The accept loop: who is let in, and how many.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use metrics::{counter, describe_counter};
use tokio::{
    net::TcpListener,
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep},
};
use tokio_util::task::TaskTracker;
use tracing::warn;

use super::{
    connection::{Connections, Stack},
    peers::{PeerKey, Peers, Taken},
};
use crate::{
    io::{BoxFuture, BoxedIo},
    observe::Calls,
};

/// Out of file descriptors or memory: connections that end give some back.
const EXHAUSTED_PAUSE: Duration = Duration::from_millis(100);
/// The log says at most so often that connections are refused.
const WARN_INTERVAL: Duration = Duration::from_secs(10);

/// Where connections come from: TCP, or a simulated network.
pub trait Listen: Send + 'static {
    /// The next connection, and who made it.
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(BoxedIo, SocketAddr)>>;

    /// Where it listens.
    fn local_address(&self) -> Option<SocketAddr>;
}

impl Listen for TcpListener {
    fn accept(&mut self) -> BoxFuture<'_, io::Result<(BoxedIo, SocketAddr)>> {
        Box::pin(async {
            let (stream, peer) = TcpListener::accept(self).await?;
            // An answer is not to wait for the next one; a connection that is gone already shows when it is read.
            stream.set_nodelay(true).ok();
            Ok((Box::new(stream) as BoxedIo, peer))
        })
    }

    fn local_address(&self) -> Option<SocketAddr> {
        self.local_addr().ok()
    }
}

/// Takes connections and serves each in a task of its own.
pub(super) struct Listening {
    connections: Arc<Connections>,
    calls: Calls,
    tasks: TaskTracker,
    places: Arc<Semaphore>,
    addresses: Peers,
    /// 0: any number.
    per_address: usize,
    warned: Option<Instant>,
}

impl Listening {
    pub(super) fn new(connections: Connections, calls: Calls, tasks: TaskTracker) -> Self {
        describe_counter!(
            "connections_refused_total",
            "Connections closed at once, by the setting that was reached"
        );
        describe_counter!(
            "connections_cut_total",
            "Connections that did not end in time (handshake, age, drain)"
        );
        let config = &connections.config;
        let places = config.max_connections.min(Semaphore::MAX_PERMITS);
        let per_address = config.max_connections_per_address;
        Self {
            connections: Arc::new(connections),
            calls,
            tasks,
            places: Arc::new(Semaphore::new(places)),
            addresses: Peers::default(),
            per_address,
            warned: None,
        }
    }

    /// Takes connections until the server drains; then the listener is closed.
    pub(super) async fn until_draining<L: Listen, S: Stack + Sync>(mut self, mut listener: L, stack: S)
    where
        S::Future: Send + 'static,
    {
        let connections = Arc::clone(&self.connections);
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = connections.lifecycle.draining() => return,
            };
            match accepted {
                Ok((io, peer)) => self.take(io, peer, &stack),
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    self.warn(&format!("cannot accept connections: {error}; raise the limit on open files"));
                    sleep(EXHAUSTED_PAUSE).await;
                }
            }
        }
    }

    /// One over a bound is closed by being dropped, before anything is read of it.
    fn take<S: Stack + Sync>(&mut self, io: BoxedIo, peer: SocketAddr, stack: &S)
    where
        S::Future: Send + 'static,
    {
        let held = match self.place(peer) {
            Ok(held) => held,
            Err(setting) => {
                counter!("connections_refused_total", "server" => self.connections.server, "setting" => setting)
                    .increment(1);
                return self.warn(&format!("`server.{setting}` is reached: connections are refused"));
            }
        };
        let open = self.calls.connection();
        let (connections, stack) = (Arc::clone(&self.connections), stack.clone());
        self.tasks.spawn(async move {
            connections.serve(io, peer, stack).await;
            drop((held, open));
        });
    }

    fn place(&self, peer: SocketAddr) -> Result<(OwnedSemaphorePermit, Taken), &'static str> {
        let place = Arc::clone(&self.places).try_acquire_owned().map_err(|_| "max_connections")?;
        let address = self.addresses.join(PeerKey::new(peer.ip(), None));
        let taken = address.take(self.per_address).ok_or("max_connections_per_address")?;
        Ok((place, taken))
    }

    fn warn(&mut self, message: &str) {
        if self.warned.is_none_or(|warned| warned.elapsed() >= WARN_INTERVAL) {
            self.warned = Some(Instant::now());
            warn!(server = self.connections.server, "{message}");
        }
    }
}

/// Errors of a connection that was gone before it was accepted (accept(2)).
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, Interrupted};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | Interrupted)
}
