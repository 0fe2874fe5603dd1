//! What the absence of a service means, for `/healthz` and `grpc.health.v1`.

/// What is missing while no replica can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Without {
    /// Calls fail.
    Fails,
    /// The caller goes on with less.
    GoesOn,
}
