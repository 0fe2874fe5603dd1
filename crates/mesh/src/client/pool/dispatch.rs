//! One message on its way: an endpoint, a credit, an answer, and another endpoint when that does not come.

use std::time::Duration;

use sightline_telemetry::child_span;
use tokio::{
    sync::oneshot,
    time::{Instant, sleep, timeout_at},
};
use tonic::Code;

use super::{
    Ask, Lane, Settled, Shared,
    book::{Reply, Ticket},
    flight::{Flight, Granted, landing},
};
use crate::{
    RpcError,
    client::{EndpointId, Outcome, Pick, Picked, call::Nth, meters::Pickup},
    observe::CODES,
    reason,
};

/// How often a message may find that no server has read it: each is a race with a stream's end, so several in a row mean
/// that the service is going away.
const UNREAD: usize = 8;
/// Who waits for a credit looks this often whether an endpoint can be picked after all.
const LOOK: Duration = Duration::from_millis(250);
/// How long a message waits for the budget before it asks again.
const BUDGET_PAUSE: Duration = Duration::from_millis(20);

/// A message until its answer.
pub(super) struct Dispatch<'a, L: Lane, B> {
    shared: &'a Shared<L>,
    ask: Ask,
    build: B,
    /// Where it was sent, without an answer.
    tried: Vec<EndpointId>,
    flying: Vec<Flight<'a, L>>,
    /// Times it was sent to a server that may act on it.
    sent: usize,
    /// Times it turned out that none had read it.
    unread: usize,
    /// The next time is to be paid for.
    owes: bool,
    /// None read it the last time.
    free: bool,
    /// Why it is not answered yet.
    problem: Option<RpcError>,
}

impl<'a, L: Lane, B: Fn(u64) -> L::Outbound> Dispatch<'a, L, B> {
    pub(super) fn new(shared: &'a Shared<L>, ask: Ask, build: B) -> Self {
        let (tried, flying) = (Vec::new(), Vec::with_capacity(1));
        Self {
            shared,
            ask,
            build,
            tried,
            flying,
            sent: 0,
            unread: 0,
            owes: false,
            free: false,
            problem: None,
        }
    }

    /// How the answer counts, and the answer.
    pub(super) async fn run(mut self) -> Result<Settled<L>, RpcError> {
        self.shared.budget().deposit();
        loop {
            if self.flying.is_empty() {
                self.send().await?;
                continue;
            }
            let repeats = self.may_repeat();
            let looks = self.flying.iter().map(|flight| flight.look).filter(|_| repeats).min();
            let wake = looks.map_or(self.ask.deadline.instant(), |at| at.min(self.ask.deadline.instant()));
            match timeout_at(wake, landing(&mut self.flying)).await {
                Ok((index, reply)) => {
                    if let Some(answer) = self.land(index, reply)? {
                        return Ok(answer);
                    }
                }
                Err(_) if self.ask.deadline.passed() => return Err(self.expire()),
                Err(_) => self.hedge(),
            }
        }
    }

