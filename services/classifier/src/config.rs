//! Settings of the classifier.

use std::{net::SocketAddr, path::PathBuf};

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
        /// Executor threads per model, each with its own copy of the module. 0: one per core the process may use.
        pub executors: usize = 0,
        /// Threads inside one run of the model. One is best on a CPU as long as there are as many executors as cores.
        pub intra_op_threads: usize = 1,
        /// The most tensors in one run. 0: measured at start, the largest size that costs no more per tensor.
        pub max_batch: usize = 0,
        /// Tensors waiting per model. Past it the answer is RESOURCE_EXHAUSTED: waiting longer helps nobody.
        pub queue_capacity: usize = 256,
        /// Tensors one stream may have unanswered: enough to keep every executor busy over a round trip.
        pub stream_credits: usize = 64,
        /// The largest message: a 1,024 × 1,024 input at two bytes a value.
        pub max_message: ByteSize = ByteSize::mib(8),
        /// The longest a tensor may wait and run, when its caller gives no time or a longer one.
        pub max_timeout: HumanDuration = HumanDuration::from_secs(30),
        /// How long calls may take to finish when the process is asked to stop.
        pub drain_timeout: HumanDuration = HumanDuration::from_secs(10),
    }
}
