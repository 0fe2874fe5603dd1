//! Events to be stored, and CPU time of this process.

use std::{
    fs,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use sightline_stats::store::{Event, Hour};
use uuid::Uuid;

/// The unit of times in /proc: fixed at 100 a second towards user space on every Linux.
const TICK: Duration = Duration::from_millis(10);

/// Random ids, the worst case for an index; users at random, one application each, most frames safe.
pub(crate) fn make(count: usize, users: usize) -> Vec<Event> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let hour = Hour::from_seconds(i64::try_from(seconds).unwrap_or_default());
    (0..count).map(|_| one(hour, users)).collect()
}

fn one(hour: Hour, users: usize) -> Event {
    let id = Uuid::new_v4();
    // The id's bits are as good a source of chance as any.
    let chance = id.as_u128() as u64 as usize;
    let user = chance % users;
    Event {
        id,
        hour,
        tenant: String::new(),
        user: format!("user-{user:06}"),
        application: format!("app-{}", user % 20),
        level: if (chance >> 40).is_multiple_of(20) { 4 } else { 1 },
        source: if (chance >> 50).is_multiple_of(5) { 2 } else { 1 },
    }
}

/// User and system time of all threads of this process.
pub(crate) fn own_cpu() -> Duration {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // After the name, in parentheses, user and system time are the 12th and 13th word.
    let words = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    words.skip(11).take(2).filter_map(|word| word.parse::<u32>().ok()).map(|ticks| TICK * ticks).sum()
}

/// Resident memory of this process in bytes.
pub(crate) fn own_memory() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|word| word.parse::<u64>().ok()).unwrap_or_default() * 1024
}
