//! A call from its first attempt to the beginning of its answer.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll},
};

use http::Response;
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::{Code, Status, body::Body};

use super::{
    answer::Answer,
    attempt::{Attempted, Call, Flight, within},
    observe::{Nth, won},
    progress::{Next, Pause, Progress},
    verdict::Verdict,
};
use crate::{RpcError, observe::CODES};

/// Makes the call.
pub(crate) async fn run(call: Call) -> Result<Response<Body>, Status> {
    let raced = match call.shared.admit() {
        Ok(()) => Race::new(&call).run().await,
        Err(error) => Raced::Ended(error.code, Err(error.into())),
    };
    match raced {
        Raced::Begun(response, flight, timer) => {
            call.replay.commit();
            Ok(Answer::follow(response, flight, call, timer))
        }
        Raced::Ended(code, answer) => {
            call.record.end(code);
            answer
        }
    }
}

type Answered = Result<Response<Body>, Status>;

enum Raced {
    Begun(Response<Body>, Flight, Timer),
    Ended(Code, Answered),
}

/// The attempts that are under way, one as a rule, and those to come.
struct Race<'a> {
    call: &'a Call,
    progress: Progress<'a>,
    running: Vec<Pin<Box<dyn Future<Output = Attempted> + Send + 'a>>>,
    timer: Timer,
    hedge_at: Option<Instant>,
    retry_at: Option<Instant>,
    /// The next retry costs nothing: the attempt before it reached nobody.
    free: bool,
    /// How the last attempt ended, while another may do better.
    last: Option<(Code, Answered)>,
}

impl<'a> Race<'a> {
    fn new(call: &'a Call) -> Self {
        Self {
            call,
            progress: Progress::new(&call.method.policy),
            running: Vec::with_capacity(1),
            timer: Timer(None),
            hedge_at: None,
            retry_at: None,
            free: false,
            last: None,
        }
    }

    async fn run(mut self) -> Raced {
        if self.call.deadline.is_some_and(|deadline| deadline.passed()) {
            return self.expired();
        }
        self.begin(false);
        self.hedge_at = self.progress.hedge_at(Instant::now());
        loop {
            match poll_fn(|context| self.poll(context)).await {
                Some(Attempted::Begun(response, flight)) => {
                    if !self.running.is_empty() {
                        won(flight.record.span());
                    }
                    // The losers are dropped, which resets their streams.
                    return Raced::Begun(response, flight, self.timer);
                }
                Some(Attempted::Ended(verdict, answer)) => {
                    if let Some((code, answer)) = self.after(&verdict, answer) {
                        return Raced::Ended(code, answer);
                    }
                }
                None if self.call.deadline.is_some_and(|deadline| deadline.passed()) => {
                    return self.expired();
                }
                None => self.due(Instant::now()),
            }
        }
    }

    fn expired(&self) -> Raced {
        let service = self.call.shared.cluster.service();
        let stage = match &self.last {
            None => format!("calling {service}"),
            Some((code, _)) => format!("calling {service} again, after {}", CODES[*code as usize]),
        };
        Raced::Ended(Code::DeadlineExceeded, Err(RpcError::deadline(&stage).into()))
    }

    fn begin(&mut self, hedged: bool) {
        let (call, previous) = (self.call, self.progress.begin());
        let transparent = !hedged && std::mem::take(&mut self.free);
        self.running.push(Box::pin(call.attempt(Nth { previous, transparent, hedged })));
    }

    /// How an attempt went, or nothing when a pause or the deadline has passed.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Option<Attempted>> {
        for at in 0..self.running.len() {
            if let Poll::Ready(attempted) = self.running[at].as_mut().poll(context) {
                drop(self.running.swap_remove(at));
                return Poll::Ready(Some(attempted));
            }
        }
        let deadline = self.call.deadline.map(|deadline| deadline.instant());
        let next = [deadline, self.hedge_at, self.retry_at].into_iter().flatten().min();
        self.timer.poll_at(next, context).map(|()| None)
    }

    /// A pause is over.
    fn due(&mut self, now: Instant) {
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            self.begin(false);
        }
        if self.hedge_at.is_some_and(|at| at <= now) {
            self.hedge_at = None;
            if self.retry_at.is_none() && self.call.replay.is_complete() && self.call.pay() {
                self.call.shared.counters.hedges.increment(1);
                self.begin(true);
                self.hedge_at = self.progress.hedge_at(now);
            }
        }
    }

    /// What follows the end of an attempt: the call's end, or nothing yet.
    fn after(&mut self, verdict: &Verdict, answer: Answered) -> Option<(Code, Answered)> {
        let next = self.progress.after(verdict);
        if !self.progress.may_repeat() {
            self.hedge_at = None;
        }
        let replayable = self.call.replay.is_whole();
        let at = match next {
            Next::End => return Some((verdict.code, answer)),
            Next::Enough => None,
            // Another attempt is waited for already, or there is nothing left to send in one.
            _ if self.retry_at.is_some() || !replayable => None,
            Next::Free(pause) => {
                self.free = true;
                self.pause(pause)
            }
            Next::Paid(pause) => self.pause(pause).filter(|_| self.call.pay()),
        };
        if let Some(at) = at {
            self.call.shared.counters.retries.increment(1);
            if at <= Instant::now() {
                self.begin(false);
            } else {
                self.retry_at = Some(at);
            }
        }
        if self.running.is_empty() && self.retry_at.is_none() {
            return Some((verdict.code, answer));
        }
        self.last = Some((verdict.code, answer));
        None
    }

    /// When the next attempt begins; never if nobody would wait for it.
    fn pause(&self, pause: Pause) -> Option<Instant> {
        let shared = &self.call.shared;
        let delay = match pause {
            Pause::None => return Some(Instant::now()),
            Pause::Asked(delay) => delay,
            Pause::Backoff(retry, least) => shared.pause(retry).max(least),
        };
        within(delay, self.call.deadline)
    }
}

/// A sleep that is made when it is first needed, and then moved.
pub(crate) struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Ready from `at` on; never without it.
    pub(crate) fn poll_at(&mut self, at: Option<Instant>, context: &mut Context<'_>) -> Poll<()> {
        let Some(at) = at else { return Poll::Pending };
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(at)));
        if sleep.deadline() != at {
            sleep.as_mut().reset(at);
        }
        sleep.as_mut().poll(context)
    }
}
