//! Everything the classifier counts, by name and in one place.

use std::time::Duration;

use tokio::time::Instant;

/// Says what each metric is, for whoever looks at `/metrics`.
pub(crate) fn describe() {
    use metrics::{describe_counter, describe_gauge, describe_histogram};
    describe_histogram!("ml_inference_duration_seconds", "One run of a model over a batch");
    describe_histogram!("ml_batch_size", "Images in one run of a model");
    describe_counter!("ml_frames_total", "Images that a model was run on");
    describe_histogram!("classifier_queue_wait_seconds", "From a tensor's arrival to its run");
    describe_counter!("classifier_errors_total", "Tensors answered with an error, by its reason");
    describe_gauge!("classifier_queue_depth", "Tensors that wait for an executor");
    describe_histogram!(
        "classifier_seal_slack_seconds",
        "What was left of a tensor's time when its batch was sealed"
    );
    describe_counter!(
        LATE,
        "Tensors in a batch that was sealed after their deadline: a defect, if it is not 0"
    );
    // It is there to be looked at before anything goes wrong.
    metrics::counter!(LATE).absolute(0);
}

/// What must stay 0: see [`sealed`].
const LATE: &str = "classifier_sealed_late_total";

/// A batch was sealed, with tensors of these deadlines. That none of them had passed is what `Queue::take` is for; this
/// looks again and by itself, so that it would show.
pub(crate) fn sealed(deadlines: impl Iterator<Item = Instant>, at: Instant) {
    for deadline in deadlines {
        metrics::histogram!("classifier_seal_slack_seconds").record(deadline.saturating_duration_since(at));
        if deadline <= at {
            metrics::counter!(LATE).increment(1);
        }
    }
}

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
