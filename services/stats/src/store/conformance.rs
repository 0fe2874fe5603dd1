//! What every store must do. [`conformance!`] makes a test module out of a fixture.

use std::{collections::BTreeMap, future::Future, sync::Arc};

use rand::{Rng, SeedableRng, rngs::StdRng};
use uuid::Uuid;

use super::{Bucket, Event, Group, Hour, Key, Page, Query, Recorded, Row, Store, StoreError};

/// Makes stores over the same, at first empty, data.
pub(super) trait Fixture {
    fn open(&self) -> impl Future<Output = Arc<dyn Store>>;
}

/// One test per promise, each on an empty store that `$fixture` makes, an `Option`.
macro_rules! conformance {
    ($suite:ident, $fixture:expr, $($promise:ident),+ $(,)?) => {
        mod $suite {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $promise() {
                    // A fixture whose server is not installed has said so.
                    let Some(fixture) = $fixture else { return };
                    $crate::store::conformance::$promise(&fixture).await;
                }
            )+
        }
    };
    ($suite:ident, $fixture:expr) => {
        $crate::store::conformance::conformance!(
            $suite,
            $fixture,
            redelivery_changes_nothing,
            duplicates_inside_a_batch_count_once,
            tenants_do_not_hide_each_others_ids,
            concurrent_writers_are_counted_exactly,
            every_question_agrees_with_a_plain_count,
            pages_join_to_the_whole,
            a_total_of_nothing_is_one_row_of_zero,
            odd_names_are_kept_as_they_are,
            forgetting_ids_keeps_counts_and_refuses_their_time,
            a_refused_batch_spares_its_neighbours,
            a_closed_store_says_so,
        );
    };
}
/// For stores that outlive their process.
macro_rules! conformance_durable {
    ($suite:ident, $fixture:expr) => {
        $crate::store::conformance::conformance!($suite, $fixture, counts_survive_reopening);
    };
}
pub(super) use {conformance, conformance_durable};

const START: i64 = 480_000;

fn event(user: &str, hour: i64) -> Event {
    Event {
        id: Uuid::new_v4(),
        hour: Hour(START + hour),
        tenant: String::new(),
        user: user.into(),
        application: "app".into(),
        level: 1,
        source: 1,
    }
}

/// Events of a small world, so that rollups hold several each.
fn random_events(seed: u64, count: usize) -> Vec<Event> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut event = || Event {
        id: Uuid::from_u128(random.random()),
        hour: Hour(START + random.random_range(0..60)),
        tenant: ["", "acme"][random.random_range(0..2)].into(),
        user: format!("user-{}", random.random_range(0..7)),
        application: ["", "chat", "camera"][random.random_range(0..3)].into(),
        level: random.random_range(1..=5),
        source: random.random_range(1..=2),
    };
    (0..count).map(|_| event()).collect()
}

fn total() -> Query {
    Query { limit: 10, ..Query::default() }
}

async fn count(store: &dyn Store, query: Query) -> u64 {
    let page = store.query(query).await.unwrap();
    assert_eq!((page.rows.len(), page.more), (1, false));
    page.rows[0].frames
}

/// What a store should answer, from the list of distinct events.
fn expected(events: &[Event], query: &Query) -> Vec<Row> {
    let mut counts = BTreeMap::<Vec<Key>, u64>::new();
    let wanted = |event: &&Event| {
        event.tenant == query.tenant
            && query.from.is_none_or(|from| event.hour >= from)
            && query.to.is_none_or(|to| event.hour < to)
            && (query.users.is_empty() || query.users.contains(&event.user))
            && (query.applications.is_empty() || query.applications.contains(&event.application))
            && (query.levels.is_empty() || query.levels.contains(&event.level))
    };
    for event in events.iter().filter(wanted) {
        let bucket = query.bucket.map(|bucket| match bucket {
            Bucket::Hour => Key::Number(event.hour.0),
            Bucket::Day => Key::Number(event.hour.0 - event.hour.0 % 24),
        });
        let groups = query.groups.iter().map(|group| match group {
            Group::User => Key::Text(event.user.clone()),
            Group::Application => Key::Text(event.application.clone()),
            Group::Level => Key::Number(event.level.into()),
            Group::Source => Key::Number(event.source.into()),
        });
        *counts.entry(bucket.into_iter().chain(groups).collect()).or_default() += 1;
    }
    counts.into_iter().map(|(key, frames)| Row { key, frames }).collect()
}

