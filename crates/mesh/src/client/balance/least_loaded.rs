//! The cheaper of two random endpoints.

use std::sync::Arc;

use tokio::time::Instant;

use super::Candidates;
use crate::client::{Endpoint, dice::Dice};

/// Draws of a second endpoint before the first one's neighbour is taken.
const DRAWS: usize = 4;

/// Chooses; `None` only from nobody.
pub(in crate::client) fn choose<'a>(among: &'a Candidates, dice: &Dice) -> Option<&'a Arc<Endpoint>> {
    let all = among.endpoints();
    if all.len() < 2 {
        return all.first();
    }
    let first = among.at(dice.below(among.total()));
    let mut second = first;
    for _ in 0..DRAWS {
        second = among.at(dice.below(among.total()));
        if second != first {
            break;
        }
    }
    if second == first {
        second = (first + 1) % all.len();
    }
    let now = Instant::now();
    // Where both cost the same the first drawn takes it: shares are as weights.
    if all[second].cost(now) < all[first].cost(now) { all.get(second) } else { all.get(first) }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, time::Duration};

    use super::*;
    use crate::client::{EndpointId, Outcome, balance::tests::endpoints};

    /// `callers` call one after another for a while; an endpoint answers after its latency. Shares of the calls.
    async fn shares(weights: &[u32], latencies_ms: &[u64], callers: usize) -> Vec<f64> {
        let endpoints = endpoints(weights);
        let latency: HashMap<EndpointId, Duration> =
            endpoints.iter().zip(latencies_ms).map(|(e, ms)| (e.id(), Duration::from_millis(*ms))).collect();
        let (among, dice) = (Arc::new(Candidates::new(endpoints.clone())), Arc::new(Dice::new(Some(11))));
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..callers {
            let (among, dice, latency) = (Arc::clone(&among), Arc::clone(&dice), latency.clone());
            tasks.spawn(async move {
                let mut counts = HashMap::new();
                let end = Instant::now() + Duration::from_secs(6);
                while Instant::now() < end {
                    let picked = choose(&among, &dice).unwrap().begin();
                    let id = picked.endpoint().id();
                    tokio::time::sleep(dice.jitter(latency[&id])).await;
                    *counts.entry(id).or_insert(0_u32) += 1;
                    picked.done(Outcome::Success);
                }
                counts
            });
        }
        let mut counts: HashMap<EndpointId, u32> = HashMap::new();
        for of_one in tasks.join_all().await {
            of_one.into_iter().for_each(|(id, count)| *counts.entry(id).or_default() += count);
        }
        let all: u32 = counts.values().sum();
        endpoints.iter().map(|e| f64::from(*counts.get(&e.id()).unwrap_or(&0)) / f64::from(all)).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_replica_ten_times_slower_gets_little() {
        for callers in [2, 20, 100] {
            let shares = shares(&[1, 1, 1], &[5, 5, 50], callers).await;
            assert!(shares[2] < 0.08, "{callers} callers: {shares:?}");
            assert!(shares[2] > 0.0, "it is tried now and then: {shares:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn equal_replicas_get_equal_shares() {
        let shares = shares(&[1, 1, 1], &[5, 5, 5], 30).await;
        assert!(shares.iter().all(|share| (0.28..0.39).contains(share)), "{shares:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn shares_follow_weights() {
        let shares = shares(&[1, 2, 1], &[5, 5, 5], 40).await;
        assert!((0.44..0.56).contains(&shares[1]), "{shares:?}");
    }
}
