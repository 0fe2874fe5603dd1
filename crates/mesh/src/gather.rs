//! What the calls of one connection have to say at the same moment goes out in one write.
//!
//! hyper's connection task runs as soon as one call has something to send, and writes it. Eight calls that are answered
//! together, by one batch, then cost eight writes, and wake the peer eight times: for small messages that is most of what a
//! call costs. Here a flush of little waits until the runtime's thread has run the other tasks that are ready, which have
//! things to say too. Where none is ready it waits for nothing; where they never end, for as many tasks as tokio runs
//! before it looks at the network again (61).
//!
//! A connection that carries one call at a time gains nothing by this and would wait for a turn of the thread with each write:
//! after a few in a row to which nothing was added, writes go out at once, and only now and then one is held to see.
//!
//! So a flush here says that the bytes *will* go out, not that they have, which [`AsyncWrite`] does not allow for: HTTP/2
//! would otherwise not go on to frame what comes next. It is right beneath hyper, which flushes each time that its task
//! runs, and shuts down what it is done with; both send what is held.

use std::{
    io::{self, IoSlice},
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker, ready},
};

use futures_util::task::AtomicWaker;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    task::yield_now,
};

/// What is written at once is not held: a copy costs more than a call of the kernel.
const LARGE: usize = 16 << 10;
/// More than this is not held: a socket takes it at once as a rule, and whoever reads has enough to do.
const FULL: usize = 32 << 10;
/// So many writes in a row to which nothing was added, and gathering stops …
const ALONE: u32 = 8;
/// … for so many writes: then one is held, and if something is added to it all are again.
const AT_ONCE: u32 = 15;
/// An idle connection keeps room for this much. There may be 100,000 of them.
const KEPT: usize = 4 << 10;

/// A connection whose small writes are gathered.
pub(crate) struct Gathered<T> {
    io: T,
    held: Vec<u8>,
    /// Of `held`, what is written.
    written: usize,
    turn: Arc<Turn>,
    waker: Waker,
    /// The turn is awaited.
    waits: bool,
    /// Something was added since.
    joined: bool,
    /// Writes in a row to which nothing was.
    alone: u32,
    /// Writes to come that are not held.
    at_once: u32,
}

/// The runtime's word that the other tasks have run.
#[derive(Default)]
struct Turn {
    came: AtomicBool,
    /// The connection's task.
    task: AtomicWaker,
}

impl Wake for Turn {
    fn wake(self: Arc<Self>) {
        self.came.store(true, Ordering::Release);
        self.task.wake();
    }
}

impl<T> Gathered<T> {
    pub(crate) fn new(io: T) -> Self {
        let turn = Arc::<Turn>::default();
        let waker = Waker::from(Arc::clone(&turn));
        Self {
            io,
            held: Vec::new(),
            written: 0,
            turn,
            waker,
            waits: false,
            joined: false,
            alone: 0,
            at_once: 0,
        }
    }

    /// Takes note of what is held.
    fn hold(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
        self.joined |= self.waits;
    }

    /// The turn came: whether it was worth waiting for.
    fn learn(&mut self) {
        self.waits = false;
        self.alone = if std::mem::take(&mut self.joined) { 0 } else { self.alone + 1 };
        if self.alone >= ALONE {
            self.at_once = AT_ONCE;
        }
    }

    /// Whether what is held is to go out now; if not, the task is woken when it is.
    fn is_due(&mut self, context: &Context<'_>) -> bool {
        if self.at_once > 0 {
            self.at_once -= 1;
            return true;
        }
        if self.held.len() < FULL {
            self.turn.task.register(context.waker());
            if !self.waits {
                self.waits = true;
                // Polled once, it wakes its waker after the other tasks; it is not needed for longer.
                let _ = pin!(yield_now()).poll(&mut Context::from_waker(&self.waker));
            }
            if !self.turn.came.load(Ordering::Acquire) {
                return false;
            }
        }
        true
    }
}