    fn service(&self) -> &'static str {
        self.shared.cluster.service()
    }

    fn may_repeat(&self) -> bool {
        self.shared.lane.repeatable() && self.sent < self.shared.options.max_attempts
    }

    fn unavailable(&mut self, why: &str) -> RpcError {
        let service = self.service();
        self.problem.take().unwrap_or_else(|| RpcError::unavailable(format!("{service}: {why}")))
    }

    /// Sends the message for the first time, or again after it was lost.
    async fn send(&mut self) -> Result<(), RpcError> {
        if self.sent >= self.shared.options.max_attempts || self.unread >= UNREAD {
            return Err(self.unavailable("every attempt's stream broke"));
        }
        if self.owes {
            self.pay().await?;
        }
        let (picked, grant) = self.seat().await?;
        // A stream that has ended is not come to again: there is an end to trying.
        if !self.fly(picked, grant) {
            self.free = true;
        }
        Ok(())
    }

    /// Waits until the budget allows one more attempt. When many messages are lost at once they take turns, as long as
    /// there is a replica to take them.
    async fn pay(&mut self) -> Result<(), RpcError> {
        let since = Instant::now();
        while !self.shared.budget().withdraw(Instant::now()) {
            let hopeless = since.elapsed() >= self.shared.options.patience && !self.shared.any_usable();
            if hopeless || Instant::now() + BUDGET_PAUSE > self.ask.deadline.instant() {
                self.shared.meters.broke.increment(1);
                return Err(
                    self.unavailable("the stream broke, and too many messages are sent again already")
                );
            }
            sleep(BUDGET_PAUSE).await;
        }
        self.owes = false;
        self.shared.meters.retries.increment(1);
        Ok(())
    }

    fn pick<'b>(&self, avoid: &'b [EndpointId]) -> Pick<'b> {
        Pick { deadline: self.ask.deadline, key: self.ask.key, avoid }
    }

    /// An endpoint by the cluster's policy and a credit of one of its streams; when it has none, the first credit of any.
    async fn seat(&mut self) -> Result<(Picked, Granted<L>), RpcError> {
        let cluster = &self.shared.cluster;
        let (choice, ready) = cluster.choose(self.pick(&self.tried)).await?;
        let (id, since) = (choice.id(), Instant::now());
        let (wake, woken) = oneshot::channel();
        let ticket = {
            let mut book = self.shared.book();
            if let Some(seated) = book.take(id, since, |_| cluster.begin(&choice, ready)) {
                return Ok(seated);
            }
            book.queue(self.tried.clone(), wake, self.patience(), since)
        };
        self.shared.press(id);
        let Some(ticket) = ticket else {
            cluster.count(Pickup::Full);
            return Err(self.shared.too_many_wait());
        };
        let line = InLine { shared: self.shared, ticket };
        let seated = line.wait(woken, self.pick(&self.tried), since).await?;
        self.shared.meters.credit_wait.record(since.elapsed());
        Ok(seated)
    }

    /// How long it may wait for a credit: half of its time is left for the answer. What a server has already worked on
    /// is not given up for that.
    fn patience(&self) -> Duration {
        let left = self.ask.deadline.remaining();
        if self.tried.is_empty() { left / 2 } else { left }
    }

    /// Puts the message on a stream. `false`: that has ended meanwhile.
    fn fly(&mut self, picked: Picked, mut grant: Granted<L>) -> bool {
        let now = Instant::now();
        // It may have ended since, with or without a word.
        let over = !matches!(grant.reply.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        let span = child_span!("stream.attempt", otel.kind = "client", rpc.system = "grpc");
        let meters = &self.shared.meters;
        self.nth().describe(&span, meters.streams.method(), picked.endpoint().address());
        if over || !grant.handle.send(span.in_scope(|| (self.build)(grant.id))) {
            // Its reader may not know yet: nobody is to come here again.
            let mut book = self.shared.book();
            book.leave(grant.line);
            book.unsent(grant.line, grant.id, now);
            drop(book);
            grant.handle.look();
            return false;
        }
        meters.attempts.increment(1);
        (self.sent, self.free) = (self.sent + 1, false);
        let look = now + self.stalls_after();
        self.flying.push(Flight::new(self.shared, picked, grant, look, span));
        true
    }

    fn nth(&self) -> Nth {
        let hedged = !self.flying.is_empty();
        Nth { previous: self.sent as u32, transparent: self.free && !hedged, hedged }
    }

    /// How long a message sent now may take: half of the caller's time is left for another replica.
    fn stalls_after(&self) -> Duration {
        let half = self.ask.deadline.remaining() / 2;
        self.shared.stall().after().min(half.max(self.shared.options.stall.floor))
    }

    /// What came back for one of the flights. `None`: another may still answer, or the message is to be sent again.
    fn land(
        &mut self,
        index: usize,
        reply: Option<Reply<Settled<L>>>,
    ) -> Result<Option<Settled<L>>, RpcError> {
        let mut flight = self.flying.swap_remove(index);
        flight.landed = true;
        let endpoint = flight.endpoint();
        match reply {
            Some(Reply::Answer((code, answer))) => {
                if !self.flying.is_empty() {
                    flight.win();
                }
                // How fast a server fails says nothing of how long an answer takes.
                let outcome = if code == Code::Ok {
                    self.shared.stall().record(flight.since.elapsed());
                    Outcome::Success
                } else {
                    Outcome::Failure(code)
                };
                flight.end(outcome, CODES[code as usize]);
                self.flying.drain(..).for_each(|mut other| other.lose());
                return Ok(Some((code, answer)));
            }
            Some(Reply::Refused(error)) if error.reason != reason::DRAINING => {
                flight.end(Outcome::Failure(error.code), &error.reason);
                self.tried.push(endpoint);
                if self.flying.is_empty() && !self.may_move() {
                    return Err(error);
                }
                self.problem = Some(error);
            }
            Some(Reply::Refused(_) | Reply::Unread) => {
                flight.end(Outcome::Cancelled, reason::DRAINING);
                self.tried.push(endpoint);
                (self.sent, self.unread) = (self.sent.saturating_sub(1), self.unread + 1);
                self.free = true;
                self.shared.meters.moved("drained");
            }
            None => {
                flight.end(Outcome::Failure(Code::Unavailable), reason::SERVICE_UNAVAILABLE);
                self.tried.push(endpoint);
                if !self.shared.lane.repeatable() {
                    let service = self.service();
                    return Err(RpcError::unavailable(format!(
                        "{service}: the stream broke before the answer"
                    )));
                }
                self.owes = self.flying.is_empty();
                self.shared.meters.moved("broken");
            }
        }
        Ok(None)
    }

    /// Whether a message that was refused for lack of room goes to another replica: there is one, the budget allows it, and
    /// it is not so that the others have no room either.
    fn may_move(&self) -> bool {
        let other = || {
            let choice = self.shared.cluster.peek(self.pick(&self.tried));
            choice.is_some_and(|choice| !self.tried.contains(&choice.id()))
        };
        let moves = self.sent < self.shared.options.max_attempts
            && !self.shared.sheds()
            && other()
            && self.shared.budget().withdraw(Instant::now());
        if moves {
            self.shared.meters.retries.increment(1);
            self.shared.meters.moved("refused");
        }
        moves
    }

    /// A message stalls: another replica that has a credit gets it too, if the budget allows it. Who answers first wins. Not
    /// while the service sheds: there everything waits, and the second answer costs somebody else theirs.
    fn hedge(&mut self) {
        let now = Instant::now();
        let again = now + self.stalls_after();
        for flight in self.flying.iter_mut().filter(|flight| flight.look <= now) {
            (flight.stalled, flight.look) = (true, again);
        }
        if self.shared.sheds() {
            return;
        }
        let mut avoid = self.tried.clone();
        avoid.extend(self.flying.iter().map(|flight| flight.endpoint()));
        let cluster = &self.shared.cluster;
        let Some(choice) = cluster.peek(self.pick(&avoid)) else { return };
        let id = choice.id();
        if avoid.contains(&id) || !self.shared.budget().withdraw(now) {
            return;
        }
        let seated = self.shared.book().take(id, now, |_| cluster.begin(&choice, Pickup::AtOnce));
        let sent = seated.is_some_and(|(picked, grant)| self.fly(picked, grant));
        if sent {
            self.shared.meters.hedges.increment(1);
        } else {
            self.shared.budget().give_back();
            self.shared.press(id);
        }
    }

    /// The deadline has passed. An endpoint that had time enough failed.
    fn expire(&mut self) -> RpcError {
        let after = self.shared.stall().after();
        for mut flight in self.flying.drain(..) {
            flight.stalled |= flight.since.elapsed() >= after;
            flight.expire();
        }
        RpcError::deadline(self.service())
    }
}

