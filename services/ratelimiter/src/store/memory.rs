//! Counters in this process's memory.
//!
//! - **Identity.** A counter is kept under a 128-bit keyed hash of rule, tenant and values, seeded at start: no user
//!   id stays in memory, an entry's size does not depend on what callers send, and nobody outside can aim at a
//!   collision. Among a million counters two meet with a probability of about 10⁻²⁷.
//! - **Atomicity.** The shards that a check needs are locked in ascending order (so two checks cannot wait for each
//!   other), then the clock is read, all counters are looked at, and only when all have room are all charged.
//! - **Bound.** At most `max_keys` counters. A counter whose theoretical arrival time has passed is as if never used
//!   and is forgotten by the sweep, a few at a time. When a shard is full, the counter nearest to that state makes
//!   room, since forgetting it gives away the least; in that case its caller may get up to a burst early.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap, binary_heap::PeekMut},
    hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use metrics::Counter as Metric;
use tokio::time::{Instant, MissedTickBehavior};

use super::{Check, Decision, Refusal, Store, StoreError};
use crate::{
    events,
    gcra::{Outcome, OverBurst, Quota, Tick},
    rules::Counter,
};

/// Locks: enough that checks on all cores seldom wait for each other, and one bit each in a `u64`.
pub const SHARDS: usize = 64;
/// Entries that one step of the sweep, or making room, may look at: a lock is held for microseconds.
const STEP: usize = 64;

/// The name of a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    place: u64,
    slot: u64,
}

impl Key {
    fn shard(self) -> usize {
        usize::try_from(self.place % SHARDS as u64).expect("less than 64")
    }
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.slot);
    }
}

/// A [`Key`] is a hash already.
#[derive(Default)]
struct Unhashed(u64);

impl Hasher for Unhashed {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("a key writes one u64");
    }
    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}

/// Some of the counters, each with its theoretical arrival time.
///
/// `expiries` has exactly one entry per counter, with the time as it was at some point: a charge moves only the map's. Times
/// only grow, so an entry that agrees with the map is truly the least, and one that does not is corrected when it
/// comes up.
#[derive(Default)]
struct Shard {
    tats: HashMap<Key, Tick, BuildHasherDefault<Unhashed>>,
    expiries: BinaryHeap<Reverse<(Tick, Key)>>,
}

impl Shard {
    /// Sets a counter; true when a counter still in use was forgotten to make room.
    fn charge(&mut self, key: Key, tat: Tick, now: Tick, capacity: usize) -> bool {
        if let Some(known) = self.tats.get_mut(&key) {
            *known = tat;
            return false;
        }
        let forgot = self.tats.len() >= capacity && self.forget_nearest() > Some(now);
        self.tats.insert(key, tat);
        self.expiries.push(Reverse((tat, key)));
        forgot
    }

    /// Forgets the counter nearest to being as if never used, and says when it would have been. Should more than
    /// [`STEP`] entries be out of date, it takes the best of what it saw, so that nobody waits long for the lock.
    fn forget_nearest(&mut self) -> Option<Tick> {
        for _ in 0..STEP {
            if !self.correct_top() {
                break;
            }
        }
        let Reverse((_, key)) = self.expiries.pop()?;
        self.tats.remove(&key)
    }

    /// Brings the entry on top up to date; true when it was not.
    fn correct_top(&mut self) -> bool {
        let Some(mut top) = self.expiries.peek_mut() else { return false };
        let Reverse((recorded, key)) = *top;
        let tat = self.tats.get(&key).copied().unwrap_or(recorded);
        let stale = tat != recorded;
        if stale {
            *top = Reverse((tat, key));
        }
        stale
    }

    /// Forgets counters that are as if never used; true when it stopped early and should be called again.
    fn sweep(&mut self, now: Tick) -> bool {
        for _ in 0..STEP {
            match self.expiries.peek() {
                Some(Reverse((recorded, _))) if *recorded <= now => {}
                _ => return false,
            }
            if self.correct_top() {
                continue;
            }
            if let Some(top) = self.expiries.peek_mut() {
                let Reverse((_, key)) = PeekMut::pop(top);
                self.tats.remove(&key);
            }
        }
        true
    }
}

/// The store of a single process.
pub struct MemoryStore {
    shards: Vec<Mutex<Shard>>,
    seed: RandomState,
    origin: Instant,
    capacity: usize,
    evicted: Metric,
}

impl std::fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemoryStore").field("keys", &self.len()).finish_non_exhaustive()
    }
}

