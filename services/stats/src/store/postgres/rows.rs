//! A group of batches as columns: sorted, so that replicas take locks in the same order instead of waiting in a circle, and
//! merged, so that a rollup is counted up once per commit.

use std::collections::BTreeSet;

use tokio_postgres::types::Type;
use uuid::Uuid;

use super::{partitions::Partition, transaction::Parameter};
use crate::store::{Event, Recorded, StoreError};

/// Bytes of an id that begin its key. Ids of version 7 begin with their time: kept in front, new keys are neighbours in
/// the index.
const PREFIX: usize = 6;

/// What stands for an id of a tenant: the id's first 6 bytes, then 10 bytes of the BLAKE3 hash of tenant and id. As wide
/// as the id alone, and nobody can find an id of his own that hides another tenant's (80 bits, per 48 of the id).
fn key(event: &Event) -> Uuid {
    let mut hasher = blake3::Hasher::new();
    hasher.update(event.id.as_bytes()).update(event.tenant.as_bytes());
    let mut bytes = *event.id.as_bytes();
    bytes[PREFIX..].copy_from_slice(&hasher.finalize().as_bytes()[..16 - PREFIX]);
    Uuid::from_bytes(bytes)
}

/// What stands for a rollup: the first 16 bytes of the BLAKE3 hash of its columns. Texts end in NUL, which they do not
/// hold (see `names`), so no two rollups are hashed alike.
fn rollup(event: &Event) -> Uuid {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&event.hour.0.to_le_bytes()).update(&[event.level, event.source]);
    for text in [&event.tenant, &event.user, &event.application] {
        hasher.update(text.as_bytes()).update(&[0]);
    }
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    Uuid::from_bytes(bytes)
}

/// The batches of one transaction.
pub(super) type Group = [Vec<Event>];

/// An event that may be new.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    key: Uuid,
    batch: u32,
    event: u32,
}

/// A group, checked and ordered. Holds places in the group, not its events.
#[derive(Debug)]
pub(super) struct Prepared {
    /// Sorted by key, each once.
    candidates: Vec<Candidate>,
    /// The rollup of each candidate, by its index, in the order of the rollups' keys.
    by_rollup: Vec<(Uuid, u32)>,
    /// One per batch; refused ones are final, the others hold duplicates inside the group.
    pub outcomes: Vec<Result<Recorded, StoreError>>,
    /// The earliest hour that would be written.
    pub earliest: i64,
    /// Where it would be written.
    pub partitions: BTreeSet<Partition>,
}

impl Prepared {
    /// Refuses the batches with an event before the hour `forgotten`, and orders the rest. Takes some milliseconds.
    pub(super) fn new(group: &Group, forgotten: i64) -> Self {
        let refused = |events: &Vec<Event>| events.iter().position(|event| event.hour.0 < forgotten);
        let mut outcomes: Vec<Result<Recorded, StoreError>> = group
            .iter()
            .map(|events| {
                refused(events).map_or(Ok(Recorded::default()), |index| Err(StoreError::Forgotten { index }))
            })
            .collect();
        let mut candidates = Vec::with_capacity(group.iter().map(Vec::len).sum());
        let mut hours = BTreeSet::new();
        for (batch, events) in (0..).zip(group).filter(|(batch, _)| outcomes[*batch as usize].is_ok()) {
            for (event, one) in (0..).zip(events) {
                candidates.push(Candidate { key: key(one), batch, event });
                hours.insert(one.hour.0);
            }
        }
        // Stable: of equal ones the first batch's comes first, and is kept.
        candidates.sort_by_key(|candidate| candidate.key);
        candidates.dedup_by(|later, first| {
            let same = later.key == first.key;
            if same && let Ok(outcome) = &mut outcomes[later.batch as usize] {
                outcome.duplicates += 1;
            }
            same
        });
        let rollups = candidates.iter().map(|candidate| rollup(at(group, *candidate)));
        let mut by_rollup: Vec<(Uuid, u32)> = rollups.zip(0..).collect();
        by_rollup.sort_unstable();
        let partitions =
            hours.iter().flat_map(|&hour| [Partition::day(hour), Partition::month(hour)]).collect();
        let earliest = hours.first().copied().unwrap_or(i64::MAX);
        Self { candidates, by_rollup, outcomes, earliest, partitions }
    }

    /// Whether there is nothing to write.
    pub(super) fn is_empty(&self) -> bool {
        self.candidates.is_empty()
    }

