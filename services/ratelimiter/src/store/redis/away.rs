//! What rules do while Redis is away.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use crate::{
    gcra::Standing,
    rules::{Counter, WhenAway},
    store::{Check, Decision, Refusal, memory::MemoryStore},
};

/// What a caller refused by a `closed` rule is told to wait: Redis is tried several times a second.
pub const CLOSED_RETRY: Duration = Duration::from_secs(1);

/// Decides by what each rule declares.
#[derive(Debug)]
pub(super) struct Away {
    local: Arc<MemoryStore>,
    replicas: Arc<AtomicU32>,
}

impl Away {
    /// `replicas` is how many there were when Redis was last heard of.
    pub(super) fn new(local: Arc<MemoryStore>, replicas: Arc<AtomicU32>) -> Self {
        Self { local, replicas }
    }

    /// A rule that is `closed` refuses the check whatever the others say, and then none of them is charged.
    pub(super) fn decide(&self, check: &Check<'_>) -> Decision {
        let does = |counter: &Counter<'_>| counter.rule.when_away();
        let closed = check.counters.iter().position(|counter| does(counter) == WhenAway::Closed);
        let shared: Vec<usize> = (0..check.counters.len())
            .filter(|index| does(&check.counters[*index]) == WhenAway::LocalShare)
            .collect();
        let part = |index: &usize| {
            let counter = check.counters[*index].clone();
            if closed.is_some() { Counter { hits: 0, ..counter } } else { counter }
        };
        let local = Check { tenant: check.tenant, counters: shared.iter().map(part).collect() };
        let replicas = self.replicas.load(Ordering::Relaxed);
        let decided =
            self.local.decide_by(&local, |counter| counter.rule.quota().share(replicas, counter.hits));

        let mut standings: Vec<Standing> = check.counters.iter().map(|counter| alone(counter)).collect();
        for (index, standing) in shared.iter().zip(decided.standings) {
            standings[*index] = standing;
        }
        let refusal = match closed {
            Some(counter) => Some(Refusal { counter, retry_after: CLOSED_RETRY }),
            None => decided.refusal.map(|refusal| Refusal { counter: shared[refusal.counter], ..refusal }),
        };
        Decision { refusal, standings, degraded: true }
    }
}

/// How a counter stands that nobody counts.
fn alone(counter: &Counter<'_>) -> Standing {
    match counter.rule.when_away() {
        WhenAway::Closed => Standing { remaining: 0, reset_after: CLOSED_RETRY },
        _ => Standing { remaining: counter.rule.quota().burst(), reset_after: Duration::ZERO },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::rules::RuleSet;

    fn rules() -> RuleSet {
        let rule = |name: &str, burst: u64, away: &str| {
            format!(
                "[[rule]]\nname = \"{name}\"\nkeys = [\"{name}\"]\nlimit = {burst}\nper = \"1h\"\nburst = {burst}\n\
                 when_away = \"{away}\"\n"
            )
        };
        let text = [rule("open", 1, "open"), rule("closed", 9, "closed"), rule("share", 9, "local_share")];
        RuleSet::parse("test", &text.concat()).unwrap()
    }

    fn ask(away: &Away, rules: &RuleSet, names: &[&str]) -> Decision {
        let keys: HashMap<_, _> = names.iter().map(|name| ((*name).to_owned(), "x".to_owned())).collect();
        away.decide(&Check { tenant: "", counters: rules.applying("", &keys, 1) })
    }

    #[tokio::test(start_paused = true)]
    async fn each_rule_does_what_it_declares() {
        let rules = rules();
        let away = Away::new(Arc::new(MemoryStore::new(4096)), Arc::new(AtomicU32::new(3)));
        for _ in 0..100 {
            let decision = ask(&away, &rules, &["open"]);
            assert_eq!((decision.refusal, decision.degraded), (None, true));
            let decision = ask(&away, &rules, &["open", "closed", "share"]);
            assert_eq!(decision.refusal, Some(Refusal { counter: 1, retry_after: CLOSED_RETRY }));
            assert_eq!(decision.standings[2].remaining, 3, "a closed rule's refusal charges no other");
        }
        let admitted = (0..100).filter(|_| ask(&away, &rules, &["open", "share"]).refusal.is_none()).count();
        assert_eq!(admitted, 3, "nine an hour among three replicas");
        let refusal = ask(&away, &rules, &["open", "share"]).refusal.unwrap();
        assert_eq!((refusal.counter, refusal.retry_after), (1, Duration::from_secs(1200)));
    }
}
