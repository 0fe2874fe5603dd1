//! What a call inherits from the call it serves: the deadline, and how many extra attempts the whole tree may still take.
//!
//! Three services in a row that each try three times make 27 calls of one. So the first caller gives out a number of
//! extra attempts for everything that its call sets off. They are never copied, only moved: a retry or a hedge uses one
//! up; each attempt lends a part of the rest to the server it goes to, in the metadata [`ATTEMPTS_LEFT`]; what that
//! server and those behind it did not use comes back at the end of the answer. Attempts that nobody heard back from stay
//! lost, so the bound holds whatever fails.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use http::{Extensions, HeaderMap, HeaderValue};

use crate::{Deadline, names};

/// The metadata that carries lent attempts, there in the head of a call and back at the end of its answer.
pub const ATTEMPTS_LEFT: &str = "sightline-attempts-left";

/// The extra attempts of a call tree, as far as they are in this process. Clones share them.
#[derive(Debug, Clone)]
pub struct AttemptBudget(Arc<AtomicU32>);

impl AttemptBudget {
    /// So many extra attempts.
    pub fn new(attempts: u32) -> Self {
        Self(Arc::new(AtomicU32::new(attempts)))
    }

    /// How many are left here.
    pub fn left(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    /// Uses one up.
    pub fn take(&self) -> bool {
        self.change(|left| left.checked_sub(1)) > 0
    }

    /// Lends a part to a server: half of what is beyond `keep`, so that calls that are made at the same time all have
    /// some.
    pub(crate) fn lend(&self, keep: u32) -> Loan {
        let part = |left: u32| left.saturating_sub(keep).div_ceil(2);
        let left = self.change(|left| Some(left - part(left)));
        Loan { budget: self.clone(), amount: part(left) }
    }

    /// Changes the number if `change` says how; what it was before, 0 if it stays.
    fn change(&self, change: impl Fn(u32) -> Option<u32>) -> u32 {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, change).unwrap_or(0)
    }
}

/// Attempts that are with a server. Dropped, they stay lost.
#[derive(Debug)]
pub(crate) struct Loan {
    budget: AttemptBudget,
    amount: u32,
}

impl Loan {
    pub(crate) fn header(&self) -> HeaderValue {
        HeaderValue::from(self.amount)
    }

    /// Takes back what the server says it has not used. One that knows nothing of budgets has used none: it cannot have
    /// repeated anything in our name.
    pub(crate) fn settle(self, headers: &HeaderMap) {
        let unused = read(headers).map_or(self.amount, |unused| unused.min(self.amount));
        self.return_unused(unused);
    }

    /// The attempt never reached a server.
    pub(crate) fn unsent(self) {
        let unused = self.amount;
        self.return_unused(unused);
    }

    fn return_unused(self, unused: u32) {
        self.budget.0.fetch_add(unused, Ordering::Relaxed);
    }
}

/// What [`ATTEMPTS_LEFT`] says.
pub(crate) fn read(headers: &HeaderMap) -> Option<u32> {
    headers.get(&names::ATTEMPTS_LEFT)?.to_str().ok()?.parse().ok()
}

/// What the calls made on behalf of one call have in common. A server's [`super::Inherit`] layer makes it; the clients
/// find it in the task ([`CallContext::current`]) or in the extensions of the request they are given.
///
/// Tasks that a handler spawns do not inherit the task's context: give it to them by [`CallContext::scope`].
#[derive(Debug, Clone)]
pub struct CallContext {
    deadline: Option<Deadline>,
    attempts: AttemptBudget,
}

tokio::task_local! {
    static CURRENT: CallContext;
}

impl CallContext {
    /// For the first call of a tree.
    pub fn new(deadline: Option<Deadline>, attempts: u32) -> Self {
        Self { deadline, attempts: AttemptBudget::new(attempts) }
    }

    /// That of the call which this task serves.
    pub fn current() -> Option<Self> {
        CURRENT.try_with(Clone::clone).ok()
    }

    /// That of the call in whose request `extensions` are, else that of this task.
    pub fn of(extensions: &Extensions) -> Option<Self> {
        extensions.get::<Self>().cloned().or_else(Self::current)
    }

    /// When nobody waits any longer for what is done in this context.
    pub fn deadline(&self) -> Option<Deadline> {
        self.deadline
    }

    /// The extra attempts left to everything in this context.
    pub fn attempts(&self) -> &AttemptBudget {
        &self.attempts
    }

    /// Runs `work` in this context.
    pub fn scope<F: Future>(self, work: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(self, work)
    }

    /// Runs `work` in this context.
    pub fn sync_scope<T>(&self, work: impl FnOnce() -> T) -> T {
        CURRENT.sync_scope(self.clone(), work)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn returned(attempts: u32) -> HeaderMap {
        HeaderMap::from_iter([(http::HeaderName::from_static(ATTEMPTS_LEFT), attempts.into())])
    }

    #[test]
    fn attempts_are_moved_and_never_copied() {
        let budget = AttemptBudget::new(8);
        let first = budget.lend(2);
        assert_eq!((first.amount, budget.left()), (3, 5));
        let second = budget.lend(2);
        assert_eq!((second.amount, budget.left()), (2, 3));
        assert!(budget.take());
        first.settle(&returned(1));
        assert_eq!(budget.left(), 3);
        second.settle(&returned(1000));
        assert_eq!(budget.left(), 5, "no more than was lent comes back");
        drop(budget.lend(0));
        assert_eq!(budget.left(), 2, "what nobody heard back from is lost");
        budget.lend(0).unsent();
        budget.lend(0).settle(&HeaderMap::new());
        assert_eq!(budget.left(), 2);
        assert!(budget.take() && budget.take() && !budget.take());
        assert_eq!(budget.lend(0).amount, 0);
    }

    #[test]
    fn the_last_attempt_is_lent_when_it_is_not_needed_here() {
        assert_eq!(AttemptBudget::new(1).lend(0).amount, 1);
        assert_eq!(AttemptBudget::new(2).lend(2).amount, 0);
        assert_eq!(AttemptBudget::new(1).lend(2).amount, 0);
    }

    #[tokio::test]
    async fn a_context_is_found_in_the_task_and_in_a_request() {
        assert!(CallContext::current().is_none());
        let context = CallContext::new(None, 4);
        context
            .clone()
            .scope(async {
                let current = CallContext::current().unwrap();
                assert!(current.attempts().take());
                let mut extensions = Extensions::new();
                assert_eq!(CallContext::of(&extensions).unwrap().attempts().left(), 3);
                extensions.insert(CallContext::new(None, 9));
                assert_eq!(CallContext::of(&extensions).unwrap().attempts().left(), 9);
                assert!(tokio::spawn(async { CallContext::current().is_none() }).await.unwrap());
            })
            .await;
        assert_eq!(context.attempts().left(), 3, "one budget");
    }
}
