//! One stream: opened, read to its end, and left in between.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Notify, mpsc},
    time::{Instant, timeout},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming};
use tracing::{debug, warn};

use super::{
    Answered, Lane, Message, Refused, Shared,
    book::{Handle, LineId, MAX_CREDITS, Reply},
    keeper::{Opening, Post},
};
use crate::{
    RpcError,
    client::{Endpoint, EndpointId, Outcome, Picked, ServerLoad, Transport},
};

/// Messages and cancellations waiting for the network on one stream. There is always a place for a message that has a
/// credit: cancellations take only what is beyond [`MAX_CREDITS`].
const OUTBOUND: usize = 2 * MAX_CREDITS + 1;
/// A replica that does not answer the opening of a stream for so long is as good as down.
const OPEN: Duration = Duration::from_secs(2);
/// How long a server may take to end a stream after the client's end.
const FINISH: Duration = Duration::from_secs(5);

/// A stream as those who send on it see it.
pub(super) struct Line<L: Lane> {
    endpoint: Arc<Endpoint>,
    outbound: mpsc::Sender<L::Outbound>,
    post: Arc<Post>,
    /// Told when the stream is left, and when nobody waits on one that was left.
    changed: Notify,
}

impl<L: Lane> Handle for Arc<Line<L>> {
    type Seat = Picked;

    fn endpoint(&self) -> EndpointId {
        self.endpoint.id()
    }

    fn sit(&self) -> Option<Picked> {
        self.endpoint.begin_usable()
    }

    fn load(&self) -> Option<f64> {
        self.endpoint.is_usable().then(|| self.endpoint.load())
    }
}

impl<L: Lane> Line<L> {
    pub(super) fn endpoint(&self) -> &Arc<Endpoint> {
        &self.endpoint
    }

    /// Sends a message that has a credit. `false`: the stream has ended.
    pub(super) fn send(&self, message: L::Outbound) -> bool {
        self.outbound.try_send(message).is_ok()
    }

    /// Says something that may be lost: a full buffer means that the server is behind, and it checks deadlines itself.
    pub(super) fn hint(&self, message: L::Outbound) {
        if self.outbound.capacity() > MAX_CREDITS {
            self.outbound.try_send(message).ok();
        }
    }

    /// The stream is to be looked at: it was left, or nobody waits on it any more.
    pub(super) fn look(&self) {
        self.changed.notify_one();
    }

    fn report(&self, load: Option<ServerLoad>) {
        if let Some(load) = load {
            self.endpoint.report(load);
            self.post.report(load);
        }
    }
}

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It could not be opened.
    Unopened,
    /// It lived for so long.
    After(Duration),
}

/// Opens a stream and reads it to its end.
pub(super) async fn run<L: Lane>(
    shared: Arc<Shared<L>>,
    endpoint: Arc<Endpoint>,
    transport: Transport,
    opening: Opening,
) -> End {
    let post = opening.post();
    let (outbound, receiver) = mpsc::channel(OUTBOUND);
    if let Some(hello) = shared.lane.hello() {
        outbound.try_send(hello).ok();
    }
    let address = endpoint.address().authority.clone();
    let Some(mut inbound) = open(&shared, &endpoint, transport, receiver).await else { return End::Unopened };
    let since = Instant::now();
    let line = Arc::new(Line { endpoint, outbound, post, changed: Notify::new() });
    let id = shared.book().open(Arc::clone(&line), shared.lane.initial_credits(), since);
    drop(opening);
    shared.count_streams();
    let ended = read(&shared, id, &line, &mut inbound).await;
    // Callers whose reply is dropped here move on.
    let unanswered = shared.book().close(id);
    shared.count_streams();
    drop(line);
    let service = shared.cluster.service();
    match ended {
        Ok(Ended::Left) => {
            // The server ends the stream when it has seen our end of it.
            timeout(FINISH, async { while let Ok(Some(_)) = inbound.message().await {} }).await.ok();
        }
        Ok(Ended::Drained) => unanswered.into_iter().for_each(|waiting| drop(waiting.send(Reply::Unread))),
        Ok(Ended::Closed) => debug!(service, address, "stream ended"),
        Err(error) => {
            warn!(service, address, reason = error.reason, "stream broke: {error}");
            shared.set_problem(format!("{address}: {} ({error})", error.reason));
        }
    }
    End::After(since.elapsed())
}

async fn open<L: Lane>(
    shared: &Shared<L>,
    endpoint: &Arc<Endpoint>,
    transport: Transport,
    receiver: mpsc::Receiver<L::Outbound>,
) -> Option<Streaming<L::Inbound>> {
    let request = shared.cluster.request(ReceiverStream::new(receiver));
    let picked = endpoint.begin();
    let transport = transport.metered(&shared.meters.streams);
    let error = match timeout(OPEN, shared.lane.open(transport, request)).await {
        // That it can be opened says nothing of how messages fare.
        Ok(Ok(response)) => {
            picked.done(Outcome::Cancelled);
            return Some(response.into_inner());
        }
        Ok(Err(status)) => RpcError::from_status(&status),
        Err(_) => RpcError::new(Code::DeadlineExceeded, crate::reason::DEADLINE_EXCEEDED, "no answer"),
    };
    picked.done(Outcome::Failure(error.code));
    let (service, address) = (shared.cluster.service(), &endpoint.address().authority);
    debug!(service, address, reason = error.reason, "cannot open a stream");
    shared.set_problem(format!("{address}: {} ({error})", error.reason));
    None
}

/// The end of a stream that did not break.
enum Ended {
    /// By us, with nothing unanswered.
    Left,
    /// By the server after its notice: what is unanswered it has not read.
    Drained,
    /// By the server without a word: what is unanswered it may have acted on.
    Closed,
}

async fn read<L: Lane>(
    shared: &Shared<L>,
    id: LineId,
    line: &Line<L>,
    inbound: &mut Streaming<L::Inbound>,
) -> Result<Ended, RpcError> {
    let (mut drained, mut leaving) = (false, false);
    loop {
        tokio::select! {
            message = inbound.message() => match message.map_err(|status| RpcError::from_status(&status))? {
                Some(message) => drained |= take_in(shared, id, line, message)?,
                None if drained => return Ok(Ended::Drained),
                None => return Ok(Ended::Closed),
            },
            () = line.changed.notified() => leaving = true,
        }
        if (drained || leaving) && shared.book().is_finished(id) {
            return Ok(Ended::Left);
        }
    }
}

/// Takes in a message of the server; says whether it was the notice that it drains.
fn take_in<L: Lane>(
    shared: &Shared<L>,
    id: LineId,
    line: &Line<L>,
    message: L::Inbound,
) -> Result<bool, RpcError> {
    let now = Instant::now();
    match shared.lane.read(message)? {
        Message::Credits(count) => {
            shared.book().grant(id, count, now);
            // An old stream may be left for it now.
            line.post.wake();
        }
        Message::Answer(Answered { id: message, answer, code, load }) => {
            line.report(load);
            let waiting = shared.book().answered(id, message, now);
            // Nobody waits any more when the caller's deadline passed, or another replica answered first.
            if let Some(waiting) = waiting {
                waiting.send(Reply::Answer((code, answer))).ok();
            }
        }
        Message::Refused(Refused { id: message, error, load }) => {
            line.report(load);
            let waiting = shared.book().answered(id, message, now);
            if let Some(waiting) = waiting {
                waiting.send(Reply::Refused(error)).ok();
            }
        }
        Message::Drain => {
            shared.book().leave(id);
            line.post.drained();
            return Ok(true);
        }
    }
    Ok(false)
}
