//! The answers of one `Infer` stream as the transport reads them, and the tensors that still wait for theirs.

use std::{
    collections::{HashMap, hash_map::Entry},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use sightline_proto::classifier::InferResponse;
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::Status;

/// An answer, or the end of the stream.
pub(crate) type Answer = Result<InferResponse, Status>;

#[derive(Default)]
struct State {
    /// By the id of the tensor: how it is told that nobody waits.
    live: HashMap<u64, Arc<AtomicBool>>,
    /// Why the stream ends once everything is answered; `None`: as asked by the client.
    end: Option<Status>,
}

/// The tensors of one stream that are not answered yet. Cheap to clone; all clones are one stream's.
#[derive(Clone, Default)]
pub(crate) struct Unanswered(Arc<Mutex<State>>);

impl Unanswered {
    /// Takes a tensor in and gives the flag that tells it nobody waits; `None` when its id is taken.
    pub(crate) fn admit(&self, id: u64) -> Option<Arc<AtomicBool>> {
        match self.lock().live.entry(id) {
            Entry::Occupied(_) => None,
            Entry::Vacant(place) => Some(Arc::clone(place.insert(Arc::default()))),
        }
    }

    /// The tensor has its answer.
    pub(crate) fn answered(&self, id: u64) {
        self.lock().live.remove(&id);
    }

    /// Nobody waits for this tensor.
    pub(crate) fn cancel(&self, id: u64) {
        if let Some(cancelled) = self.lock().live.get(&id) {
            cancelled.store(true, Ordering::Relaxed);
        }
    }

    /// The stream ends with this status when the last tensor is answered.
    pub(crate) fn fail(&self, status: Status) {
        self.lock().end = Some(status);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no holder panics")
    }
}

/// What the transport reads. It drops this when the client is gone, however it went: then nobody waits for anything
/// that is still unanswered. A client that closed only its own side still reads.
pub struct Answers {
    answers: ReceiverStream<Answer>,
    unanswered: Unanswered,
}

impl Answers {
    pub(crate) fn new(answers: mpsc::Receiver<Answer>, unanswered: Unanswered) -> Self {
        Self { answers: ReceiverStream::new(answers), unanswered }
    }
}

impl Stream for Answers {
    type Item = Answer;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Answer>> {
        match Pin::new(&mut self.answers).poll_next(context) {
            // Every sender is gone: no more is read, and each tensor that was read is answered.
            Poll::Ready(None) => Poll::Ready(self.unanswered.lock().end.take().map(Err)),
            other => other,
        }
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        // Closed first: a tensor that is taken in at this moment is either in the list below or finds it closed.
        self.answers.close();
        for cancelled in self.unanswered.lock().live.values() {
            cancelled.store(true, Ordering::Relaxed);
        }
    }
}
