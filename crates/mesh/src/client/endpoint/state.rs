//! Where an endpoint is in its life.

use serde::Serialize;

/// Where an endpoint is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// No connection was tried yet.
    Idle,
    /// A connection is being made, or it is made and the server has not said yet whether it serves.
    Connecting,
    /// The last connection broke or could not be made; the next try waits.
    Backoff,
    /// Calls may be sent.
    Ready,
    /// Connected, and its health service says that it does not serve.
    NotServing,
    /// The breaker turned it away for a while.
    Ejected,
    /// One call at a time tries whether it works again.
    HalfOpen,
    /// Discovery no longer names it: what is in flight ends, nothing new begins.
    Draining,
}

impl State {
    /// All of them, in order.
    pub const ALL: [Self; 8] = [
        Self::Idle,
        Self::Connecting,
        Self::Backoff,
        Self::Ready,
        Self::NotServing,
        Self::Ejected,
        Self::HalfOpen,
        Self::Draining,
    ];

    /// As in metrics and JSON.
    pub fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Connecting => "connecting",
            Self::Backoff => "backoff",
            Self::Ready => "ready",
            Self::NotServing => "not_serving",
            Self::Ejected => "ejected",
            Self::HalfOpen => "half_open",
            Self::Draining => "draining",
        }
    }
}
