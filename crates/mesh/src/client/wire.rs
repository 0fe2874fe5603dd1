//! Bytes of a connection, watched: the peer's first frame and a GOAWAY are seen when they arrive, and the connection can be
//! cut.
//!
//! hyper takes a connection for made before the peer has said a word (a stopped process accepts connections: its kernel
//! does), and notices a GOAWAY only when the next request is sent. A balancer has to know, so the frames' headers
//! (RFC 9113, section 4.1) are followed as the bytes pass.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use futures_util::task::AtomicWaker;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::BoxedIo;
use crate::gather::Gathered;

/// A frame's header: length (24 bits), type, flags, stream.
const HEADER: usize = 9;
/// The type of a GOAWAY frame.
const GOAWAY: u8 = 7;
/// Of a GOAWAY frame: last stream and error code, 32 bits each.
const GOAWAY_FIELDS: usize = 8;

/// Cuts a connection: whoever reads or writes it gets an error.
#[derive(Debug, Default)]
pub(super) struct Cut {
    done: AtomicBool,
    reader: AtomicWaker,
}

impl Cut {
    pub(super) fn now(&self) {
        self.done.store(true, Ordering::Release);
        self.reader.wake();
    }

    fn check(&self) -> io::Result<()> {
        match self.done.load(Ordering::Acquire) {
            true => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the connection was cut")),
            false => Ok(()),
        }
    }
}

/// What was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Seen {
    /// A first whole frame header: there is somebody.
    First,
    /// A GOAWAY with this error code.
    GoAway(u32),
}

/// A connection whose incoming frames are followed.
pub(super) struct Watched<F> {
    io: Gathered<BoxedIo>,
    cut: Arc<Cut>,
    frames: Frames,
    on_seen: F,
}

impl<F: FnMut(Seen) + Unpin> Watched<F> {
    /// Calls `on_seen` for the first frame and for each GOAWAY.
    pub(super) fn new(io: BoxedIo, cut: Arc<Cut>, on_seen: F) -> Self {
        Self { io: Gathered::new(io), cut, frames: Frames::default(), on_seen }
    }
}

impl<F: FnMut(Seen) + Unpin> AsyncRead for Watched<F> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        this.cut.reader.register(context.waker());
        this.cut.check()?;
        let before = buffer.filled().len();
        let polled = Pin::new(&mut this.io).poll_read(context, buffer);
        if let Poll::Ready(Ok(())) = polled {
            let bytes = &buffer.filled()[before..];
            if let Some(problem) = this.frames.foreign(bytes) {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::InvalidData, problem)));
            }
            this.frames.feed(bytes, &mut this.on_seen);
        }
        polled
    }
}

impl<F: FnMut(Seen) + Unpin> AsyncWrite for Watched<F> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.cut.check()?;
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.cut.check()?;
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.cut.check()?;
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

/// Where in the sequence of frames the bytes are.
#[derive(Debug, Default)]
struct Frames {
    /// A header that has come in part, followed by the first fields of a GOAWAY.
    held: [u8; HEADER + GOAWAY_FIELDS],
    have: usize,
    /// Bytes of a frame's payload still to come.
    skip: usize,
    any: bool,
}

impl Frames {
    /// What a peer speaks instead of HTTP/2, as its first bytes tell: HTTP/2 begins with the length of a short frame.
    fn foreign(&self, bytes: &[u8]) -> Option<&'static str> {
        match bytes {
            _ if self.any || self.have > 0 => None,
            // An alert (21) of TLS 1.x (3), RFC 8446, section 5.1.
            [21, 3, ..] => Some("it speaks TLS, and we do not: use https, and between services set [tls]"),
            [b'H', b'T', b'T', b'P', ..] => Some("it speaks HTTP/1 and not HTTP/2, which gRPC needs"),
            _ => None,
        }
    }

    fn feed(&mut self, mut bytes: &[u8], on_seen: &mut impl FnMut(Seen)) {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            if bytes.is_empty() {
                return;
            }
            let needed = self.needed();
            let taken = (needed - self.have).min(bytes.len());
            self.held[self.have..self.have + taken].copy_from_slice(&bytes[..taken]);
            self.have += taken;
            bytes = &bytes[taken..];
            // With its header known, a GOAWAY needs more.
            if self.have == self.needed() {
                self.end(on_seen);
            }
        }
    }

    /// How many bytes are held before a frame is understood.
    fn needed(&self) -> usize {
        let fields = if self.have >= HEADER && self.is_goaway() { GOAWAY_FIELDS } else { 0 };
        HEADER + fields
    }

    fn length(&self) -> usize {
        u32::from_be_bytes([0, self.held[0], self.held[1], self.held[2]]) as usize
    }

    fn is_goaway(&self) -> bool {
        self.held[3] == GOAWAY && self.length() >= GOAWAY_FIELDS
    }

    fn end(&mut self, on_seen: &mut impl FnMut(Seen)) {
        self.skip = self.length() - (self.have - HEADER);
        if !std::mem::replace(&mut self.any, true) {
            on_seen(Seen::First);
        }
        if self.is_goaway() {
            let [.., a, b, c, d] = self.held;
            on_seen(Seen::GoAway(u32::from_be_bytes([a, b, c, d])));
        }
        self.have = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = (payload.len() as u32).to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], kind, 0, 0, 0, 0, 0];
        bytes.extend_from_slice(payload);
        bytes
    }

    fn goaway(code: u32, debug: &[u8]) -> Vec<u8> {
        frame(GOAWAY, &[&[0x7f, 0xff, 0xff, 0xff], &code.to_be_bytes()[..], debug].concat())
    }

    #[test]
    fn a_peer_that_speaks_something_else_is_told_from_one_that_speaks_http2() {
        let mut frames = Frames::default();
        let alert = [21, 3, 3, 0, 2, 2, 50];
        assert!(frames.foreign(&alert).is_some_and(|problem| problem.contains("it speaks TLS")));
        assert!(
            frames.foreign(b"HTTP/1.1 400 Bad Request").is_some_and(|problem| problem.contains("HTTP/1"))
        );
        assert_eq!(frames.foreign(&frame(4, &[0; 6])), None);
        frames.feed(&frame(4, &[0; 6]), &mut |_| {});
        assert_eq!(frames.foreign(&alert), None, "what comes later may begin so");
    }

    #[test]
    fn goaways_are_found_however_the_bytes_are_cut() {
        let bytes = [
            frame(4, &[0; 6]),
            frame(0, &[GOAWAY; 70_000]),
            frame(6, &[7; 8]),
            goaway(0, b""),
            frame(1, &[]),
            goaway(11, b"too_many_pings"),
            frame(GOAWAY, &[1; 3]),
            goaway(2, b""),
        ]
        .concat();
        for size in [1, 2, 7, 9, 16, 17, 1000, bytes.len()] {
            let (mut frames, mut seen) = (Frames::default(), Vec::new());
            for chunk in bytes.chunks(size) {
                frames.feed(chunk, &mut |what| seen.push(what));
            }
            assert_eq!(seen, [Seen::First, Seen::GoAway(0), Seen::GoAway(11), Seen::GoAway(2)], "{size}");
        }
    }
}
