//! Tables by time: events by day, rollups by month, UTC. Made ahead, or when an event needs one; dropped whole.
//!
//! A partition is attached, which hinders nobody, and detached under a lock that is waited for only briefly. One replica
//! does it at a time, by advisory locks that end with their transaction.

use std::{
    collections::{BTreeSet, HashSet},
    sync::{Mutex, PoisonError},
};

use tokio_postgres::types::Type;
use tracing::info;

use super::{
    connect::Database,
    error::Trouble,
    transaction::{Statement, Transaction},
};

/// Advisory locks of this service: making and dropping partitions.
const MAKING: i64 = 0x534c_7374_0001;
const DROPPING: i64 = 0x534c_7374_0002;
/// How long writers and readers may be made to wait for a partition that is being dropped: it needs a moment without
/// them, and is tried again an hour later.
const DROP_LOCK_MS: u32 = 1_000;
/// Space in a page of rollups for the next versions of its rows: counting up then touches no index.
const ROLLUP_FILL_PERCENT: u8 = 60;
const HOURS: i64 = 24;

/// What a partition holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Partition {
    /// Events of a day, counted from 1970-01-01.
    Day(i64),
    /// Rollups of a month, counted from January of year 0.
    Month(i64),
}

impl Partition {
    /// The partition for events of this hour.
    pub(super) fn day(hour: i64) -> Self {
        Self::Day(hour.div_euclid(HOURS))
    }

    /// The partition for rollups of this hour.
    pub(super) fn month(hour: i64) -> Self {
        let (year, month, _) = date(hour.div_euclid(HOURS));
        Self::Month(year * 12 + month - 1)
    }

    /// The one after it.
    pub(super) fn next(self) -> Self {
        match self {
            Self::Day(day) => Self::Day(day + 1),
            Self::Month(month) => Self::Month(month + 1),
        }
    }

    /// Its first hour.
    pub(super) fn start(self) -> i64 {
        match self {
            Self::Day(day) => day * HOURS,
            Self::Month(month) => days(month.div_euclid(12), month.rem_euclid(12) + 1) * HOURS,
        }
    }

    /// `events_20241004` or `rollups_202410`.
    fn name(self) -> String {
        match self {
            Self::Day(day) => {
                let (year, month, day) = date(day);
                format!("events_{year:04}{month:02}{day:02}")
            }
            Self::Month(month) => {
                format!("rollups_{:04}{:02}", month.div_euclid(12), month.rem_euclid(12) + 1)
            }
        }
    }

    /// What [`Self::name`] made; `None` for any other table.
    fn parse(name: &str) -> Option<Self> {
        let digits =
            |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?;
        let found = if let Some(text) = name.strip_prefix("events_") {
            let (year, rest) = text.split_at_checked(text.len().checked_sub(4)?)?;
            let (month, day): (i64, i64) = (digits(&rest[..2])?, digits(&rest[2..])?);
            Self::Day(days(digits(year)?, month) + day - 1)
        } else {
            let text = name.strip_prefix("rollups_")?;
            let (year, month) = text.split_at_checked(text.len().checked_sub(2)?)?;
            let month: i64 = digits(month)?;
            Self::Month(digits(year)? * 12 + month - 1)
        };
        (found.name() == name).then_some(found)
    }

    fn parent(self) -> &'static str {
        match self {
            Self::Day(_) => "events",
            Self::Month(_) => "rollups",
        }
    }

    fn create(self) -> String {
        let (name, parent) = (self.name(), self.parent());
        let (start, end) = (self.start(), self.next().start());
        let shape = match self {
            Self::Day(_) => ", PRIMARY KEY (key))".to_owned(),
            Self::Month(_) => format!(") WITH (fillfactor = {ROLLUP_FILL_PERCENT})"),
        };
        format!(
            "CREATE TABLE sightline_stats.{name} (LIKE sightline_stats.{parent} INCLUDING DEFAULTS{shape}; \
             ALTER TABLE sightline_stats.{parent} ATTACH PARTITION sightline_stats.{name} \
             FOR VALUES FROM ({start}) TO ({end})"
        )
    }
}