impl MemoryStore {
    /// An empty store of at most `max_keys` counters, divided evenly among the shards (at least one each).
    pub fn new(max_keys: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            seed: RandomState::new(),
            origin: Instant::now(),
            capacity: (max_keys / SHARDS).max(1),
            evicted: events::evicted(),
        }
    }

    /// Counters kept now.
    pub fn len(&self) -> usize {
        (0..SHARDS).map(|shard| self.lock(shard).tats.len()).sum()
    }

    /// Whether no counter is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Decides without waiting for anything but the shards' locks; what [`Store::check`] does.
    ///
    /// # Errors
    /// [`StoreError::HitsOverBurst`].
    pub fn decide(&self, check: &Check<'_>) -> Result<Decision, StoreError> {
        check.fits()?;
        Ok(self.decide_by(check, |counter| *counter.rule.quota()))
    }

    /// The same by other quotas than the rules' own, none of which may be less than a counter's hits.
    pub(crate) fn decide_by(&self, check: &Check<'_>, quota: impl Fn(&Counter<'_>) -> Quota) -> Decision {
        let keys: Vec<Key> = check.counters.iter().map(|counter| self.key(check.tenant, counter)).collect();
        let quotas: Vec<Quota> = check.counters.iter().map(quota).collect();
        let mut shards = self.lock_all(&keys);
        let now = self.now();

        let mut refusal: Option<Refusal> = None;
        // Of each counter: where it stands, and where it will when charged.
        let mut tats: Vec<(Tick, Tick)> = Vec::with_capacity(keys.len());
        for (index, (counter, key)) in check.counters.iter().zip(&keys).enumerate() {
            let tat = held(&mut shards, *key).tats.get(key).copied().unwrap_or_default();
            let charged = match quotas[index].decide(tat, now, counter.hits) {
                Ok(Outcome::Admitted(charged)) => charged,
                Ok(Outcome::Refused(retry_after)) => {
                    if refusal.is_none_or(|worst| retry_after > worst.retry_after) {
                        refusal = Some(Refusal { counter: index, retry_after });
                    }
                    tat
                }
                Err(OverBurst) => unreachable!("whoever asks has compared hits and bursts"),
            };
            tats.push((tat, charged));
        }

        let mut standings = Vec::with_capacity(keys.len());
        for (index, (counter, key)) in check.counters.iter().zip(&keys).enumerate() {
            let (tat, charged) = tats[index];
            let after = if refusal.is_some() { tat } else { charged };
            let charges = refusal.is_none() && counter.hits > 0;
            if charges && held(&mut shards, *key).charge(*key, charged, now, self.capacity) {
                self.evicted.increment(1);
            }
            standings.push(quotas[index].standing(after, now));
        }
        Decision { refusal, standings, degraded: false }
    }

    /// Forgets all counters that are as if never used, letting others run between steps. Returns how many remain.
    pub async fn sweep(&self) -> usize {
        let mut remaining = 0;
        for shard in 0..SHARDS {
            loop {
                let (again, len) = {
                    let mut shard = self.lock(shard);
                    (shard.sweep(self.now()), shard.tats.len())
                };
                if !again {
                    remaining += len;
                    break;
                }
                tokio::task::yield_now().await;
            }
            tokio::task::yield_now().await;
        }
        remaining
    }

    /// Sweeps `every` so often, and tells the metrics how many counters remain, for as long as anybody else holds the
    /// store.
    pub async fn keep_swept(self: Arc<Self>, every: Duration) {
        let store = Arc::downgrade(&self);
        drop(self);
        let mut ticks = tokio::time::interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let Some(store) = store.upgrade() else { return };
            events::keys(store.sweep().await);
        }
    }

    fn key(&self, tenant: &str, counter: &Counter<'_>) -> Key {
        let mut hasher = self.seed.build_hasher();
        // A `str` ends its hash with a byte that no text contains, so ("a", "bc") and ("ab", "c") differ.
        (counter.rule.name(), tenant).hash(&mut hasher);
        counter.values.iter().for_each(|value| value.hash(&mut hasher));
        let place = hasher.finish();
        // SipHash is a pseudo-random function: of one byte more it gives 64 independent bits.
        hasher.write_u8(0);
        Key { place, slot: hasher.finish() }
    }

    fn now(&self) -> Tick {
        let nanoseconds = Instant::now().saturating_duration_since(self.origin).as_nanos();
        Tick(u64::try_from(nanoseconds).expect("a process does not run for 584 years"))
    }

    fn lock(&self, shard: usize) -> MutexGuard<'_, Shard> {
        self.shards[shard].lock().expect("nothing panics while it holds a shard")
    }

    /// Locks the shards of all keys, each once, in ascending order.
    fn lock_all(&self, keys: &[Key]) -> Vec<(usize, MutexGuard<'_, Shard>)> {
        let mut wanted = keys.iter().fold(0_u64, |shards, key| shards | 1 << key.shard());
        let mut held = Vec::with_capacity(keys.len());
        while wanted != 0 {
            let shard = wanted.trailing_zeros() as usize;
            held.push((shard, self.lock(shard)));
            wanted &= wanted - 1;
        }
        held
    }
}

