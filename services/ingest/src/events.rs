//! Everything ingest counts, by name and in one place (R10). No user, no application, no id is ever a label.

use std::time::Duration;

use sightline_proto::verdict::{Level, VerdictSource};

/// Says what each metric is, for whoever looks at `/metrics`.
pub(crate) fn describe() {
    use metrics::{describe_counter, describe_gauge, describe_histogram};
    describe_counter!("ingest_frames_total", "Frames that were answered, by result and the error's reason");
    describe_counter!("nsfw_detections_total", "Frames that got a verdict, by its level");
    describe_counter!("ingest_verdicts_total", "Frames that got a verdict, by where its scores came from");
    describe_histogram!(
        "request_duration_seconds",
        "A frame's way from its arrival to its verdict, over any call"
    );
    describe_counter!("cache_requests_total", "Lookups of verdicts, by cache and whether it was there");
    describe_histogram!("ingest_decode_duration_seconds", "Decoding and resizing one image");
    describe_counter!(
        "ingest_unlimited_frames_total",
        "Frames that passed while no rate limiter could be reached"
    );
    describe_gauge!("ingest_streams", "Streams of clients that are open");
    describe_gauge!("ingest_record_buffer_events", "Events that the statistics have not acknowledged yet");
    describe_counter!("ingest_recorded_events_total", "Events that the statistics have acknowledged");
    describe_counter!("ingest_dropped_events_total", "Events that were lost because the buffer was full");
    describe_counter!(
        "ingest_spooled_events_total",
        "Events that went to the disk while the statistics were away"
    );
    describe_gauge!("ingest_spool_events", "Events that wait on the disk");
    describe_gauge!("ingest_spool_bytes", "Bytes of events that wait on the disk");
    describe_gauge!("active_users", "About how many users sent a frame within the last five to ten minutes");
}

/// About so many users are active.
pub(crate) fn active_users(count: f64) {
    metrics::gauge!("active_users").set(count);
}

/// A frame has its verdict.
pub(crate) fn verdict(level: Level, source: VerdictSource, took: Duration) {
    metrics::counter!("ingest_frames_total", "result" => "ok", "reason" => "").increment(1);
    metrics::counter!("nsfw_detections_total", "level" => level.short_name()).increment(1);
    metrics::counter!("ingest_verdicts_total", "source" => source.short_name()).increment(1);
    metrics::histogram!("request_duration_seconds").record(took);
}

/// A frame has none.
pub(crate) fn failed(reason: &str) {
    metrics::counter!("ingest_frames_total", "result" => "error", "reason" => reason.to_owned()).increment(1);
}

/// The cache was asked.
pub(crate) fn cache(hit: bool) {
    metrics::counter!("cache_requests_total", "cache" => "memory", "result" => if hit { "hit" } else { "miss" })
        .increment(1);
}

/// What the shared cache said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shared {
    /// The scores.
    Hit,
    /// Nothing: the lease is ours.
    Miss,
    /// Another replica classifies.
    Waited,
    /// Redis is slow or away.
    Bypassed,
    /// Redis refused.
    Error,
}

/// The shared cache was asked.
pub(crate) fn shared_cache(said: Shared) {
    let result = match said {
        Shared::Hit => "hit",
        Shared::Miss => "miss",
        Shared::Waited => "waited",
        Shared::Bypassed => "bypassed",
        Shared::Error => "error",
    };
    metrics::counter!("cache_requests_total", "cache" => "redis", "result" => result).increment(1);
}

/// An image was decoded and resized.
pub(crate) fn decoded(took: Duration) {
    metrics::histogram!("ingest_decode_duration_seconds").record(took);
}

/// A frame passed although no rate limiter could be reached.
pub(crate) fn unlimited() {
    metrics::counter!("ingest_unlimited_frames_total").increment(1);
}

/// A client's stream began (+1) or ended (−1).
pub(crate) fn streams(change: f64) {
    metrics::gauge!("ingest_streams").increment(change);
}

/// So many events wait for the statistics.
pub(crate) fn record_depth(events: usize) {
    metrics::gauge!("ingest_record_buffer_events").set(events as f64);
}

/// Events were acknowledged by the statistics.
pub(crate) fn recorded(events: usize) {
    metrics::counter!("ingest_recorded_events_total").increment(events as u64);
}

/// An event was lost because the buffer was full.
pub(crate) fn record_dropped() {
    metrics::counter!("ingest_dropped_events_total").increment(1);
}

/// Events were lost: the spool was full, or a disk did not give them back, or there was no spool at a stop.
pub(crate) fn records_dropped(events: u64) {
    metrics::counter!("ingest_dropped_events_total").increment(events);
}

/// Events were put on disk.
pub(crate) fn spooled(events: usize) {
    metrics::counter!("ingest_spooled_events_total").increment(events as u64);
}

/// So many events, and bytes, wait on disk.
pub(crate) fn spool_depth(events: u64, bytes: u64) {
    metrics::gauge!("ingest_spool_events").set(events as f64);
    metrics::gauge!("ingest_spool_bytes").set(bytes as f64);
}
