//! Calls with one key on one endpoint.

use std::{cmp::Ordering, sync::Arc};

use crate::client::{Endpoint, dice::mix};

/// Points on the ring for a weight of 1: with 100 the largest share of equal endpoints is about a fifth over the mean.
const POINTS_PER_WEIGHT: u64 = 100;
/// Points of the whole ring, 16 bytes each; past them every endpoint gets fewer, at least one.
const MAX_POINTS: u64 = 1 << 16;
/// How far an endpoint may be over the mean load before its keys go on to the next (consistent hashing with bounded loads,
/// Mirrokni, Thorup, Zadimoghaddam 2016).
const OVER_MEAN: f64 = 1.25;

/// All endpoints of a cluster on a ring, usable or not, so that one that goes and comes back finds its keys again. An
/// endpoint's points depend on its address alone: every client has the same ring.
#[derive(Debug, Default)]
pub(in crate::client) struct Ring {
    /// Points and who owns them, in order.
    points: Vec<(u64, u32)>,
    endpoints: Vec<Arc<Endpoint>>,
}

impl Ring {
    pub(in crate::client) fn new(endpoints: &[Arc<Endpoint>]) -> Self {
        let total: u64 = endpoints.iter().map(|endpoint| u64::from(endpoint.weight())).sum();
        let share = |endpoint: &Endpoint| {
            let wanted = u64::from(endpoint.weight()) * POINTS_PER_WEIGHT;
            let bounded = u64::from(endpoint.weight()) * MAX_POINTS / total.max(1);
            wanted.min(bounded).max(1)
        };
        let mut points = Vec::new();
        for (index, endpoint) in endpoints.iter().enumerate() {
            let name = fnv1a(endpoint.address().authority.as_bytes());
            points.extend((0..share(endpoint)).map(|n| (mix(name ^ mix(n + 1)), index as u32)));
        }
        points.sort_unstable();
        Self { points, endpoints: endpoints.to_vec() }
    }

    /// The first endpoint from the key's place on that `usable` takes and that is not over the bound; over it, the first that
    /// is usable at all.
    pub(in crate::client) fn choose(
        &self,
        key: u64,
        usable: impl Fn(&Endpoint) -> bool,
    ) -> Option<&Arc<Endpoint>> {
        let start = self.points.partition_point(|(point, _)| point.cmp(&mix(key)) == Ordering::Less);
        let walk = self.points[start..].iter().chain(&self.points[..start]);
        let mut fallback = None;
        let mut bound = None;
        for (_, index) in walk {
            let endpoint = &self.endpoints[*index as usize];
            if !usable(endpoint) {
                continue;
            }
            let per_weight = *bound.get_or_insert_with(|| self.bound(&usable));
            let fits =
                endpoint.in_flight() as f64 + 1.0 <= (per_weight * f64::from(endpoint.weight())).ceil();
            if fits {
                return Some(endpoint);
            }
            fallback = fallback.or(Some(endpoint));
        }
        fallback
    }

    /// How many calls a weight of 1 may carry, one more call included.
    fn bound(&self, usable: &impl Fn(&Endpoint) -> bool) -> f64 {
        let (calls, weights) = self.endpoints.iter().filter(|endpoint| usable(endpoint)).fold(
            (1.0, 0.0),
            |(calls, weights), endpoint| {
                (calls + endpoint.in_flight() as f64, weights + f64::from(endpoint.weight()))
            },
        );
        OVER_MEAN * calls / f64::max(weights, 1.0)
    }
}

/// FNV-1a, 64 bits: the same in every process and version.
pub(in crate::client) fn fnv1a<'a>(bytes: impl IntoIterator<Item = &'a u8>) -> u64 {
    bytes
        .into_iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{EndpointId, balance::tests::endpoints};

    fn owners(ring: &Ring, usable: impl Fn(&Endpoint) -> bool) -> Vec<EndpointId> {
        (0..10_000).map(|key| ring.choose(key, &usable).unwrap().id()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn shares_are_as_weights() {
        let all = endpoints(&[1, 1, 1, 2]);
        let owners = owners(&Ring::new(&all), |_| true);
        let share = |n: usize| owners.iter().filter(|id| **id == all[n].id()).count() as f64 / 10_000.0;
        assert!((0.14..0.26).contains(&share(0)), "{}", share(0));
        assert!((0.32..0.48).contains(&share(3)), "{}", share(3));
    }

    #[tokio::test(start_paused = true)]
    async fn only_the_keys_of_a_removed_endpoint_move() {
        let all = endpoints(&[1; 5]);
        let before = owners(&Ring::new(&all), |_| true);
        let removed = owners(&Ring::new(&all[1..]), |_| true);
        let unusable = owners(&Ring::new(&all), |endpoint| endpoint.id() != all[0].id());
        assert_eq!(removed, unusable, "whether it is gone or only away");
        for (before, after) in before.iter().zip(&removed) {
            assert!(before == after || *before == all[0].id());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_overloaded_endpoint_gives_keys_to_the_next() {
        let all = endpoints(&[1; 3]);
        let ring = Ring::new(&all);
        let own = Arc::clone(ring.choose(1, |_| true).unwrap());
        let _calls: Vec<_> = (0..10).map(|_| own.begin()).collect();
        let next = ring.choose(1, |_| true).unwrap();
        assert_ne!(next.id(), own.id());
        assert_eq!(
            ring.choose(1, |endpoint| endpoint.id() == own.id()).unwrap().id(),
            own.id(),
            "the only one"
        );
        assert!(ring.choose(1, |_| false).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn the_ring_is_bounded() {
        assert_eq!(Ring::new(&endpoints(&[1, 2])).points.len(), 300);
        assert!(Ring::new(&endpoints(&[1000; 40])).points.len() <= MAX_POINTS as usize);
        assert!(Ring::new(&[]).choose(1, |_| true).is_none());
    }
}
