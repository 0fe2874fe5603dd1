//! What every store must do, as a suite over any store and any clock.
//!
//! A store's own tests call [`run`]. Durations in the rules are whole milliseconds, so that a store with a coarser
//! clock can be exact.

use std::{collections::HashMap, sync::Arc, time::Duration};

use super::{Check, Decision, Store, StoreError};
use crate::{gcra::Standing, rules::RuleSet};

/// A store to be tested, and its time.
pub trait Fixture: Sync {
    /// The store.
    type Store: Store;

    /// A store without any counter.
    fn fresh(&self) -> impl Future<Output = Arc<Self::Store>> + Send;

    /// Lets exactly so much time pass on the store's clock.
    fn wait(&self, time: Duration) -> impl Future<Output = ()> + Send;

    /// The smallest step of the store's clock.
    fn resolution(&self) -> Duration;
}

const RULES: &str = r#"
[[rule]]
name = "user"
keys = ["user"]
limit = 1
per = "5s"
burst = 1

[[rule]]
name = "ip"
keys = ["ip"]
limit = 10
per = "1s"
burst = 3

[[rule]]
name = "twin"
keys = ["twin"]
limit = 1
per = "5s"
burst = 1

[[rule]]
name = "bulk"
keys = ["bulk"]
limit = 100
per = "1h"
burst = 1000
"#;

/// Every test. A clock that is paused, or whose waits are exact, is what `fixture` must have.
///
/// # Panics
/// Where the store does not conform.
pub async fn run<F: Fixture>(fixture: &F) {
    several_rules_are_charged_together_or_not_at_all(fixture).await;
    retry_after_is_exact(fixture).await;
    the_longest_wait_is_named(fixture).await;
    hits_are_charged_at_once(fixture).await;
    idle_counters_are_as_if_never_used(fixture).await;
    counters_are_told_apart(fixture).await;
    no_rule_is_no_limit(fixture).await;
    concurrent_checks_are_counted_exactly(fixture).await;
}

struct Caller<S> {
    rules: RuleSet,
    store: Arc<S>,
}

impl<S: Store> Caller<S> {
    async fn new(fixture: &impl Fixture<Store = S>) -> Self {
        let rules = RuleSet::parse("conformance", RULES).expect("the rules above are valid");
        Self { rules, store: fixture.fresh().await }
    }

    async fn try_ask(&self, tenant: &str, keys: &[(&str, &str)], hits: u32) -> Result<Decision, StoreError> {
        let keys: HashMap<String, String> =
            keys.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let counters = self.rules.applying(tenant, &keys, hits);
        self.store.check(&Check { tenant, counters }).await
    }

    async fn ask(&self, keys: &[(&str, &str)]) -> Decision {
        self.try_ask("", keys, 1).await.expect("decided")
    }

    async fn admitted(&self, keys: &[(&str, &str)]) -> bool {
        self.ask(keys).await.refusal.is_none()
    }
}

async fn several_rules_are_charged_together_or_not_at_all<F: Fixture>(fixture: &F) {
    let caller = Caller::new(fixture).await;
    let both = [("user", "a"), ("ip", "x")];
    let first = caller.ask(&both).await;
    assert_eq!(first.refusal, None);
    let remaining: Vec<u64> = first.standings.iter().map(|standing| standing.remaining).collect();
    assert_eq!(remaining, [0, 2], "both were charged");
    for _ in 0..20 {
        assert!(!caller.admitted(&both).await, "user a has to wait");
    }
    // Had any of the twenty refusals charged the address, it would have no room for two more now.
    assert!(caller.admitted(&[("ip", "x")]).await);
    assert!(caller.admitted(&[("ip", "x")]).await);
    assert!(!caller.admitted(&[("ip", "x")]).await);
    // And the other way: the address refuses, so the user is not charged.
    assert!(!caller.admitted(&[("user", "b"), ("ip", "x")]).await);
    assert!(caller.admitted(&[("user", "b")]).await);
}

async fn retry_after_is_exact<F: Fixture>(fixture: &F) {
    let caller = Caller::new(fixture).await;
    let user = [("user", "a")];
    assert!(caller.admitted(&user).await);
    fixture.wait(Duration::from_millis(1234)).await;
    let refusal = caller.ask(&user).await.refusal.expect("too early");
    assert_eq!(refusal.retry_after, Duration::from_millis(5000 - 1234));
    fixture.wait(refusal.retry_after - fixture.resolution()).await;
    let refusal = caller.ask(&user).await.refusal.expect("still too early");
    assert_eq!(refusal.retry_after, fixture.resolution());
    fixture.wait(fixture.resolution()).await;
    assert!(caller.admitted(&user).await);
}

