//! One endpoint after another.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use super::Candidates;
use crate::client::Endpoint;

/// Chooses; `None` only from nobody.
///
/// Where weights differ, shares are visited in steps of the golden ratio, which spreads each endpoint's turns evenly instead of
/// giving it all of them in a row.
pub(in crate::client) fn choose<'a>(among: &'a Candidates, turn: &AtomicU64) -> Option<&'a Arc<Endpoint>> {
    /// 2⁶⁴ divided by the golden ratio.
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
    let total = among.total();
    if total == 0 {
        return None;
    }
    let turn = turn.fetch_add(1, Ordering::Relaxed);
    let share = match among.sums.is_empty() {
        true => turn % total,
        false => ((u128::from(turn.wrapping_mul(STEP)) * u128::from(total)) >> 64) as u64,
    };
    among.endpoints().get(among.at(share))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::balance::tests::endpoints;

    fn turns(weights: &[u32], count: usize) -> Vec<usize> {
        let all = endpoints(weights);
        let (among, turn) = (Candidates::new(all.clone()), AtomicU64::new(0));
        let index = |chosen: &Arc<Endpoint>| all.iter().position(|e| e.id() == chosen.id()).unwrap();
        (0..count).map(|_| index(choose(&among, &turn).unwrap())).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn equals_take_turns() {
        assert_eq!(turns(&[1, 1, 1], 7), [0, 1, 2, 0, 1, 2, 0]);
        assert!(choose(&Candidates::new(Vec::new()), &AtomicU64::new(0)).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn weights_are_turns_and_none_comes_in_a_block() {
        let turns = turns(&[1, 4, 1], 600);
        let count = |n: usize| turns.iter().filter(|turn| **turn == n).count();
        assert!(
            (95..=105).contains(&count(0)) && (95..=105).contains(&count(2)),
            "{} {}",
            count(0),
            count(2)
        );
        let turns = self::turns(&[8, 4], 600);
        let longest = turns.chunk_by(|a, b| a == b).map(<[usize]>::len).max().unwrap();
        assert!(longest <= 4, "{longest} in a row, of twelve turns eight are its");
    }
}
