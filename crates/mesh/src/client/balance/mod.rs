//! Who of several endpoints takes the next call.
//!
//! - [`least_loaded`]: the cheaper of two that are drawn in proportion to weight (power of two choices; Mitzenmacher
//!   2001). Two suffice to avoid the worst one, and unlike the best of all they do not send every caller to the same.
//! - [`round_robin`]: one after another, in proportion to weight.
//! - [`ring_hash`]: calls with one key on one endpoint.

pub(super) mod least_loaded;
pub(super) mod ring_hash;
pub(super) mod round_robin;

use std::sync::Arc;

use super::Endpoint;

/// Endpoints to choose among.
#[derive(Debug, Default)]
pub(super) struct Candidates {
    endpoints: Vec<Arc<Endpoint>>,
    /// Sums of weights up to and with each endpoint; empty where all weights are equal.
    sums: Vec<u64>,
}

impl Candidates {
    pub(super) fn new(endpoints: Vec<Arc<Endpoint>>) -> Self {
        let first = endpoints.first().map(|endpoint| endpoint.weight());
        let equal = endpoints.iter().all(|endpoint| Some(endpoint.weight()) == first);
        let sum = |sum: &mut u64, endpoint: &Arc<Endpoint>| {
            *sum += u64::from(endpoint.weight());
            Some(*sum)
        };
        let sums = if equal { Vec::new() } else { endpoints.iter().scan(0, sum).collect() };
        Self { endpoints, sums }
    }

    pub(super) fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    pub(super) fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// The sum of all shares.
    fn total(&self) -> u64 {
        self.sums.last().copied().unwrap_or(self.endpoints.len() as u64)
    }

    /// The index of the endpoint that owns this share, from 0 to `total - 1`.
    fn at(&self, share: u64) -> usize {
        match self.sums.is_empty() {
            true => share as usize,
            false => self.sums.partition_point(|sum| *sum <= share),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::Weak;

    use super::*;
    use crate::client::{Address, MeshOptions, dice::Dice};

    /// Endpoints with these weights, never connected.
    pub(crate) fn endpoints(weights: &[u32]) -> Vec<Arc<Endpoint>> {
        let dice = Arc::new(Dice::new(Some(5)));
        let endpoint = |(n, weight): (usize, &u32)| {
            let address = Address::new(&format!("10.0.0.{n}:7401")).unwrap().weighing(*weight);
            Arc::new(Endpoint::new(address, &MeshOptions::default(), Arc::clone(&dice), Weak::new()))
        };
        weights.iter().enumerate().map(endpoint).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn shares_belong_to_endpoints_by_weight() {
        let equal = Candidates::new(endpoints(&[3, 3]));
        assert_eq!((equal.total(), equal.at(0), equal.at(1)), (2, 0, 1));
        let unequal = Candidates::new(endpoints(&[1, 3, 2]));
        let owners: Vec<usize> = (0..unequal.total()).map(|share| unequal.at(share)).collect();
        assert_eq!(owners, [0, 1, 1, 1, 2, 2]);
        assert!(Candidates::new(Vec::new()).is_empty());
    }
}
