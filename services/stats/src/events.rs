//! What the service counts and times: the one place with the names of its metrics.

use std::time::Duration;

use metrics::{counter, gauge, histogram};

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
