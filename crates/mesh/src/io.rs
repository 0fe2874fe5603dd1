//! Bytes both ways, whatever carries them: TCP, TLS over it, a simulated network.

use std::{future::Future, pin::Pin};

use tokio::io::{AsyncRead, AsyncWrite};

/// A future behind a pointer.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Bytes both ways.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

/// A connection of any kind.
pub type BoxedIo = Box<dyn Io>;
