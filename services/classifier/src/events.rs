//! Everything the classifier counts, by name and in one place.

use std::time::Duration;

/// A batch was run: R10's `ml_inference_duration` and `ml_batch_size`.
pub(crate) fn batch_run(model: &str, size: usize, duration: Duration) {
    let model = model.to_owned();
    metrics::histogram!("ml_inference_duration_seconds", "model" => model.clone()).record(duration);
    metrics::histogram!("ml_batch_size", "model" => model.clone()).record(size as f64);
    metrics::counter!("ml_frames_total", "model" => model).increment(size as u64);
}

/// A tensor left the queue after waiting this long.
pub(crate) fn dequeued(waited: Duration) {
    metrics::histogram!("classifier_queue_wait_seconds").record(waited);
}

/// A tensor was answered with an error.
pub(crate) fn refused(reason: &str) {
    metrics::counter!("classifier_errors_total", "reason" => reason.to_owned()).increment(1);
}

/// How many tensors wait for this model.
pub(crate) fn queue_depth(model: &str, depth: usize) {
    metrics::gauge!("classifier_queue_depth", "model" => model.to_owned()).set(depth as f64);
}