/// A place in the line for a credit, given up when it is dropped.
struct InLine<'a, L: Lane> {
    shared: &'a Shared<L>,
    ticket: Ticket,
}

impl<L: Lane> InLine<'_, L> {
    /// Waits for a credit until the deadline, or for the patience while no stream is open at all.
    async fn wait(
        self,
        mut woken: oneshot::Receiver<()>,
        pick: Pick<'_>,
        since: Instant,
    ) -> Result<(Picked, Granted<L>), RpcError> {
        let shared = self.shared;
        let cluster = &shared.cluster;
        loop {
            let look = pick.deadline.instant().min(Instant::now() + LOOK);
            if timeout_at(look, &mut woken).await.is_ok() {
                let seated = shared.book().claim(self.ticket);
                let seated = seated.ok_or_else(|| RpcError::internal("a place in line went astray"))?;
                cluster.count(if seated.0.is_probe() { Pickup::Probe } else { Pickup::Waited });
                return Ok(seated);
            }
            if pick.deadline.passed() {
                cluster.count(Pickup::TimedOut);
                return Err(RpcError::deadline(&format!("waiting for {}", shared.cluster.service())));
            }
            if since.elapsed() >= shared.options.patience && shared.book().open_lines() == 0 {
                cluster.count(Pickup::TimedOut);
                return Err(shared.no_stream());
            }
            // One that only a choice may use: it is tried again after a failure, or all look bad.
            if let Some(choice) = cluster.peek(pick) {
                let begin = || cluster.begin(&choice, Pickup::Waited);
                if let Some(seated) = shared.book().take(choice.id(), Instant::now(), |_| begin()) {
                    return Ok(seated);
                }
                shared.press(choice.id());
            }
        }
    }
}

impl<L: Lane> Drop for InLine<'_, L> {
    fn drop(&mut self) {
        self.shared.book().give_up(self.ticket, Instant::now());
    }
}
