//! Everything the classifier counts, by name and in one place.

use std::time::Duration;

/// Says what each metric is, for whoever looks at `/metrics`.
pub(crate) fn describe() {
    use metrics::{describe_counter, describe_gauge, describe_histogram};
    describe_histogram!("ml_inference_duration_seconds", "One run of a model over a batch");
    describe_histogram!("ml_batch_size", "Images in one run of a model");
    describe_counter!("ml_frames_total", "Images that a model was run on");
    describe_histogram!("classifier_queue_wait_seconds", "From a tensor's arrival to its run");
    describe_counter!("classifier_errors_total", "Tensors answered with an error, by its reason");
    describe_gauge!("classifier_queue_depth", "Tensors that wait for an executor");
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