impl<T: AsyncWrite + Unpin> Gathered<T> {
    /// Writes what is held.
    fn drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.written < self.held.len() {
            let rest = &self.held[self.written..];
            match ready!(Pin::new(&mut self.io).poll_write(context, rest))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.written += written,
            }
        }
        self.written = 0;
        self.held.clear();
        self.held.shrink_to(KEPT);
        if self.turn.came.swap(false, Ordering::AcqRel) {
            self.learn();
        }
        Poll::Ready(Ok(()))
    }

    /// Makes room to hold so much; false when it is not to be held.
    fn room(&mut self, length: usize, context: &mut Context<'_>) -> Poll<io::Result<bool>> {
        let holds = length < LARGE;
        if !holds || self.held.len() + length > FULL {
            ready!(self.drain(context))?;
        }
        Poll::Ready(Ok(holds))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Gathered<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if !ready!(self.room(bytes.len(), context))? {
            return Pin::new(&mut self.io).poll_write(context, bytes);
        }
        self.hold(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = slices.iter().map(|slice| slice.len()).sum();
        if !ready!(self.room(length, context))? {
            return Pin::new(&mut self.io).poll_write_vectored(context, slices);
        }
        slices.iter().for_each(|slice| self.hold(slice));
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        // What is partly written is not held back a second time.
        if !self.held.is_empty() && self.written == 0 && !self.is_due(context) {
            return Poll::Ready(Ok(()));
        }
        ready!(self.drain(context))?;
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.drain(context))?;
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Gathered<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, sync::Mutex};

    use rand::{Rng, SeedableRng, rngs::StdRng};
    use tokio::{io::AsyncWriteExt, sync::mpsc};

    use super::*;

    /// Keeps what is written, write by write; takes `most` bytes at once.
    #[derive(Clone)]
    struct Socket {
        most: usize,
        writes: Arc<Mutex<Vec<Vec<u8>>>>,
    }

    impl Socket {
        fn new(most: usize) -> Self {
            Self { most, writes: Arc::default() }
        }

        fn writes(&self) -> Vec<usize> {
            self.writes.lock().unwrap().iter().map(Vec::len).collect()
        }
    }

    impl AsyncWrite for Socket {
        fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            let taken = &bytes[..bytes.len().min(self.most)];
            self.writes.lock().unwrap().push(taken.to_vec());
            Poll::Ready(Ok(taken.len()))
        }

        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    /// A task that, as hyper's, writes what it is given and flushes whenever it runs; it shuts down at the end.
    fn connection(socket: Socket) -> mpsc::Sender<Vec<u8>> {
        let (send, mut receive) = mpsc::channel::<Vec<u8>>(128);
        let mut io = Gathered::new(socket);
        let mut rest: Vec<u8> = Vec::new();
        tokio::spawn(poll_fn(move |context| {
            loop {
                while !rest.is_empty() {
                    let written = ready!(Pin::new(&mut io).poll_write(context, &rest)).unwrap();
                    rest.drain(..written);
                }
                ready!(Pin::new(&mut io).poll_flush(context)).unwrap();
                match ready!(receive.poll_recv(context)) {
                    Some(bytes) => rest = bytes,
                    None => return Pin::new(&mut io).poll_shutdown(context).map(Result::unwrap),
                }
            }
        }));
        send
    }

    async fn until(socket: &Socket, bytes: usize) -> Vec<usize> {
        while socket.writes().iter().sum::<usize>() < bytes {
            tokio::task::yield_now().await;
        }
        socket.writes()
    }

    #[tokio::test]
    async fn what_several_tasks_say_at_the_same_moment_is_one_write() {
        let socket = Socket::new(usize::MAX);
        let connection = connection(socket.clone());
        for round in 1..=3 {
            for _ in 0..8 {
                let connection = connection.clone();
                tokio::spawn(async move { connection.try_send(vec![1; 100]).unwrap() });
            }
            assert_eq!(until(&socket, round * 800).await, vec![800; round]);
        }
    }

    #[tokio::test]
    async fn what_is_said_alone_needs_nobody_to_go_out() {
        let socket = Socket::new(usize::MAX);
        let connection = connection(socket.clone());
        for round in 1..=3 {
            connection.try_send(vec![1; 10]).unwrap();
            assert_eq!(until(&socket, round * 10).await, vec![10; round]);
        }
    }

    #[tokio::test]
    async fn who_is_always_alone_soon_waits_no_more_and_who_is_not_does_again() {
        let socket = Socket::new(usize::MAX);
        let mut io = Gathered::new(socket.clone());
        let mut writes = 0;
        for _ in 0..ALONE {
            io.write_all(b"x").await.unwrap();
            io.flush().await.unwrap();
            assert_eq!(socket.writes().len(), writes, "held");
            tokio::task::yield_now().await;
            io.flush().await.unwrap();
            writes += 1;
            assert_eq!(socket.writes().len(), writes);
        }
        for _ in 0..AT_ONCE {
            io.write_all(b"x").await.unwrap();
            io.flush().await.unwrap();
            writes += 1;
            assert_eq!(socket.writes().len(), writes, "at once");
        }
        for _ in 0..3 {
            for _ in 0..2 {
                io.write_all(b"x").await.unwrap();
                io.flush().await.unwrap();
            }
            assert_eq!(socket.writes().len(), writes, "held again, as two come together");
            tokio::task::yield_now().await;
            io.flush().await.unwrap();
            writes += 1;
            assert_eq!(socket.writes().len(), writes);
        }
    }

    #[tokio::test]
    async fn what_is_large_is_not_held_and_overtakes_nothing() {
        let socket = Socket::new(usize::MAX);
        let connection = connection(socket.clone());
        for length in [10, LARGE, 20] {
            connection.try_send(vec![1; length]).unwrap();
        }
        assert_eq!(until(&socket, LARGE + 30).await, [10, LARGE, 20]);
    }

    #[tokio::test]
    async fn never_more_is_held_than_the_bound() {
        let socket = Socket::new(usize::MAX);
        let connection = connection(socket.clone());
        for _ in 0..100 {
            connection.try_send(vec![1; LARGE - 1]).unwrap();
        }
        let writes = until(&socket, 100 * (LARGE - 1)).await;
        assert_eq!(writes, vec![2 * (LARGE - 1); 50]);
    }

    #[tokio::test]
    async fn a_shutdown_leaves_nothing_behind() {
        let socket = Socket::new(3);
        let mut io = Gathered::new(socket.clone());
        io.write_all(b"goodbye").await.unwrap();
        assert_eq!(socket.writes(), [0; 0]);
        io.shutdown().await.unwrap();
        assert_eq!(socket.writes(), [3, 3, 1]);
    }

    #[tokio::test]
    async fn every_byte_comes_once_and_in_order_however_little_the_socket_takes() {
        let mut random = StdRng::seed_from_u64(7);
        let socket = Socket::new(1000);
        let connection = connection(socket.clone());
        let bytes: Vec<u8> = (0..1 << 18).map(|_| random.random()).collect();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let length = random.random_range(1..=40_000).min(rest.len());
            let (said, left) = rest.split_at(length);
            connection.try_send(said.to_vec()).unwrap();
            rest = left;
            if random.random_bool(0.5) {
                tokio::task::yield_now().await;
            }
        }
        until(&socket, bytes.len()).await;
        assert!(socket.writes.lock().unwrap().concat() == bytes);
    }
}