pub(super) async fn redelivery_changes_nothing(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let events = random_events(1, 500);
    let first = store.record(events.clone()).await.unwrap();
    assert_eq!(first, Recorded { stored: 500, duplicates: 0 });
    let query = Query { groups: vec![Group::User, Group::Level], limit: 1000, ..Query::default() };
    let before = store.query(query.clone()).await.unwrap();
    for _ in 0..3 {
        let again = store.record(events.clone()).await.unwrap();
        assert_eq!(again, Recorded { stored: 0, duplicates: 500 });
    }
    assert_eq!(store.query(query).await.unwrap(), before);
    let partly: Vec<Event> = events[400..].iter().cloned().chain([event("new", 0)]).collect();
    assert_eq!(store.record(partly).await.unwrap(), Recorded { stored: 1, duplicates: 100 });
    assert_eq!(count(&*store, Query { users: vec!["new".into()], ..total() }).await, 1);
}

pub(super) async fn duplicates_inside_a_batch_count_once(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let one = event("u", 0);
    // The same id with other fields is the same event: the first is kept.
    let changed = Event { user: "other".into(), hour: Hour(START + 5), ..one.clone() };
    let recorded = store.record(vec![one.clone(), changed, event("u", 0), one]).await.unwrap();
    assert_eq!(recorded, Recorded { stored: 2, duplicates: 2 });
    assert_eq!(count(&*store, Query { users: vec!["u".into()], ..total() }).await, 2);
    assert_eq!(store.record(vec![]).await.unwrap(), Recorded::default());
}

pub(super) async fn tenants_do_not_hide_each_others_ids(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let one = event("u", 0);
    let other = Event { tenant: "other".into(), ..one.clone() };
    assert_eq!(store.record(vec![one, other]).await.unwrap().stored, 2);
    assert_eq!(count(&*store, total()).await, 1);
    assert_eq!(count(&*store, Query { tenant: "other".into(), ..total() }).await, 1);
    assert_eq!(count(&*store, Query { tenant: "third".into(), ..total() }).await, 0);
}

pub(super) async fn concurrent_writers_are_counted_exactly(fixture: &impl Fixture) {
    let store = fixture.open().await;
    // Every event is sent by two of the eight writers, in batches that do not line up.
    let events = random_events(2, 4_000);
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8 {
        let store = Arc::clone(&store);
        let share: Vec<Event> = events.iter().skip(writer % 4).step_by(4).cloned().collect();
        writers.spawn(async move {
            let mut stored = 0;
            for batch in share.chunks(if writer < 4 { 33 } else { 170 }) {
                stored += store.record(batch.to_vec()).await.unwrap().stored as usize;
            }
            stored
        });
    }
    let stored: usize = writers.join_all().await.into_iter().sum();
    assert_eq!(stored, events.len());
    let tenants = [String::new(), "acme".into()];
    let mut counted = 0;
    for tenant in tenants {
        counted += count(&*store, Query { tenant, ..total() }).await;
    }
    assert_eq!(counted, events.len() as u64);
}

pub(super) async fn every_question_agrees_with_a_plain_count(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let events = random_events(3, 3_000);
    store.record(events.clone()).await.unwrap();
    let all = [Group::User, Group::Application, Group::Level, Group::Source];
    for bucket in [None, Some(Bucket::Hour), Some(Bucket::Day)] {
        for groups in
            [&all[..1], &all[1..2], &all[2..3], &all[3..], &all[1..3], &all, &[Group::Source, Group::User]]
        {
            let query = Query {
                tenant: "acme".into(),
                bucket,
                groups: groups.to_vec(),
                limit: 10_000,
                ..Query::default()
            };
            let filtered = Query {
                from: Some(Hour(START + 10)),
                to: Some(Hour(START + 40)),
                users: vec!["user-1".into(), "user-2".into(), "nobody".into()],
                applications: vec!["chat".into(), String::new()],
                levels: vec![1, 5],
                ..query.clone()
            };
            for query in [query, filtered] {
                let page = store.query(query.clone()).await.unwrap();
                assert_eq!(page, Page { rows: expected(&events, &query), more: false }, "{query:?}");
            }
        }
    }
}

