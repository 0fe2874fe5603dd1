//! What a generated client takes to call a service, whichever of its replicas answers.
//!
//! A [`Channel`] adds to [`Cluster::pick`] what belongs to a call: its deadline to the end of the answer, retries and
//! hedges within budgets, throttling while the service sheds, spans and metrics. What may be done with which method is
//! said in one table, [`MethodPolicies`].

use std::{
    collections::HashMap,
    fmt,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, HeaderValue, Request, Response, header::USER_AGENT};
use serde::Serialize;
use tokio::time::Instant;
use tonic::{Code, Status, body::Body};
use tower::Service;

use super::{
    Cluster,
    balance::ring_hash::fnv1a,
    call::{
        AttemptBudget, Backoff, Call, CallContext, CallRecord, Counters, Kept, Method, MethodPolicies,
        Replay, RetryBudget, RetryBudgetOptions, Throttle, ThrottleOptions, run,
    },
    dice::Dice,
};
use crate::{
    Deadline, RpcError,
    names::{PREVIOUS_ATTEMPTS, TRACEPARENT},
    reason,
};

/// How the calls to one service are made.
#[derive(Debug, Clone, Copy)]
pub struct CallOptions {
    /// Extra attempts as a share of calls.
    pub budget: RetryBudgetOptions,
    /// Pauses between attempts.
    pub backoff: Backoff,
    /// When calls are held back because the service sheds.
    pub throttle: ThrottleOptions,
    /// How many extra attempts a call that begins here may cause in all services together: 8. One that continues another
    /// call has what that one left it.
    pub tree_attempts: u32,
    /// How much of the requests of all calls under way is kept for another attempt: 16 MiB. What does not fit is sent
    /// once.
    pub replay_bytes: usize,
    /// Where random choices start: the same seed and the same events give the same choices. `None` in production.
    pub seed: Option<u64>,
}

impl Default for CallOptions {
    fn default() -> Self {
        Self {
            budget: RetryBudgetOptions::default(),
            backoff: Backoff::default(),
            throttle: ThrottleOptions::default(),
            tree_attempts: 8,
            replay_bytes: 16 << 20,
            seed: None,
        }
    }
}

/// In a request's extensions: calls with the same key go to the same replica, where the cluster balances by `ring_hash`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RouteKey(pub u64);

impl RouteKey {
    /// That of what these names stand for together, for instance a tenant and one of its users. Every process and version
    /// makes the same of them, so that all clients agree on the replica.
    pub fn of(names: &[&str]) -> Self {
        /// Ends a name: no byte of UTF-8.
        const END: u8 = 0xff;
        let bytes = names.iter().flat_map(|name| name.as_bytes().iter().chain([&END]));
        Self(fnv1a(bytes))
    }
}

/// What a call is told that was held back may be tried again after: a guess, as the service said nothing of this one.
const THROTTLED_FOR: Duration = Duration::from_secs(1);

/// Calls to a service: what generated clients take. Cheap to clone; clones share budgets.
#[derive(Clone)]
pub struct Channel {
    shared: Arc<Shared>,
}

/// What all calls to a service share.
pub(super) struct Shared {
    pub(super) cluster: Cluster,
    pub(super) counters: Counters,
    methods: HashMap<String, Arc<Method>>,
    other: Arc<Method>,
    options: CallOptions,
    /// In every call that does not say otherwise.
    headers: HeaderMap,
    kept: Arc<Kept>,
    budget: Mutex<RetryBudget>,
    throttle: Mutex<Throttle>,
    dice: Dice,
}

impl fmt::Debug for Channel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Channel({:?})", self.shared.cluster)
    }
}

impl Channel {
    /// Calls to `cluster` by the rules of `policies`.
    pub fn new(cluster: Cluster, policies: &MethodPolicies, options: CallOptions) -> Self {
        let (service, now) = (cluster.service(), Instant::now());
        let method = |path: &str, policy| Arc::new(Method::new(service, path, policy));
        let methods =
            policies.iter().map(|(path, policy)| (path.to_owned(), method(path, *policy))).collect();
        let mut headers = cluster.request(()).into_parts().0.into_headers();
        // That of whoever makes the channel, not of a call.
        headers.remove(&TRACEPARENT);
        headers.insert(
            USER_AGENT,
            HeaderValue::from_static(concat!("sightline-mesh/", env!("CARGO_PKG_VERSION"))),
        );
        let shared = Shared {
            counters: Counters::new(service),
            methods,
            other: method("other", *policies.get("other")),
            headers,
            kept: Kept::new(options.replay_bytes),
            budget: Mutex::new(RetryBudget::new(options.budget, now)),
            throttle: Mutex::new(Throttle::new(options.throttle, now)),
            dice: Dice::new(options.seed),
            cluster,
            options,
        };
        Self { shared: Arc::new(shared) }
    }

