//! Random choices that a seed repeats.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// The increment of SplitMix64: 2⁶⁴ divided by the golden ratio.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014) over an atomic counter: shared by
/// all callers without a lock. For choices, never for secrets.
#[derive(Debug)]
pub(super) struct Dice(AtomicU64);

impl Dice {
    /// From a seed, or from the system's randomness.
    pub(super) fn new(seed: Option<u64>) -> Self {
        Self(AtomicU64::new(seed.unwrap_or_else(rand::random)))
    }

    pub(super) fn next(&self) -> u64 {
        mix(self.0.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP))
    }

    /// Evenly from 0 to `bound` - 1; 0 for a bound of 0.
    pub(super) fn below(&self, bound: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(bound)) >> 64) as u64
    }

    /// Evenly from 0 to just below 1.
    pub(super) fn fraction(&self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Times a random 0.5 to 1.5.
    pub(super) fn jitter(&self, duration: Duration) -> Duration {
        duration.mul_f64(0.5 + self.fraction())
    }
}

/// SplitMix64's finalizer: spreads every bit of its input over the whole output.
pub(super) fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_gives_the_published_sequence() {
        // Vectors of the reference implementation for seed 1234567.
        let dice = Dice::new(Some(1_234_567));
        let first: Vec<u64> = (0..3).map(|_| dice.next()).collect();
        assert_eq!(first, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn choices_are_even_and_jitter_stays_in_bounds() {
        let dice = Dice::new(Some(1));
        let mut seen = [0; 3];
        for _ in 0..30_000 {
            seen[dice.below(3) as usize] += 1;
            let jittered = dice.jitter(Duration::from_secs(2));
            assert!((Duration::from_secs(1)..=Duration::from_secs(3)).contains(&jittered));
        }
        assert!(seen.iter().all(|count| (9_500..10_500).contains(count)), "{seen:?}");
    }
}