pub(super) async fn pages_join_to_the_whole(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let events = random_events(4, 2_000);
    store.record(events.clone()).await.unwrap();
    for (bucket, groups) in [
        (Some(Bucket::Hour), vec![Group::Application, Group::User]),
        (Some(Bucket::Day), vec![Group::Level]),
        (Some(Bucket::Day), vec![]),
        (None, vec![Group::User, Group::Source]),
    ] {
        for limit in [1, 7, 10_000] {
            let mut query = Query { bucket, groups: groups.clone(), limit, ..Query::default() };
            let whole = expected(&events, &query);
            let mut rows = Vec::new();
            loop {
                let page = store.query(query.clone()).await.unwrap();
                assert!(page.rows.len() <= limit && !page.rows.is_empty());
                rows.extend(page.rows);
                if !page.more {
                    break;
                }
                query.after = rows.last().map(|row: &Row| row.key.clone());
            }
            assert_eq!(rows, whole, "{query:?}");
        }
    }
}

pub(super) async fn a_total_of_nothing_is_one_row_of_zero(fixture: &impl Fixture) {
    let store = fixture.open().await;
    assert_eq!(count(&*store, total()).await, 0);
    let by_user = Query { groups: vec![Group::User], ..total() };
    assert_eq!(store.query(by_user).await.unwrap(), Page::default());
}

pub(super) async fn odd_names_are_kept_as_they_are(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let mut names =
        ["'; DROP TABLE events;--", "\"[]\\", "12", "1.0", "Ünïcode 🦀", " u", "u ", "U", "u", "%", "nul\0l"];
    store.record(names.iter().map(|name| event(name, 0)).collect()).await.unwrap();
    let by_user = Query { groups: vec![Group::User], limit: 100, ..Query::default() };
    let page = store.query(by_user).await.unwrap();
    names.sort_unstable();
    let found: Vec<Key> = page.rows.into_iter().flat_map(|row| row.key).collect();
    assert_eq!(found, names.map(|name| Key::Text(name.into())));
    for name in names {
        assert_eq!(count(&*store, Query { users: vec![name.into()], ..total() }).await, 1, "{name:?}");
    }
}

pub(super) async fn forgetting_ids_keeps_counts_and_refuses_their_time(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let events: Vec<Event> = (0..100).map(|n| event("u", n)).collect();
    store.record(events.clone()).await.unwrap();
    while !store.prune(Hour(START + 40), 7).await.unwrap().finished {}
    assert!(matches!(
        store.record(vec![events[50].clone(), events[39].clone()]).await,
        Err(StoreError::Forgotten { index: 1 })
    ));
    assert_eq!(store.record(events[40..].to_vec()).await.unwrap(), Recorded { stored: 0, duplicates: 60 });
    // A clock that goes back does not open the door again.
    store.prune(Hour(START), 1000).await.unwrap();
    assert!(store.record(vec![events[39].clone()]).await.is_err());
    assert_eq!(count(&*store, total()).await, 100);
}

pub(super) async fn a_refused_batch_spares_its_neighbours(fixture: &impl Fixture) {
    let store = fixture.open().await;
    store.prune(Hour(START), 10).await.unwrap();
    let (good, bad) = tokio::join!(
        store.record(vec![event("u", 0), event("u", 1)]),
        store.record(vec![event("u", 0), event("u", -1)]),
    );
    assert_eq!(good.unwrap().stored, 2);
    assert!(matches!(bad, Err(StoreError::Forgotten { index: 1 })));
    assert_eq!(count(&*store, total()).await, 2);
}

pub(super) async fn a_closed_store_says_so(fixture: &impl Fixture) {
    let store = fixture.open().await;
    let waiting = tokio::spawn({
        let store = Arc::clone(&store);
        async move { store.record(vec![event("u", 0)]).await }
    });
    store.close().await;
    // What was in time is done, the rest is refused; nothing hangs.
    assert!(matches!(waiting.await.unwrap(), Ok(Recorded { stored: 1, .. }) | Err(StoreError::Closed)));
    assert!(matches!(store.record(vec![event("u", 0)]).await, Err(StoreError::Closed)));
    assert!(matches!(store.query(total()).await, Err(StoreError::Closed)));
    assert!(matches!(store.prune(Hour(0), 1).await, Err(StoreError::Closed)));
    store.close().await;
}

pub(super) async fn counts_survive_reopening(fixture: &impl Fixture) {
    let events = random_events(5, 1_000);
    for round in 0..3 {
        let store = fixture.open().await;
        let recorded = store.record(events.clone()).await.unwrap();
        assert_eq!(recorded.stored, if round == 0 { 1_000 } else { 0 });
        let query = Query { bucket: Some(Bucket::Day), groups: vec![Group::User], ..total() };
        let query = Query { limit: 1_000, ..query };
        assert_eq!(store.query(query.clone()).await.unwrap().rows, expected(&events, &query));
        store.close().await;
    }
}