    /// The columns of the table of events.
    pub(super) fn events<'g>(&self, group: &'g Group) -> Events<'g> {
        let mut rows = Events::default();
        for candidate in &self.candidates {
            rows.keys.push(candidate.key);
            rows.columns.push(at(group, *candidate));
        }
        rows
    }

    /// Counts the outcome of each batch, given the keys that were new, and the rollups to add to.
    pub(super) fn settle<'g>(
        &mut self,
        group: &'g Group,
        mut stored: Vec<Uuid>,
    ) -> (Vec<Result<Recorded, StoreError>>, Rollups<'g>) {
        let all = stored.len() == self.candidates.len();
        stored.sort_unstable();
        let new: Vec<bool> = self
            .candidates
            .iter()
            .map(|candidate| all || stored.binary_search(&candidate.key).is_ok())
            .collect();
        let mut outcomes = self.outcomes.clone();
        for (candidate, new) in self.candidates.iter().zip(&new) {
            if let Ok(outcome) = &mut outcomes[candidate.batch as usize] {
                let count = if *new { &mut outcome.stored } else { &mut outcome.duplicates };
                *count += 1;
            }
        }
        let mut rollups = Rollups::default();
        for (key, index) in self.by_rollup.iter().filter(|(_, index)| new[*index as usize]) {
            match rollups.frames.last_mut() {
                Some(frames) if rollups.keys.last() == Some(key) => *frames += 1,
                _ => rollups.push(*key, 1, at(group, self.candidates[*index as usize])),
            }
        }
        (outcomes, rollups)
    }
}

fn at(group: &Group, candidate: Candidate) -> &Event {
    &group[candidate.batch as usize][candidate.event as usize]
}

/// What both tables hold of an event.
#[derive(Debug, Default)]
struct Columns<'g> {
    hours: Vec<i32>,
    levels: Vec<i16>,
    sources: Vec<i16>,
    tenants: Vec<&'g str>,
    users: Vec<&'g str>,
    applications: Vec<&'g str>,
}

impl<'g> Columns<'g> {
    fn push(&mut self, event: &'g Event) {
        // Hours after the year 240,000 do not come past the intake.
        self.hours.push(i32::try_from(event.hour.0).unwrap_or(i32::MAX));
        self.levels.push(event.level.into());
        self.sources.push(event.source.into());
        self.tenants.push(&event.tenant);
        self.users.push(&event.user);
        self.applications.push(&event.application);
    }
}

/// Rows for the table of events.
#[derive(Debug, Default)]
pub(super) struct Events<'g> {
    pub keys: Vec<Uuid>,
    columns: Columns<'g>,
}

impl Events<'_> {
    /// `$1` to `$7` of the statement that stores events.
    pub(super) fn parameters(&self) -> [Parameter<'_>; 7] {
        [
            (&self.keys, Type::UUID_ARRAY),
            (&self.columns.hours, Type::INT4_ARRAY),
            (&self.columns.levels, Type::INT2_ARRAY),
            (&self.columns.sources, Type::INT2_ARRAY),
            (&self.columns.tenants, Type::TEXT_ARRAY),
            (&self.columns.users, Type::TEXT_ARRAY),
            (&self.columns.applications, Type::TEXT_ARRAY),
        ]
    }
}

/// Rows for the table of rollups, sorted by key.
#[derive(Debug, Default)]
pub(super) struct Rollups<'g> {
    keys: Vec<Uuid>,
    frames: Vec<i64>,
    events: Vec<&'g Event>,
    columns: Columns<'g>,
}

impl Rollups<'_> {
    pub(super) fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The first and the last hour: with them PostgreSQL looks at no other month.
    pub(super) fn hours(&self) -> (i32, i32) {
        let hours = || self.columns.hours.iter().copied();
        (hours().min().unwrap_or_default(), hours().max().unwrap_or_default())
    }

    /// `$1` to `$3` of the statement that counts up.
    pub(super) fn counts(&self) -> [Parameter<'_>; 3] {
        [
            (&self.keys, Type::UUID_ARRAY),
            (&self.columns.hours, Type::INT4_ARRAY),
            (&self.frames, Type::INT8_ARRAY),
        ]
    }

    /// `$1` to `$8` of the statement that makes rollups.
    pub(super) fn parameters(&self) -> [Parameter<'_>; 8] {
        [
            (&self.keys, Type::UUID_ARRAY),
            (&self.frames, Type::INT8_ARRAY),
            (&self.columns.hours, Type::INT4_ARRAY),
            (&self.columns.levels, Type::INT2_ARRAY),
            (&self.columns.sources, Type::INT2_ARRAY),
            (&self.columns.tenants, Type::TEXT_ARRAY),
            (&self.columns.users, Type::TEXT_ARRAY),
            (&self.columns.applications, Type::TEXT_ARRAY),
        ]
    }
}

