//! The server's end of a stream of messages, as `proto/sightline/stream/v1` describes it: how loaded the server says it
//! is, and when it asks the client to go.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use sightline_wire::stream::Load;
use tonic::{Code, Extensions};

use crate::{
    RpcError, reason,
    server::{ConnectionDrain, Lifecycle},
};

/// When a stream is to be left: the server stops, or its connection is to be replaced.
#[derive(Debug, Clone)]
pub struct StreamDrain {
    lifecycle: Lifecycle,
    connection: Option<ConnectionDrain>,
}

impl StreamDrain {
    /// For the stream that a request with these extensions opens.
    pub fn new(lifecycle: Lifecycle, extensions: &Extensions) -> Self {
        Self { lifecycle, connection: extensions.get().cloned() }
    }

    /// Waits until the client is to be told.
    pub async fn drained(&self) {
        let connection = async {
            match &self.connection {
                Some(ConnectionDrain(token)) => token.cancelled().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = self.lifecycle.draining() => {}
            () = connection => {}
        }
    }
}

/// The refusal of a message that came after the notice: nothing was done for it, whoever sent it asks another server.
pub fn draining() -> RpcError {
    RpcError::new(Code::Unavailable, reason::DRAINING, "the server is stopping, or replaces this connection")
}

/// Counts what a server works on against what it can work on at once. Cheap to clone; clones count together.
#[derive(Debug, Clone)]
pub struct LoadMeter(Arc<Meter>);

#[derive(Debug)]
struct Meter {
    capacity: usize,
    working: AtomicUsize,
}

impl LoadMeter {
    /// Full with `capacity` messages unanswered over all streams.
    pub fn new(capacity: usize) -> Self {
        Self(Arc::new(Meter { capacity: capacity.max(1), working: AtomicUsize::new(0) }))
    }

    /// A message was read.
    pub fn begin(&self) -> Working {
        self.0.working.fetch_add(1, Ordering::Relaxed);
        Working(self.clone())
    }

    /// What to say with an answer that waited for so long.
    pub fn load(&self, queue_delay: Duration) -> Load {
        let share = self.0.working.load(Ordering::Relaxed) as f32 / self.0.capacity as f32;
        let waited = Some(queue_delay).filter(|delay| *delay >= WORTH_SAYING);
        Load { queue_delay: waited.and_then(|delay| delay.try_into().ok()), occupancy: share.min(1.0) }
    }
}

/// A shorter wait is left out of an answer: it is no more than the scheduling of tasks.
const WORTH_SAYING: Duration = Duration::from_micros(100);

/// A message between its reading and its answer; counted until it is dropped.
#[derive(Debug)]
pub struct Working(LoadMeter);

impl Working {
    /// The load to say with its answer, which waited for so long.
    pub fn load(&self, queue_delay: Duration) -> Load {
        self.0.load(queue_delay)
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        self.0.0.working.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tokio_util::sync::CancellationToken;

    use super::*;

    #[test]
    fn occupancy_is_the_share_in_use_and_never_more_than_full() {
        let meter = LoadMeter::new(4);
        let mut working: Vec<Working> = (0..3).map(|_| meter.begin()).collect();
        let load = working[0].load(Duration::from_millis(2));
        assert_eq!((load.occupancy, load.queue_delay.unwrap().nanos), (0.75, 2_000_000));
        working.extend((0..9).map(|_| meter.begin()));
        assert_eq!(meter.load(Duration::ZERO), Load { queue_delay: None, occupancy: 1.0 });
        drop(working);
        assert_eq!(meter.load(Duration::ZERO).occupancy, 0.0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_drains_with_its_server_or_its_connection() {
        let soon = Duration::from_millis(1);
        let (lifecycle, token) = (Lifecycle::default(), CancellationToken::new());
        let mut extensions = Extensions::default();
        let alone = StreamDrain::new(lifecycle.clone(), &extensions);
        extensions.insert(ConnectionDrain(token.clone()));
        let aged = StreamDrain::new(lifecycle.clone(), &extensions);
        assert!(tokio::time::timeout(soon, aged.drained()).await.is_err());
        token.cancel();
        aged.drained().await;
        assert!(tokio::time::timeout(soon, alone.drained()).await.is_err());
        lifecycle.drain();
        alone.drained().await;
    }
}
