//! What the service counts and times: the one place with the names of its metrics.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use metrics::{counter, describe_counter, describe_gauge, describe_histogram, gauge, histogram};
use tracing::error;

/// A refusal that every sender repeats is logged this often.
const SELDOM: Duration = Duration::from_secs(60);

/// Says what each metric is, for whoever looks at `/metrics`.
pub(crate) fn describe() {
    describe_counter!(
        "stats_events_total",
        "Events committed: stored, or duplicates that were counted before"
    );
    describe_counter!(
        "stats_forgotten_batches_total",
        "Batches refused because ids of their time were forgotten"
    );
    describe_histogram!("stats_commit_events", "Events in one commit");
    describe_histogram!("stats_commit_duration_seconds", "One commit of events to the database");
    describe_gauge!("stats_queue_depth", "Events that wait to be committed");
    describe_histogram!("stats_query_duration_seconds", "One query of the database");
}

/// One group of batches was committed.
pub(crate) fn committed(stored: u64, duplicates: u64, took: Duration) {
    counter!("stats_events_total", "result" => "stored").increment(stored);
    counter!("stats_events_total", "result" => "duplicate").increment(duplicates);
    histogram!("stats_commit_events").record((stored + duplicates) as f64);
    histogram!("stats_commit_duration_seconds").record(took.as_secs_f64());
}

/// So many events wait to be committed.
pub(crate) fn queue_depth(events: usize) {
    gauge!("stats_queue_depth").set(events as f64);
}

/// A query was answered.
pub(crate) fn queried(took: Duration) {
    histogram!("stats_query_duration_seconds").record(took.as_secs_f64());
}

/// A batch was refused because the store forgot ids of a time that is still taken.
pub(crate) fn forgotten() {
    static LOGGED: Mutex<Option<Instant>> = Mutex::new(None);
    counter!("stats_forgotten_batches_total").increment(1);
    let mut logged = LOGGED.lock().unwrap_or_else(PoisonError::into_inner);
    if logged.is_none_or(|at| at.elapsed() >= SELDOM) {
        *logged = Some(Instant::now());
        error!(
            "events are refused and wait with their senders: the store has forgotten event ids of a time that is within \
             `stats.dedupe_window`. Either this host's clock was ahead by more than the window, or the window was made \
             longer. Check the clock. To take the events, stop the service, lower `forgotten_before` (hours since 1970) \
             in the database's table `state` to where the window begins, and start again: what was counted in that time \
             and is sent once more then counts twice"
        );
    }
}
