//! How many users were active lately, without keeping who: the gauge `active_users` (R10).
//!
//! HyperLogLog (Flajolet et al. 2007, with the linear counting of small numbers): 4,096 registers of one byte, filled from
//! a hash with a key of this process; the standard error is 1.04 / √4,096 = 1.6 %. Two of them, one per half of the
//! window: a user counts for at least five minutes and at most ten. Several replicas see the same user apart: their
//! gauges are upper bounds of each other's union, not addends.

use std::{
    array,
    collections::hash_map::RandomState,
    hash::BuildHasher,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::events;

/// The number of registers is two to this power.
const INDEX_BITS: u32 = 12;
const REGISTERS: usize = 1 << INDEX_BITS;
/// How long a user counts at least.
const WINDOW: Duration = Duration::from_secs(300);
/// How often the gauge is set.
const SHOWN: Duration = Duration::from_secs(5);

type Registers = [AtomicU8; REGISTERS];

/// See the module.
#[derive(Debug)]
pub struct ActiveUsers {
    key: RandomState,
    /// The one in use and the one before it.
    halves: [Registers; 2],
    in_use: AtomicUsize,
}

impl Default for ActiveUsers {
    fn default() -> Self {
        let halves = [array::from_fn(|_| AtomicU8::new(0)), array::from_fn(|_| AtomicU8::new(0))];
        Self { key: RandomState::new(), halves, in_use: AtomicUsize::new(0) }
    }
}

impl ActiveUsers {
    /// A frame of this user.
    pub fn seen(&self, tenant: &str, user: &str) {
        let hash = self.key.hash_one((tenant, user));
        let register = (hash >> (u64::BITS - INDEX_BITS)) as usize;
        // The place of the first one among the other bits, from 1.
        let rank = ((hash << INDEX_BITS) | (1 << (INDEX_BITS - 1))).leading_zeros() as u8 + 1;
        let register = &self.halves[self.in_use.load(Ordering::Relaxed) % 2][register];
        if register.load(Ordering::Relaxed) < rank {
            register.fetch_max(rank, Ordering::Relaxed);
        }
    }

    /// About how many different users there were.
    pub fn count(&self) -> f64 {
        let mut sum = 0.0;
        let mut empty = 0;
        for (one, other) in self.halves[0].iter().zip(&self.halves[1]) {
            let rank = one.load(Ordering::Relaxed).max(other.load(Ordering::Relaxed));
            sum += (-f64::from(rank)).exp2();
            empty += usize::from(rank == 0);
        }
        let registers = REGISTERS as f64;
        let estimate = 0.7213 / (1.0 + 1.079 / registers) * registers * registers / sum;
        if estimate <= 2.5 * registers && empty > 0 {
            return registers * (registers / empty as f64).ln();
        }
        estimate
    }

    /// Forgets the older half.
    fn turn(&self) {
        let next = (self.in_use.load(Ordering::Relaxed) + 1) % 2;
        self.halves[next].iter().for_each(|register| register.store(0, Ordering::Relaxed));
        self.in_use.store(next, Ordering::Relaxed);
    }

    /// Shows the gauge and forgets, for as long as it is polled.
    pub async fn keep(self: Arc<Self>) {
        loop {
            for _ in 0..WINDOW.as_secs() / SHOWN.as_secs() {
                tokio::time::sleep(SHOWN).await;
                events::active_users(self.count());
            }
            self.turn();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_users_are_counted_within_a_few_percent() {
        for count in [0_u32, 1, 100, 3_000, 100_000] {
            let users = ActiveUsers::default();
            for user in (0..count).chain(0..count / 2) {
                users.seen("tenant", &format!("user-{user}"));
            }
            let (seen, count) = (users.count(), f64::from(count));
            // Five standard errors: one run in a million is further off.
            assert!((seen - count).abs() <= count * 0.08 + 1.0, "{seen} for {count}");
        }
    }

    #[test]
    fn users_are_forgotten_after_two_windows() {
        let users = ActiveUsers::default();
        users.seen("", "ada");
        users.turn();
        users.seen("", "bob");
        assert_eq!(users.count().round(), 2.0);
        users.turn();
        assert_eq!(users.count().round(), 1.0);
        users.turn();
        assert_eq!(users.count().round(), 0.0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_name_at_two_tenants_is_two_users() {
        let users = Arc::new(ActiveUsers::default());
        users.seen("a", "ada");
        users.seen("b", "ada");
        assert_eq!(users.count().round(), 2.0);
        let keeping = tokio::spawn(Arc::clone(&users).keep());
        tokio::time::sleep(WINDOW * 2 + Duration::from_secs(1)).await;
        assert_eq!(users.count().round(), 0.0);
        keeping.abort();
    }
}