fn held<'a>(shards: &'a mut [(usize, MutexGuard<'_, Shard>)], key: Key) -> &'a mut Shard {
    let wanted = key.shard();
    let held = shards.iter_mut().find(|(shard, _)| *shard == wanted);
    &mut held.expect("the shards of all keys of the check were locked").1
}

impl Store for MemoryStore {
    async fn check(&self, check: &Check<'_>) -> Result<Decision, StoreError> {
        self.decide(check)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{rules::RuleSet, store::conformance};

    struct Paused;

    impl conformance::Fixture for Paused {
        type Store = MemoryStore;

        async fn fresh(&self) -> Arc<MemoryStore> {
            Arc::new(MemoryStore::new(100_000))
        }

        async fn wait(&self, time: Duration) {
            tokio::time::advance(time).await;
        }

        fn resolution(&self) -> Duration {
            Duration::from_nanos(1)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_conforms() {
        conformance::run(&Paused).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn concurrent_checks_are_counted_exactly() {
        conformance::concurrent_checks_are_counted_exactly(&Paused).await;
    }

    fn rules() -> RuleSet {
        let rule = |name, per| {
            format!(
                "[[rule]]\nname = \"{name}\"\nkeys = [\"{name}\"]\nlimit = 1\nper = \"{per}\"\nburst = 1\n"
            )
        };
        RuleSet::parse("test", &(rule("short", "10s") + &rule("long", "1h"))).unwrap()
    }

    fn charge(store: &MemoryStore, rules: &RuleSet, key: &str, user: usize) -> Decision {
        let keys = HashMap::from([(key.to_owned(), user.to_string())]);
        store.decide(&Check { tenant: "", counters: rules.applying("", &keys, 1) }).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_sweep_forgets_the_idle_and_only_those() {
        let (store, rules) = (Arc::new(MemoryStore::new(100_000)), rules());
        for user in 0..20_000 {
            charge(&store, &rules, "short", user);
        }
        for user in 0..1_000 {
            charge(&store, &rules, "long", user);
        }
        assert_eq!(store.sweep().await, 21_000);
        tokio::time::advance(Duration::from_secs(10)).await;
        // Used again: its recorded expiry is out of date and must not be believed.
        assert_eq!(charge(&store, &rules, "short", 7).refusal, None);
        assert_eq!(store.sweep().await, 1_001);
        assert!(charge(&store, &rules, "short", 7).refusal.is_some());
        for shard in &store.shards {
            let shard = shard.lock().unwrap();
            assert_eq!(shard.tats.len(), shard.expiries.len());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_sweeper_works_by_itself_and_ends_with_the_store() {
        let (store, rules) = (Arc::new(MemoryStore::new(100_000)), rules());
        let sweeper = tokio::spawn(Arc::clone(&store).keep_swept(Duration::from_secs(10)));
        charge(&store, &rules, "short", 1);
        tokio::time::sleep(Duration::from_secs(21)).await;
        assert!(store.is_empty());
        drop(store);
        tokio::time::timeout(Duration::from_secs(11), sweeper).await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_full_store_forgets_what_is_nearest_to_expiry() {
        let (store, rules) = (MemoryStore::new(4096), rules());
        // Used a second time, an hour later: the expiry first recorded is out of date and must not be believed.
        for wait in [Duration::ZERO, Duration::from_secs(3600)] {
            tokio::time::advance(wait).await;
            for user in 0..500 {
                assert_eq!(charge(&store, &rules, "long", user).refusal, None);
            }
        }
        for user in 0..50_000 {
            assert_eq!(charge(&store, &rules, "short", user).refusal, None);
            assert!(store.shards[user % SHARDS].lock().unwrap().tats.len() <= 4096 / SHARDS);
        }
        assert!(store.len() <= 4096);
        let kept = (0..500).filter(|user| charge(&store, &rules, "long", *user).refusal.is_some()).count();
        assert_eq!(kept, 500, "counters that are an hour from expiry outlive those that are seconds from it");
    }
}
