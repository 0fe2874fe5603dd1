//! Settings of the classifier.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use sightline_config::{ByteSize, HumanDuration};

sightline_config::settings! {
    /// The service that runs models.
    pub struct ClassifierConfig in "classifier" {
        /// Where other services connect.
        pub listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 7402)),
        /// Models to serve: folders that hold a model.toml. The first is the default model.
        pub models: Vec<PathBuf> = vec![],
        /// Where models run: "cpu" or "cuda:0".
        pub device: String = "cpu".into(),
        /// Executor threads per model, each with its own copy of the module. 0: one per core the process may use. At
        /// most 256.
        pub executors: usize = 0,
        /// Threads inside one run of the model. One is best on a CPU as long as there are as many executors as cores.
        /// 1 to 256.
        pub intra_op_threads: usize = 1,
        /// The most tensors in one run. 0: measured at start, the largest size that costs no more per tensor. At
        /// most 1,024.
        pub max_batch: usize = 0,
        /// Tensors waiting per model, 1 to 65,536. Past it the answer is RESOURCE_EXHAUSTED: waiting longer helps nobody.
        pub queue_capacity: usize = 256,
        /// Tensors one stream may have unanswered: enough to keep every executor busy over a round trip.
        /// 1 to 256, which is what a caller buffers.
        pub stream_credits: usize = 64,
        /// The largest message, 4KiB to 1GiB: a 1,024 × 1,024 input at two bytes a value. A model whose input does not
        /// fit is refused at start.
        pub max_message: ByteSize = ByteSize::mib(8),
        /// The longest a tensor may wait and run, when its caller gives no time or a longer one. At most 1h.
        pub max_timeout: HumanDuration = HumanDuration::from_secs(30),
        /// How long calls may take to finish when the process is asked to stop.
        pub drain_timeout: HumanDuration = HumanDuration::from_secs(10),
    }
}

/// A tensor's message besides its pixels: ids, the model's name, a trace context, tags and lengths, all of which are
/// short.
pub(crate) const MESSAGE_OVERHEAD: u64 = 1 << 10;
/// Threads past this are a typing error.
const MAX_THREADS: usize = 256;
/// No device gains from more, and the input buffer is made for it.
const MAX_BATCH: usize = 1_024;
/// At 300 KB a tensor this is 20 GB already.
const MAX_QUEUE: usize = 65_536;
/// Messages that a caller's stream buffers (`mesh::client`); more credits than that are never used.
const MAX_CREDITS: usize = 256;
/// Between these a message can hold a tensor, and gRPC's length field can say its size.
const MESSAGE: (u64, u64) = (4 << 10, 1 << 30);
/// Nobody waits an hour for a frame.
const MAX_TIMEOUT: Duration = Duration::from_secs(3600);

impl ClassifierConfig {
    /// Checks what types cannot.
    ///
    /// # Errors
    /// A sentence naming the key.
    pub fn validate(&self) -> Result<(), String> {
        for (key, value, least, most) in [
            ("executors", self.executors, 0, MAX_THREADS),
            ("intra_op_threads", self.intra_op_threads, 1, MAX_THREADS),
            ("max_batch", self.max_batch, 0, MAX_BATCH),
            ("queue_capacity", self.queue_capacity, 1, MAX_QUEUE),
            ("stream_credits", self.stream_credits, 1, MAX_CREDITS),
        ] {
            if !(least..=most).contains(&value) {
                return Err(format!("`classifier.{key}` ({value}) must be {least} to {most}"));
            }
        }
        if !(MESSAGE.0..=MESSAGE.1).contains(&self.max_message.0) {
            let (least, most) = (ByteSize(MESSAGE.0), ByteSize(MESSAGE.1));
            return Err(format!("`classifier.max_message` ({}) must be {least} to {most}", self.max_message));
        }
        if self.max_timeout.is_zero() || self.max_timeout.0 > MAX_TIMEOUT {
            return Err(format!(
                "`classifier.max_timeout` ({}) must be more than 0s and at most {}",
                self.max_timeout,
                HumanDuration(MAX_TIMEOUT)
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_nonsense_is_named() {
        let good = ClassifierConfig::default;
        assert_eq!(good().validate(), Ok(()));
        for (bad, message) in [
            (
                ClassifierConfig { stream_credits: 0, ..good() },
                "`classifier.stream_credits` (0) must be 1 to 256",
            ),
            (
                ClassifierConfig { stream_credits: 257, ..good() },
                "`classifier.stream_credits` (257) must be 1 to 256",
            ),
            (
                ClassifierConfig { queue_capacity: 0, ..good() },
                "`classifier.queue_capacity` (0) must be 1 to 65536",
            ),
            (
                ClassifierConfig { executors: 5_000, ..good() },
                "`classifier.executors` (5000) must be 0 to 256",
            ),
            (
                ClassifierConfig { intra_op_threads: 0, ..good() },
                "`classifier.intra_op_threads` (0) must be 1 to 256",
            ),
            (
                ClassifierConfig { max_batch: 4_096, ..good() },
                "`classifier.max_batch` (4096) must be 0 to 1024",
            ),
            (
                ClassifierConfig { max_message: ByteSize(0), ..good() },
                "`classifier.max_message` (0B) must be 4KiB to 1GiB",
            ),
            (
                ClassifierConfig { max_timeout: HumanDuration::from_secs(0), ..good() },
                "`classifier.max_timeout` (0s) must be more than 0s and at most 1h",
            ),
            (
                ClassifierConfig { max_timeout: HumanDuration::from_secs(u64::MAX), ..good() },
                "must be more than 0s and at most 1h",
            ),
        ] {
            let said = bad.validate().unwrap_err();
            assert!(said.ends_with(message), "{said}");
        }
    }
}
