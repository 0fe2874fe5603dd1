//! One kind of stream: how it is opened, and what its messages mean.

use std::future::Future;

use sightline_wire::{status::ItemError, stream::Load};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};

use super::super::{ServerLoad, Transport, breaker::is_fault};
use crate::{RpcError, reason::DRAINING};

/// What a message from the server means to the pool.
#[derive(Debug)]
pub enum Message<A> {
    /// The answer to a message; it gives the message's credit back.
    Answer(Answered<A>),
    /// The server has not acted on the message with this id and will not: it may be sent elsewhere, whatever it is. The
    /// credit comes back.
    Refused(Refused),
    /// So many more messages may be unanswered at once.
    Credits(usize),
    /// The server is about to stop, or wants the connection replaced: answers and refusals still come, new messages go
    /// elsewhere. A stream that the server ends well after this has not read what is unanswered.
    Drain,
}

impl<A> Message<Result<A, ItemError>> {
    /// Reads an answer whose errors are items of the stream. Of a message that met a server that drains or has no room
    /// nothing was done; any other error is an answer, and counts against the endpoint only if it says that it cannot
    /// serve (`UNAVAILABLE`, `INTERNAL`, `UNKNOWN`, `DATA_LOSS`): an error that is the message's own must not be one of these.
    pub fn of_item(id: u64, answer: Result<A, ItemError>, load: Option<Load>) -> Self {
        let load = load.map(ServerLoad::from);
        match answer {
            Err(error) if error.reason == DRAINING || error.code == Code::ResourceExhausted as i32 => {
                Self::Refused(Refused { id, error: error.into(), load })
            }
            Err(error) => {
                let code = Some(Code::from(error.code)).filter(|code| is_fault(*code)).unwrap_or(Code::Ok);
                Self::Answer(Answered { id, answer: Err(error), code, load })
            }
            Ok(answer) => Self::Answer(Answered { id, answer: Ok(answer), code: Code::Ok, load }),
        }
    }
}

impl From<Load> for ServerLoad {
    /// A delay that is none, or negative, counts as none; an occupancy that is no share as the nearest one.
    fn from(load: Load) -> Self {
        let queue_delay = load.queue_delay.and_then(|delay| delay.try_into().ok()).unwrap_or_default();
        let occupancy = if load.occupancy.is_nan() { 0.0 } else { load.occupancy.clamp(0.0, 1.0) };
        Self { queue_delay, occupancy }
    }
}

/// An answer.
#[derive(Debug)]
pub struct Answered<A> {
    /// Of the message that it answers.
    pub id: u64,
    /// For the caller.
    pub answer: A,
    /// How it counts for the endpoint: `Ok` for everything that is the caller's own affair.
    pub code: Code,
    /// What the server says of itself.
    pub load: Option<ServerLoad>,
}

/// A message that the server did not take.
#[derive(Debug)]
pub struct Refused {
    /// Of the message.
    pub id: u64,
    /// Why. With the reason [`DRAINING`](crate::reason::DRAINING) the message moves at once; anything else says that
    /// the server has too much to do, and moving is a retry like any other.
    pub error: RpcError,
    /// What the server says of itself.
    pub load: Option<ServerLoad>,
}

/// One kind of stream.
pub trait Lane: Send + Sync + 'static {
    /// What the client sends.
    type Outbound: Send + 'static;
    /// What the server sends.
    type Inbound: Send + 'static;
    /// What a caller gets.
    type Answer: Send + 'static;

    /// Opens the stream on one replica.
    fn open(
        &self,
        transport: Transport,
        outbound: Request<ReceiverStream<Self::Outbound>>,
    ) -> impl Future<Output = Result<Response<Streaming<Self::Inbound>>, Status>> + Send;

    /// Reads a message of the server.
    ///
    /// # Errors
    /// What breaks the protocol; the stream is given up.
    fn read(&self, inbound: Self::Inbound) -> Result<Message<Self::Answer>, RpcError>;

    /// Whether a message may be sent again although a server may have acted on it: receivers know it by what it says, or
    /// keep nothing. Where not, only a message that no server has read moves to another stream, and none is hedged.
    fn repeatable(&self) -> bool;

    /// The first message of a stream, by which the client says that it understands credits, where the protocol has one.
    fn hello(&self) -> Option<Self::Outbound> {
        None
    }

    /// How many messages may be unanswered before the server granted any: 0 where it grants them all itself.
    fn initial_credits(&self) -> usize {
        0
    }

    /// The message that says nobody waits for `id` any more, where the protocol has one.
    fn cancel(&self, id: u64) -> Option<Self::Outbound> {
        let _ = id;
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_counts_against_the_endpoint_if_it_is_its_own() {
        for (code, counts) in [
            (Code::Unavailable, Code::Unavailable),
            (Code::Internal, Code::Internal),
            (Code::Unknown, Code::Unknown),
            (Code::DataLoss, Code::DataLoss),
            (Code::InvalidArgument, Code::Ok),
            (Code::NotFound, Code::Ok),
            (Code::DeadlineExceeded, Code::Ok),
        ] {
            let error = RpcError::new(code, "REASON", "x");
            match Message::<Result<(), ItemError>>::of_item(7, Err(error.into()), None) {
                Message::Answer(answered) => {
                    assert_eq!((answered.id, answered.code), (7, counts), "{code:?}");
                }
                other => panic!("{code:?}: {other:?}"),
            }
        }
    }
}
