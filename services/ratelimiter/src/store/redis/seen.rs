//! What Redis lately said of counters at their limit: a caller that hammers is refused without a round trip.
//!
//! A counter's arrival time only grows, so what was seen is never later than what is: a refusal by it is always right. When
//! it was seen is known only between the sending of the question and the arrival of the answer; a refusal goes by the
//! former, and the wait that is told by the latter, so that who comes back after it is not early. If others charged the
//! counter meanwhile through another replica, the wait was too short, and the next answer tells the rest.
//!
//! (In a Cluster a refund moves the time back: a check refused in those few milliseconds may be told to wait for as long as
//! the refunded hits cost.)
//!
//! Bound: a fixed number of places, by the counter's hash; a newcomer takes the place.

use std::sync::{Mutex, PoisonError};

use super::key::Charge;
use crate::store::{Decision, Refusal};

/// Locks.
const SHARDS: usize = 64;

/// 32 bytes.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    id: u128,
    /// The earliest and the latest that the arrival time can be, by this process's clock.
    earliest: u64,
    latest: u64,
}

/// The places.
#[derive(Debug)]
pub(super) struct Seen {
    shards: Vec<Mutex<Box<[Place]>>>,
}

impl Seen {
    /// With room for about `counters`; with 0 nothing is remembered.
    pub(super) fn new(counters: usize) -> Self {
        let each = counters.div_ceil(SHARDS);
        let shard = |_| Mutex::new(vec![Place::default(); each].into_boxed_slice());
        Self { shards: (0..if counters == 0 { 0 } else { SHARDS }).map(shard).collect() }
    }

    /// The decision, when all of a check's counters were seen and one of them refuses still.
    pub(super) fn refusal(&self, charges: &[Charge], now: u64) -> Option<Decision> {
        if self.shards.is_empty() {
            return None;
        }
        let mut used = Vec::with_capacity(charges.len());
        let mut refused = false;
        for charge in charges {
            let place = self.with(charge.key.id, |place| *place);
            if place.id != charge.key.id {
                return None;
            }
            let earliest = place.earliest.saturating_sub(now);
            refused |= !charge.quota.wait(earliest, charge.hits).is_zero();
            used.push(place.latest.saturating_sub(now));
        }
        refused.then(|| refused_by(charges, &used))
    }

    /// Remembers what was answered to a question sent at `sent`, when it says that a counter is at its limit.
    pub(super) fn remember(&self, charges: &[Charge], used: &[u64], admitted: bool, sent: u64, now: u64) {
        if self.shards.is_empty() {
            return;
        }
        let full = |(charge, used): (&Charge, &u64)| !charge.quota.wait(*used, 1).is_zero();
        if admitted && !charges.iter().zip(used).any(full) {
            return;
        }
        for (charge, used) in charges.iter().zip(used) {
            let seen = Place { id: charge.key.id, earliest: sent + used, latest: now + used };
            self.with(charge.key.id, |place| *place = seen);
        }
    }

    #[allow(clippy::cast_possible_truncation)] // parts of a hash
    fn with<T>(&self, id: u128, action: impl FnOnce(&mut Place) -> T) -> T {
        let mut shard =
            self.shards[(id >> 64) as usize % SHARDS].lock().unwrap_or_else(PoisonError::into_inner);
        let place = id as usize % shard.len();
        action(&mut shard[place])
    }
}

/// How a check stands that was not charged.
pub(super) fn refused_by(charges: &[Charge], used: &[u64]) -> Decision {
    let mut refusal: Option<Refusal> = None;
    for (counter, (charge, used)) in charges.iter().zip(used).enumerate() {
        let retry_after = charge.quota.wait(*used, charge.hits);
        let longer = refusal.is_none_or(|worst| retry_after > worst.retry_after);
        if !retry_after.is_zero() && longer {
            refusal = Some(Refusal { counter, retry_after });
        }
    }
    Decision { refusal, standings: standings(charges, used), degraded: false }
}

/// How counters stand.
pub(super) fn standings(charges: &[Charge], used: &[u64]) -> Vec<crate::gcra::Standing> {
    charges.iter().zip(used).map(|(charge, used)| charge.quota.standing(*used)).collect()
}