async fn the_longest_wait_is_named<F: Fixture>(fixture: &F) {
    let caller = Caller::new(fixture).await;
    let both = [("user", "a"), ("ip", "x")];
    for _ in 0..3 {
        caller.ask(&[("ip", "x")]).await;
    }
    let refusal = caller.ask(&both).await.refusal.expect("the address is at its limit");
    assert_eq!((refusal.counter, refusal.retry_after), (1, Duration::from_millis(100)));
    assert!(caller.admitted(&[("user", "a")]).await);
    let refusal = caller.ask(&both).await.refusal.expect("both are at their limit");
    assert_eq!((refusal.counter, refusal.retry_after), (0, Duration::from_secs(5)));
    fixture.wait(refusal.retry_after).await;
    assert!(caller.admitted(&both).await);
    // Charged by one check, two rules alike have the same wait: the first is named.
    let twins = [("twin", "t"), ("user", "t")];
    assert!(caller.admitted(&twins).await);
    let refusal = caller.ask(&twins).await.refusal.expect("both are at their limit");
    assert_eq!(refusal.counter, 0);
}

async fn hits_are_charged_at_once<F: Fixture>(fixture: &F) {
    let caller = Caller::new(fixture).await;
    let ip = [("ip", "x")];
    let error = caller.try_ask("", &ip, 4).await.expect_err("never admissible");
    assert_eq!(error, StoreError::HitsOverBurst { hits: 4, rule: "ip".into(), burst: 3 });
    let decision = caller.try_ask("", &ip, 2).await.expect("decided");
    assert_eq!(decision.refusal, None);
    assert_eq!(decision.standings, [Standing { remaining: 1, reset_after: Duration::from_millis(200) }]);
    let decision = caller.try_ask("", &ip, 2).await.expect("decided");
    assert_eq!(decision.refusal.map(|refusal| refusal.retry_after), Some(Duration::from_millis(100)));
    assert_eq!(decision.standings, [Standing { remaining: 1, reset_after: Duration::from_millis(200) }]);
    assert!(caller.admitted(&ip).await, "one still fits");
    // A check that no wait could make pass charges nothing either, whichever rule it is too much for.
    assert!(caller.try_ask("", &[("user", "a"), ("ip", "y")], 3).await.is_err());
    assert_eq!(caller.try_ask("", &[("ip", "y")], 3).await.expect("decided").refusal, None);
}

async fn idle_counters_are_as_if_never_used<F: Fixture>(fixture: &F) {
    let caller = Caller::new(fixture).await;
    let ip = [("ip", "x")];
    for _ in 0..3 {
        assert!(caller.admitted(&ip).await);
    }
    let reset_after = caller.ask(&ip).await.standings[0].reset_after;
    assert_eq!(reset_after, Duration::from_millis(300));
    fixture.wait(reset_after).await;
    for _ in 0..3 {
        assert!(caller.admitted(&ip).await);
    }
    // Idling for longer saves nothing up.
    fixture.wait(Duration::from_secs(60)).await;
    for remaining in [2, 1, 0] {
        assert_eq!(caller.ask(&ip).await.standings[0].remaining, remaining);
    }
    assert!(!caller.admitted(&ip).await);
}

async fn counters_are_told_apart<F: Fixture>(fixture: &F) {
    let caller = Caller::new(fixture).await;
    let user = [("user", "a")];
    for tenant in ["", "acme", "a", "emca"] {
        assert_eq!(caller.try_ask(tenant, &user, 1).await.expect("decided").refusal, None, "{tenant:?}");
        assert!(caller.try_ask(tenant, &user, 1).await.expect("decided").refusal.is_some(), "{tenant:?}");
    }
    assert!(caller.admitted(&[("user", "b")]).await, "another user");
    assert!(caller.admitted(&[("ip", "a")]).await, "another rule with the same value");
    // Tenant "ac" with user "mea" reads the same as tenant "acme" with user "a" when glued together.
    let glued = caller.try_ask("ac", &[("user", "mea")], 1).await.expect("decided");
    assert_eq!(glued.refusal, None);
}

async fn no_rule_is_no_limit<F: Fixture>(fixture: &F) {
    let caller = Caller::new(fixture).await;
    let decision = caller.try_ask("", &[("device", "d")], u32::MAX).await.expect("decided");
    assert_eq!(decision, Decision::unlimited());
}

/// Many tasks ask at once; the number admitted is exactly the burst. Worth a run of its own on several threads.
///
/// # Panics
/// Where the store admits one too many or too few.
pub async fn concurrent_checks_are_counted_exactly<F: Fixture>(fixture: &F) {
    const TASKS: usize = 16;
    const EACH: usize = 100;
    let caller = Arc::new(Caller::new(fixture).await);
    let tasks: Vec<_> = (0..TASKS)
        .map(|task| {
            let caller = Arc::clone(&caller);
            tokio::spawn(async move {
                let own = format!("user-{task}");
                let mut admitted = 0;
                for _ in 0..EACH {
                    admitted += usize::from(caller.admitted(&[("bulk", "all")]).await);
                    tokio::task::yield_now().await;
                    caller.ask(&[("user", own.as_str()), ("bulk", "other")]).await;
                }
                admitted
            })
        })
        .collect();
    let mut admitted = 0;
    for task in tasks {
        admitted += task.await.expect("no task panics");
    }
    // Of 1,600 asked, the burst of 1,000; the next would come after 36 s.
    assert_eq!(admitted, 1000);
    // Each task's own user passed once, and only then was the shared counter charged.
    assert_eq!(caller.ask(&[("bulk", "other")]).await.standings[0].remaining, 1000 - TASKS as u64 - 1);
}
