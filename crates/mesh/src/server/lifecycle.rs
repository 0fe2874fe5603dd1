//! From serving over a lame duck and draining to stopped.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use tokio_util::sync::CancellationToken;

/// The life of a server. Cheap to clone; all clones are one life.
///
/// 1. [`Lifecycle::drain`]: health turns `NOT_SERVING`; everything is served as before, so that those who watch can turn
///    away first (the lame duck, [`ServerConfig::lame_duck`](super::ServerConfig)).
/// 2. [`Lifecycle::draining`]: no new connection is taken, every connection gets GOAWAY, streams are told by their
///    [`ConnectionDrain`].
/// 3. Whatever is open after the server's `drain_timeout` is cut.
#[derive(Debug, Clone, Default)]
pub struct Lifecycle {
    phases: Arc<Phases>,
}

#[derive(Debug, Default)]
struct Phases {
    leaving: CancellationToken,
    draining: CancellationToken,
    /// Set by the server that ends the lame duck; without one draining begins at once.
    lame_duck: OnceLock<Duration>,
}

impl Lifecycle {
    /// Asks the server to finish.
    pub fn drain(&self) {
        self.phases.leaving.cancel();
        if self.phases.lame_duck.get().is_none_or(Duration::is_zero) {
            self.phases.draining.cancel();
        }
    }

    /// The same without a lame duck: for a server whose callers know already, or that nobody knows yet.
    pub fn drain_now(&self) {
        self.phases.leaving.cancel();
        self.phases.draining.cancel();
    }

    /// Whether [`Lifecycle::drain`] was called.
    pub fn is_leaving(&self) -> bool {
        self.phases.leaving.is_cancelled()
    }

    /// Waits until [`Lifecycle::drain`] is called.
    pub async fn leaving(&self) {
        self.phases.leaving.cancelled().await;
    }

    /// Whether the lame duck is over: new work belongs elsewhere.
    pub fn is_draining(&self) -> bool {
        self.phases.draining.is_cancelled()
    }

    /// Waits until the lame duck is over.
    pub async fn draining(&self) {
        self.phases.draining.cancelled().await;
    }

    /// A server that will call [`Lifecycle::end_lame_duck`] makes itself known.
    pub(super) fn begin(&self, lame_duck: Duration) {
        // Of several servers with one life the first decides.
        let _ = self.phases.lame_duck.set(lame_duck);
    }

    pub(super) fn lame_duck(&self) -> Duration {
        self.phases.lame_duck.get().copied().unwrap_or_default()
    }

    pub(super) fn end_lame_duck(&self) {
        self.phases.draining.cancel();
    }

    pub(super) fn connection(&self) -> ConnectionDrain {
        ConnectionDrain(self.phases.draining.child_token())
    }
}

/// In the extensions of every request: cancelled when the connection that carries it has got GOAWAY, because the server
/// drains or the connection is old. A long stream has no other way of learning it; it should finish what it has read,
/// tell its client in band, and end. What still runs when the bound has passed is cut.
#[derive(Debug, Clone, Default)]
pub struct ConnectionDrain(pub CancellationToken);

impl ConnectionDrain {
    /// That of a request; one that never drains where no server of ours is in between, as in a test.
    pub fn of(extensions: &http::Extensions) -> Self {
        extensions.get::<Self>().cloned().unwrap_or_default()
    }

    /// Whether the stream should come to its end.
    pub fn is_draining(&self) -> bool {
        self.0.is_cancelled()
    }

    /// Waits until the stream should come to its end.
    pub async fn draining(&self) {
        self.0.cancelled().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_server_that_waits_draining_begins_at_once() {
        for lame_duck in [None, Some(Duration::ZERO)] {
            let life = Lifecycle::default();
            if let Some(lame_duck) = lame_duck {
                life.begin(lame_duck);
            }
            let connection = life.connection();
            assert!(!connection.is_draining());
            life.drain();
            assert!(life.is_leaving() && life.is_draining() && connection.is_draining());
        }
    }

    #[test]
    fn a_lame_duck_goes_on_serving_until_the_server_ends_it() {
        let life = Lifecycle::default();
        life.begin(Duration::from_secs(5));
        let connection = life.connection();
        life.drain();
        assert!(life.is_leaving() && !life.is_draining() && !connection.is_draining());
        life.end_lame_duck();
        assert!(life.is_draining() && connection.is_draining());
    }

    #[test]
    fn a_lame_duck_can_be_left_out() {
        let life = Lifecycle::default();
        life.begin(Duration::from_secs(5));
        life.drain_now();
        assert!(life.is_leaving() && life.is_draining());
    }

    #[test]
    fn an_old_connection_drains_alone() {
        let life = Lifecycle::default();
        let (old, young) = (life.connection(), life.connection());
        old.0.cancel();
        assert!(old.is_draining() && !young.is_draining() && !life.is_draining());
    }
}
