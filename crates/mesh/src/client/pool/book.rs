//! Who may send on which stream: credits, unanswered messages, and those who wait. It does no IO, reads no clock, and
//! does the same for the same events.
//!
//! A credit that is free goes to whoever has waited longest, on whatever endpoint it is: what is answered soonest draws the
//! next message, so a full service is balanced by its own pace.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::{sync::oneshot, time::Instant};

use super::super::EndpointId;
use crate::{RpcError, WaitEstimate};

/// The most messages that one stream may have unanswered, whatever the server grants: what its outbound buffer holds.
pub(super) const MAX_CREDITS: usize = 256;

/// A stream in the book.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct LineId(u64);

/// Somebody who waits for a credit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Ticket(u64);

/// What a stream is to those who send on it.
pub(super) trait Handle: Clone {
    /// A message counted on the endpoint, until it is dropped.
    type Seat;
    fn endpoint(&self) -> EndpointId;
    /// Counts a message that goes there. `None` where none may: on an endpoint on trial for all but the one that tries it.
    fn sit(&self) -> Option<Self::Seat>;
    /// Whether the endpoint may be sent to, and how loaded it is: less is better.
    fn load(&self) -> Option<f64>;
}

/// What becomes of a message on a stream. A stream that breaks drops the sender instead.
#[derive(Debug)]
pub(super) enum Reply<A> {
    Answer(A),
    /// The server has not acted on it.
    Refused(RpcError),
    /// The server ended the stream without reading it.
    Unread,
}

/// A message's place on a stream: its credit is taken.
#[derive(Debug)]
pub(super) struct Grant<A, H> {
    pub(super) line: LineId,
    pub(super) handle: H,
    pub(super) id: u64,
    pub(super) reply: oneshot::Receiver<Reply<A>>,
}

/// A place on a stream and one on its endpoint.
pub(super) type Seated<A, H> = (<H as Handle>::Seat, Grant<A, H>);

struct Line<A, H> {
    handle: H,
    credits: usize,
    /// Credits were granted: it can carry messages.
    ready: bool,
    pending: BTreeMap<u64, oneshot::Sender<Reply<A>>>,
    /// Messages whose callers left before the answer: their credits are still out.
    abandoned: BTreeSet<u64>,
    /// Takes no more messages.
    leaving: bool,
    next: u64,
    used: Instant,
}

impl<A, H> Line<A, H> {
    fn unanswered(&self) -> usize {
        self.pending.len() + self.abandoned.len()
    }

    fn is_free(&self) -> bool {
        !self.leaving && self.credits > 0
    }
}

struct Waiter {
    avoid: Vec<EndpointId>,
    wake: oneshot::Sender<()>,
}

/// How a stream stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) line: LineId,
    pub(super) leaving: bool,
    /// Whether credits were granted on it.
    pub(super) ready: bool,
    pub(super) credits: usize,
    pub(super) unanswered: usize,
    /// When a message was last sent on it.
    pub(super) used: Instant,
}

/// All open streams of a pool.
pub(super) struct Book<A, H: Handle> {
    lines: BTreeMap<LineId, Line<A, H>>,
    waiting: BTreeMap<Ticket, Waiter>,
    /// Whose turn came and who has not looked yet.
    granted: BTreeMap<Ticket, Seated<A, H>>,
    /// Streams of an endpoint, oldest first, among which messages are spread; further ones take what these cannot, so
    /// that they fall idle when there is less to do.
    spread: usize,
    max_waiting: usize,
    /// How fast credits come to those who wait.
    wait: WaitEstimate,
    next: u64,
}

impl<A, H: Handle> Book<A, H> {
    pub(super) fn new(spread: usize, max_waiting: usize) -> Self {
        let (lines, waiting, granted) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let wait = WaitEstimate::default();
        Self { lines, waiting, granted, spread: spread.max(1), max_waiting, wait, next: 0 }
    }

    /// A stream was opened.
    pub(super) fn open(&mut self, handle: H, credits: usize, now: Instant) -> LineId {
        self.next += 1;
        let line = LineId(self.next);
        let (pending, abandoned) = (BTreeMap::new(), BTreeSet::new());
        let opened =
            Line { handle, credits: 0, ready: false, pending, abandoned, leaving: false, next: 1, used: now };
        self.lines.insert(line, opened);
        self.grant(line, credits, now);
        line
    }