impl<'g> Rollups<'g> {
    /// Those whose keys are not among `counted`.
    pub(super) fn without(&self, mut counted: Vec<Uuid>) -> Rollups<'g> {
        let mut rest = Rollups::default();
        if counted.len() < self.keys.len() {
            counted.sort_unstable();
            for ((key, frames), event) in self.keys.iter().zip(&self.frames).zip(&self.events) {
                if counted.binary_search(key).is_err() {
                    rest.push(*key, *frames, event);
                }
            }
        }
        rest
    }

    fn push(&mut self, key: Uuid, frames: i64, event: &'g Event) {
        self.keys.push(key);
        self.frames.push(frames);
        self.events.push(event);
        self.columns.push(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Hour;

    fn event(id: u128, tenant: &str, user: &str) -> Event {
        Event {
            id: Uuid::from_u128(id),
            hour: Hour(480_000),
            tenant: tenant.into(),
            user: user.into(),
            application: String::new(),
            level: 1,
            source: 1,
        }
    }

    #[test]
    fn a_key_is_one_tenants_and_keeps_the_time_of_its_id_in_front() {
        let id = 0x018f_2a6e_7c1d_7000_8000_0000_0000_0001;
        assert_eq!(key(&event(id, "a", "u")), key(&event(id, "a", "other")));
        assert_ne!(key(&event(id, "a", "u")), key(&event(id, "b", "u")));
        assert_ne!(key(&event(id, "a", "u")), key(&event(id + 1, "a", "u")));
        assert_eq!(key(&event(id, "a", "u")).as_bytes()[..6], Uuid::from_u128(id).as_bytes()[..6]);
    }

    #[test]
    fn rollups_with_other_columns_have_other_keys() {
        let one = event(1, "a", "bc");
        assert_eq!(rollup(&one), rollup(&event(2, "a", "bc")));
        let others = [
            event(1, "ab", "c"),
            event(1, "", "abc"),
            Event { user: "b".into(), application: "c".into(), ..one.clone() },
            Event { level: 2, ..one.clone() },
            Event { source: 2, ..one.clone() },
            Event { hour: Hour(480_001), ..one.clone() },
        ];
        assert!(others.iter().all(|other| rollup(other) != rollup(&one)));
    }

    #[test]
    fn a_group_is_sorted_merged_and_each_batch_knows_what_became_of_it() {
        let group = [
            vec![event(3, "", "b"), event(1, "", "a"), event(2, "", "a")],
            vec![event(2, "", "z"), event(4, "", "b")],
            vec![Event { hour: Hour(5), ..event(5, "", "old") }],
        ];
        let mut prepared = Prepared::new(&group, 480_000);
        assert!(matches!(prepared.outcomes[2], Err(StoreError::Forgotten { index: 0 })));
        let keys = prepared.events(&group).keys;
        assert_eq!(keys.len(), 4);
        assert!(keys.is_sorted());
        // The server says that the event 4 was there before.
        let known = key(&group[1][1]);
        let stored = keys.into_iter().filter(|key| *key != known).rev().collect();
        let (outcomes, rollups) = prepared.settle(&group, stored);
        let counts: Vec<_> = outcomes.into_iter().flatten().map(|one| (one.stored, one.duplicates)).collect();
        assert_eq!(counts, [(3, 0), (0, 2)]);
        assert!(rollups.keys.is_sorted());
        let count = |rollups: &Rollups<'_>| {
            let mut counts: Vec<(String, i64)> = rollups
                .columns
                .users
                .iter()
                .map(|user| (*user).to_owned())
                .zip(rollups.frames.clone())
                .collect();
            counts.sort();
            counts
        };
        assert_eq!(count(&rollups), [("a".into(), 2), ("b".into(), 1)]);
        assert_eq!(count(&rollups.without(vec![rollup(&group[0][0])])), [("a".into(), 2)]);
        assert!(rollups.without(rollups.keys.clone()).is_empty());
    }
}