    /// The service's replicas.
    pub fn cluster(&self) -> &Cluster {
        &self.shared.cluster
    }

    /// How the budgets are now, for `mesh top`.
    pub fn snapshot(&self) -> CallSnapshot {
        CallSnapshot {
            service: self.shared.cluster.service(),
            retry_tokens: lock(&self.shared.budget).tokens(),
            throttle_probability: lock(&self.shared.throttle).probability(Instant::now()),
        }
    }
}

/// The budgets of a channel at one moment.
#[derive(Debug, Clone, Serialize)]
pub struct CallSnapshot {
    /// The service's name.
    pub service: &'static str,
    /// Extra attempts saved up.
    pub retry_tokens: f64,
    /// The share of calls that is held back because the service sheds.
    pub throttle_probability: f64,
}

impl Service<Request<Body>> for Channel {
    type Response = Response<Body>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        // Waiting belongs to the call, where its deadline bounds it.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(run(Shared::begin(&self.shared, request)))
    }
}

impl Shared {
    fn begin(shared: &Arc<Self>, request: Request<Body>) -> Call {
        let (head, body) = request.into_parts();
        let path = head.uri.path();
        let method = Arc::clone(shared.methods.get(path).unwrap_or(&shared.other));
        let record = CallRecord::new(Arc::clone(&method), path);
        let context = CallContext::of(&head.extensions);
        let asked = Deadline::timeout_in(&head.headers).or(method.policy.timeout).map(Deadline::after);
        let inherited = context.as_ref().and_then(CallContext::deadline);
        let attempts = match &context {
            Some(context) => context.attempts().clone(),
            None => AttemptBudget::new(shared.options.tree_attempts),
        };
        let mut headers = head.headers;
        // Of a call that is passed on with its metadata.
        headers.remove(&PREVIOUS_ATTEMPTS);
        for (name, value) in &shared.headers {
            if !headers.contains_key(name) {
                headers.append(name, value.clone());
            }
        }
        Call {
            replay: Replay::new(body, method.policy.replay_bytes, &shared.kept),
            shared: Arc::clone(shared),
            method,
            uri: head.uri,
            headers,
            deadline: [asked, inherited].into_iter().flatten().min(),
            attempts,
            key: head.extensions.get::<RouteKey>().map(|key| key.0),
            tried: Mutex::default(),
            record,
        }
    }

    /// Whether a call may be sent, or is held back while the service sheds.
    pub(super) fn admit(&self) -> Result<(), RpcError> {
        if self.holds_back() {
            let service = self.cluster.service();
            let message = format!("{service} sheds calls; this one was held back and not sent");
            let error = RpcError::new(Code::ResourceExhausted, reason::THROTTLED, message);
            return Err(error.retry_after(THROTTLED_FOR));
        }
        lock(&self.budget).deposit();
        Ok(())
    }

    fn holds_back(&self) -> bool {
        let now = Instant::now();
        let probability = lock(&self.throttle).probability(now);
        if probability <= self.dice.fraction() {
            return false;
        }
        lock(&self.throttle).rejected(now);
        self.counters.throttled.increment(1);
        true
    }

    /// The service answered an attempt.
    pub(super) fn answered(&self, shed: bool) {
        lock(&self.throttle).answered(shed, Instant::now());
    }

    /// The pause before a retry.
    pub(super) fn pause(&self, retry: u32) -> Duration {
        self.options.backoff.pause(retry, self.dice.fraction())
    }
}

impl Call {
    /// Takes one attempt out of the service's and the tree's budget.
    pub(super) fn pay(&self) -> bool {
        let shared = &self.shared;
        if shared.holds_back() {
            return false;
        }
        let paid = lock(&shared.budget).withdraw(Instant::now());
        if paid && self.attempts.take() {
            return true;
        }
        if paid {
            lock(&shared.budget).give_back();
        }
        shared.counters.exhausted.increment(1);
        false
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    of.lock().expect("no holder panics")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_key_is_the_same_everywhere_and_tells_names_apart() {
        assert_eq!(
            RouteKey::of(&["a"]),
            RouteKey(0x089b_c907_b544_c769),
            "as FNV-1a gives it for a and 0xff"
        );
        assert_ne!(RouteKey::of(&["ab", "c"]), RouteKey::of(&["a", "bc"]));
        assert_ne!(RouteKey::of(&["", "a"]), RouteKey::of(&["a", ""]));
    }
}