    /// The server grants more.
    pub(super) fn grant(&mut self, line: LineId, credits: usize, now: Instant) {
        if let Some(line) = self.lines.get_mut(&line) {
            let room = MAX_CREDITS.saturating_sub(line.credits + line.unanswered());
            line.credits += credits.min(room);
            line.ready |= credits > 0;
        }
        self.hand_out(line, now);
    }

    /// Takes a credit of one of an endpoint's streams, if there is one and the endpoint has a `seat`.
    pub(super) fn take(
        &mut self,
        endpoint: EndpointId,
        now: Instant,
        seat: impl FnOnce(&H) -> Option<H::Seat>,
    ) -> Option<Seated<A, H>> {
        let of = || {
            let lines = self.lines.iter();
            lines.filter(|(_, line)| !line.leaving && line.handle.endpoint() == endpoint)
        };
        let free = |(_, line): &(&LineId, &Line<A, H>)| line.credits > 0;
        let least = of().take(self.spread).filter(free).min_by_key(|(_, line)| line.unanswered());
        let (line, _) = least.or_else(|| of().find(free))?;
        self.take_on(*line, now, seat)
    }

    fn take_on(
        &mut self,
        id: LineId,
        now: Instant,
        seat: impl FnOnce(&H) -> Option<H::Seat>,
    ) -> Option<Seated<A, H>> {
        let line = self.lines.get_mut(&id).filter(|line| line.is_free())?;
        let seat = seat(&line.handle)?;
        let (send, reply) = oneshot::channel();
        let message = line.next;
        line.next += 1;
        line.credits -= 1;
        line.used = now;
        line.pending.insert(message, send);
        Some((seat, Grant { line: id, handle: line.handle.clone(), id: message, reply }))
    }

    /// Waits for a credit of any endpoint, those in `avoid` only if no other has a stream. `wake` is told when there is
    /// one to [`Book::claim`], which may be at once. `None` when too many wait, or so many that it would take longer than
    /// `patience`.
    pub(super) fn queue(
        &mut self,
        avoid: Vec<EndpointId>,
        wake: oneshot::Sender<()>,
        patience: Duration,
        now: Instant,
    ) -> Option<Ticket> {
        if self.is_long(patience) {
            return None;
        }
        self.next += 1;
        let ticket = Ticket(self.next);
        self.waiting.insert(ticket, Waiter { avoid, wake });
        self.offer(now);
        Some(ticket)
    }

    /// Whether somebody with so much patience would have to wait, and be turned away.
    pub(super) fn is_crowded(&self, patience: Duration) -> bool {
        !self.waiting.is_empty() && self.is_long(patience)
    }

    fn is_long(&self, patience: Duration) -> bool {
        let full = self.waiting.len() + self.granted.len() >= self.max_waiting;
        full || self.wait.behind(self.waiting.len()) > patience
    }

    /// The place of somebody who waited, once.
    pub(super) fn claim(&mut self, ticket: Ticket) -> Option<Seated<A, H>> {
        self.granted.remove(&ticket)
    }

    /// Somebody waits no longer.
    pub(super) fn give_up(&mut self, ticket: Ticket, now: Instant) {
        self.waiting.remove(&ticket);
        if let Some((seat, grant)) = self.granted.remove(&ticket) {
            // First, so that an endpoint on trial may be tried by the next in line.
            drop(seat);
            self.unsent(grant.line, grant.id, now);
        }
    }

    /// Gives free credits to those who wait: after an endpoint became usable again.
    pub(super) fn offer(&mut self, now: Instant) {
        if self.waiting.is_empty() {
            return;
        }
        let mut free: Vec<(LineId, f64)> = self
            .lines
            .iter()
            .filter(|(_, line)| line.is_free())
            .filter_map(|(id, line)| Some((*id, line.handle.load()?)))
            .collect();
        free.sort_by(|a, b| a.1.total_cmp(&b.1));
        for (line, _) in free {
            self.hand_out(line, now);
        }
    }

