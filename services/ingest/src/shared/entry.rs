//! What lies under a key, byte by byte:
//!
//! - a lease: `0`, 16 random bytes;
//! - scores: `1`, the anchor's id (16 bytes), then each class's probability as little-endian f32. Five classes are 37 bytes.

use std::sync::Arc;

use uuid::Uuid;

use crate::cache::Scored;

const LEASE: u8 = 0;
const SCORES: u8 = 1;
const ID: usize = 16;
/// More classes than any model has (model.toml allows 1,000), so that nobody's garbage becomes a long list.
const MOST_CLASSES: usize = 1_000;

/// Says who classifies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lease(pub(super) Uuid);

impl Lease {
    pub(super) fn bytes(self) -> [u8; 1 + ID] {
        let mut bytes = [LEASE; 1 + ID];
        bytes[1..].copy_from_slice(self.0.as_bytes());
        bytes
    }
}

/// What was found.
#[derive(Debug)]
pub(super) enum Entry {
    Lease,
    Scores(Scored),
}

impl Entry {
    /// `None` for what this version does not know.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let (kind, rest) = bytes.split_first()?;
        match *kind {
            LEASE if rest.len() == ID => Some(Self::Lease),
            SCORES => {
                let (anchor, scores) = rest.split_first_chunk::<ID>()?;
                let (scores, left) = scores.as_chunks::<4>();
                let finite = scores.iter().all(|four| f32::from_le_bytes(*four).is_finite());
                let sane = left.is_empty() && !scores.is_empty() && scores.len() <= MOST_CLASSES && finite;
                sane.then(|| {
                    let scores: Arc<[f32]> = scores.iter().map(|four| f32::from_le_bytes(*four)).collect();
                    Self::Scores(Scored { anchor: Uuid::from_bytes(*anchor), scores })
                })
            }
            _ => None,
        }
    }
}

/// Scores as they are kept.
pub(super) fn scores(scored: &Scored) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(1 + ID + 4 * scored.scores.len());
    bytes.push(SCORES);
    bytes.extend_from_slice(scored.anchor.as_bytes());
    scored.scores.iter().for_each(|score| bytes.extend_from_slice(&score.to_le_bytes()));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scores_read_back_in_37_bytes() {
        let scored = Scored { anchor: Uuid::now_v7(), scores: Arc::new([0.5, 0.25, 0.125, 0.0625, 1e-9]) };
        let bytes = scores(&scored);
        assert_eq!(bytes.len(), 37);
        match Entry::read(&bytes) {
            Some(Entry::Scores(read)) => {
                assert_eq!((read.anchor, &read.scores), (scored.anchor, &scored.scores));
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(Entry::read(&Lease(Uuid::new_v4()).bytes()), Some(Entry::Lease)));
    }

    #[test]
    fn what_nobody_wrote_is_not_believed() {
        let good = scores(&Scored { anchor: Uuid::now_v7(), scores: Arc::new([0.5, 0.5]) });
        let mut not_finite = good.clone();
        not_finite[17..21].copy_from_slice(&f32::NAN.to_le_bytes());
        for bytes in [&[][..], &[0], &[1], &[2; 40], &good[..17], &good[..20], &not_finite] {
            assert!(Entry::read(bytes).is_none(), "{bytes:?}");
        }
    }
}