/// Year, month from 1 and day from 1 of a day since 1970-01-01, in the proleptic Gregorian calendar; the method is
/// Howard Hinnant's `civil_from_days`.
fn date(days_since_1970: i64) -> (i64, i64, i64) {
    let shifted = days_since_1970 + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// The day since 1970-01-01 on which a month begins: `days_from_civil` of the same source.
fn days(year: i64, month: i64) -> i64 {
    let year = year - i64::from(month <= 2);
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

/// Partitions that are known to be there.
#[derive(Debug, Default)]
pub(super) struct Known(Mutex<HashSet<Partition>>);

impl Known {
    /// Those that are not known yet.
    pub(super) fn missing(&self, wanted: &BTreeSet<Partition>) -> Vec<Partition> {
        let known = self.lock();
        wanted.iter().copied().filter(|partition| !known.contains(partition)).collect()
    }

    /// Looks at the database again the next time.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<Partition>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const WHICH_EXIST: Statement<'static> = Statement {
    name: "which partitions exist",
    sql: "SELECT name FROM unnest($1::text[]) AS name WHERE to_regclass('sightline_stats.' || name) IS NOT NULL",
};
const ALL: Statement<'static> = Statement {
    name: "all partitions",
    sql: "SELECT child.relname::text, greatest(child.reltuples, 0)::int8
          FROM pg_inherits JOIN pg_class child ON child.oid = inhrelid
          WHERE inhparent IN ('sightline_stats.events'::regclass, 'sightline_stats.rollups'::regclass)",
};

/// Makes the partitions that are not there.
pub(super) async fn make(
    database: &Database,
    begin: String,
    known: &Known,
    wanted: &BTreeSet<Partition>,
) -> Result<(), Trouble> {
    let missing = known.missing(wanted);
    if missing.is_empty() {
        return Ok(());
    }
    let mut transaction = Transaction::new(database, begin).await?;
    let made = make_in(&mut transaction, &missing).await;
    match made {
        Ok(()) => transaction.commit().await?,
        Err(error) => {
            transaction.rollback().await;
            return Err(error);
        }
    }
    known.lock().extend(missing);
    Ok(())
}

async fn make_in(transaction: &mut Transaction<'_>, missing: &[Partition]) -> Result<(), Trouble> {
    transaction.run("lock for making partitions", &format!("SELECT pg_advisory_xact_lock({MAKING})")).await?;
    let names: Vec<String> = missing.iter().map(|partition| partition.name()).collect();
    let rows = transaction.query(WHICH_EXIST, &[(&names, Type::TEXT_ARRAY)]).await?;
    let there: HashSet<String> = rows.iter().map(|row| row.get(0)).collect();
    for partition in missing.iter().filter(|partition| !there.contains(&partition.name())) {
        transaction.run("make a partition", &partition.create()).await?;
    }
    Ok(())
}

/// Drops days of events that end at or before the hour `events`, and months of rollups likewise, and says about how
/// many events went. Does nothing while another replica does it.
pub(super) async fn drop_before(
    database: &Database,
    begin: &str,
    events: i64,
    rollups: i64,
) -> Result<i64, Trouble> {
    let mut transaction = Transaction::new(database, begin.to_owned()).await?;
    let all = transaction.query(ALL, &[]).await;
    let rows = match all {
        Ok(rows) => rows,
        Err(error) => {
            transaction.rollback().await;
            return Err(error);
        }
    };
    transaction.commit().await?;
    let mut dropped = 0;
    for row in rows {
        let (name, about): (String, i64) = (row.get(0), row.get(1));
        let Some(partition) = Partition::parse(&name) else { continue };
        let end = partition.next().start();
        let old = match partition {
            Partition::Day(_) => end <= events,
            Partition::Month(_) => end <= rollups,
        };
        if !old {
            continue;
        }
        if !drop_one(database, begin, partition).await? {
            break;
        }
        info!(partition = name, about_events = about, "dropped a partition past its retention");
        dropped += if let Partition::Day(_) = partition { about } else { 0 };
    }
    Ok(dropped)
}

/// Whether it was this process that may drop.
async fn drop_one(database: &Database, begin: &str, partition: Partition) -> Result<bool, Trouble> {
    let try_lock = Statement {
        name: "lock for dropping partitions",
        sql: &format!("SELECT pg_try_advisory_xact_lock({DROPPING})"),
    };
    let mut transaction = Transaction::new(database, begin.to_owned()).await?;
    let dropped = async {
        let mine = transaction.query(try_lock, &[]).await?.first().is_some_and(|row| row.get(0));
        if mine {
            let (name, parent) = (partition.name(), partition.parent());
            let sql = format!(
                "SET LOCAL lock_timeout = {DROP_LOCK_MS}; \
                 ALTER TABLE sightline_stats.{parent} DETACH PARTITION sightline_stats.{name}; \
                 DROP TABLE sightline_stats.{name}"
            );
            transaction.run("drop a partition", &sql).await?;
        }
        Ok(mine)
    };
    match dropped.await {
        Ok(mine) => {
            transaction.commit().await?;
            Ok(mine)
        }
        Err(error) => {
            transaction.rollback().await;
            Err(error)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_join_without_gaps_and_are_known_by_their_names() {
        assert_eq!(Partition::day(480_000).name(), "events_20241004");
        assert_eq!(Partition::month(480_000).name(), "rollups_202410");
        assert_eq!(Partition::Day(0).name(), "events_19700101");
        // Two leap years, a century and 1970 lie in these 60,000 days.
        let (mut day, mut month) = (Partition::Day(0), Partition::month(0));
        for hour in (0..60_000 * HOURS).step_by(6) {
            if hour >= day.next().start() {
                day = day.next();
            }
            if hour >= month.next().start() {
                month = month.next();
            }
            assert_eq!((Partition::day(hour), Partition::month(hour)), (day, month));
            assert!(day.start() <= hour && month.start() <= hour);
        }
        for partition in [day, month, Partition::Day(20_000), Partition::month(480_000)] {
            assert_eq!(Partition::parse(&partition.name()), Some(partition));
        }
        for foreign in
            ["events_old", "events_", "rollups_2024", "events_20241304", "rollups_202413", "events_2024100é"]
        {
            assert_eq!(Partition::parse(foreign), None, "{foreign}");
        }
    }
}