    /// Gives a stream's free credits to those who have waited longest.
    fn hand_out(&mut self, id: LineId, now: Instant) {
        while !self.waiting.is_empty() {
            let Some(line) = self.lines.get(&id).filter(|line| line.is_free()) else { return };
            if line.handle.load().is_none() {
                return;
            }
            let endpoint = line.handle.endpoint();
            let Some(ticket) = self.first_for(endpoint) else { return };
            let Some(seated) = self.take_on(id, now, H::sit) else { return };
            self.granted.insert(ticket, seated);
            let Some(waiter) = self.waiting.remove(&ticket) else { return };
            match waiter.wake.send(()) {
                Ok(()) => self.wait.left(1, !self.waiting.is_empty(), now),
                // Whoever it was is gone; the credit goes to the next.
                Err(()) => self.undo(ticket),
            }
        }
    }

    fn undo(&mut self, ticket: Ticket) {
        let Some((_, grant)) = self.granted.remove(&ticket) else { return };
        if let Some(line) = self.lines.get_mut(&grant.line) {
            line.pending.remove(&grant.id);
            line.credits += 1;
        }
    }

    /// Who has waited longest of those who would go to this endpoint.
    fn first_for(&self, endpoint: EndpointId) -> Option<Ticket> {
        let goes = |waiter: &Waiter| {
            !waiter.avoid.contains(&endpoint) || {
                let mut others = self.lines.values().filter(|line| !line.leaving);
                !others.any(|line| {
                    line.handle.load().is_some() && !waiter.avoid.contains(&line.handle.endpoint())
                })
            }
        };
        self.waiting.iter().find(|(_, waiter)| goes(waiter)).map(|(ticket, _)| *ticket)
    }

    /// The server answered or refused this message: its credit is back. `None` where nobody waits, or it was never sent.
    pub(super) fn answered(
        &mut self,
        id: LineId,
        message: u64,
        now: Instant,
    ) -> Option<oneshot::Sender<Reply<A>>> {
        let line = self.lines.get_mut(&id)?;
        let waiting = line.pending.remove(&message);
        if waiting.is_some() || line.abandoned.remove(&message) {
            line.credits += 1;
            self.hand_out(id, now);
        }
        waiting
    }

    /// Nobody waits for this message any more; its credit comes back with its answer. Says whether its answer is still out.
    pub(super) fn abandon(&mut self, line: LineId, message: u64) -> bool {
        let Some(line) = self.lines.get_mut(&line) else { return false };
        let out = line.pending.remove(&message).is_some();
        if out {
            line.abandoned.insert(message);
        }
        out
    }

    /// This message never left: its credit is back.
    pub(super) fn unsent(&mut self, id: LineId, message: u64, now: Instant) {
        let Some(line) = self.lines.get_mut(&id) else { return };
        if line.pending.remove(&message).is_some() {
            line.credits += 1;
            self.hand_out(id, now);
        }
    }

    /// The stream takes no more messages.
    pub(super) fn leave(&mut self, line: LineId) {
        if let Some(line) = self.lines.get_mut(&line) {
            line.leaving = true;
        }
    }

    /// Whether a stream that is left has nobody waiting for its answers.
    pub(super) fn is_finished(&self, line: LineId) -> bool {
        self.lines.get(&line).is_none_or(|line| line.leaving && line.pending.is_empty())
    }

    /// The stream has ended; who waited for an answer is given back, to be told why or to be dropped.
    pub(super) fn close(&mut self, line: LineId) -> Vec<oneshot::Sender<Reply<A>>> {
        self.lines.remove(&line).map_or_else(Vec::new, |line| line.pending.into_values().collect())
    }

    /// Streams that take messages.
    pub(super) fn open_lines(&self) -> usize {
        self.lines.values().filter(|line| !line.leaving).count()
    }

    /// Callers who wait for a credit.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// The streams of one endpoint, oldest first.
    pub(super) fn of(&self, endpoint: EndpointId) -> Vec<Standing> {
        let lines = self.lines.iter().filter(|(_, line)| line.handle.endpoint() == endpoint);
        lines
            .map(|(id, line)| Standing {
                line: *id,
                leaving: line.leaving,
                ready: line.ready,
                credits: line.credits,
                unanswered: line.unanswered(),
                used: line.used,
            })
            .collect()
    }

    /// The handle of a stream.
    pub(super) fn handle(&self, line: LineId) -> Option<H> {
        self.lines.get(&line).map(|line| line.handle.clone())
    }
}

#[cfg(test)]
pub(super) mod tests;
