//! What can go wrong, with the code and the stable reason a caller sees.

use std::{path::PathBuf, time::Duration};

use sightline_config::ByteSize;
use sightline_mesh::{RpcError, reason};
use sightline_proto::classifier::PixelFormat;
use tonic::Code;

use crate::backend::BackendError;

/// Why one tensor was not classified.
#[derive(Debug, thiserror::Error)]
pub enum ClassifierError {
    /// No model of this name and version is served.
    #[error("model: {name:?} is not served here; served are: {served}")]
    ModelUnknown {
        /// As asked for.
        name: String,
        /// "name@version", comma separated.
        served: String,
    },
    /// The pixels do not fit the model's input.
    #[error("tensor.pixels: {got} bytes where {model} takes {expected}")]
    TensorSize {
        /// Bytes that came.
        got: usize,
        /// Bytes the model takes.
        expected: usize,
        /// "name@version".
        model: String,
    },
    /// The pixels are encoded otherwise than the model's are.
    #[error("tensor.format: {} where {model} takes {}", format_name(*got), expected.as_str_name())]
    PixelFormat {
        /// As sent.
        got: i32,
        /// What the model's manifest says.
        expected: PixelFormat,
        /// "name@version".
        model: String,
    },
    /// The model gave no scores for pixels that are not what a model's pixels are.
    #[error("tensor.pixels: a value is not within 0 to 255, and the model gives no scores for it")]
    PixelRange,
    /// Another tensor of the stream has this id and is not answered yet.
    #[error("tensor.id: {0} is the id of a tensor that is not answered yet")]
    IdReused(u64),
    /// The message is neither a tensor nor a cancellation.
    #[error("message: neither tensor nor cancel is set")]
    EmptyMessage,
    /// The model's queue is full.
    #[error("the queue of {model} is full ({capacity} tensors)")]
    QueueFull {
        /// "name@version".
        model: String,
        /// `classifier.queue_capacity`.
        capacity: usize,
    },
    /// The queue is so long that the caller's time would be over.
    #[error("the queue of {model} is about {} ms long, too long for the time that was given", wait.as_millis())]
    QueueLong {
        /// "name@version".
        model: String,
        /// How long the tensor would have waited.
        wait: Duration,
    },
    /// The caller's time ran out before an executor was free.
    #[error("the deadline passed while waiting for an executor")]
    Expired,
    /// The caller no longer waits.
    #[error("the caller cancelled")]
    Cancelled,
    /// The process is stopping.
    #[error("the classifier is stopping")]
    Draining,
    /// The model itself failed.
    #[error("the model failed: {0}")]
    Model(#[from] BackendError),
}

/// After this long a full queue has most likely moved on: several batches' time.
const RETRY_FULL_QUEUE: Duration = Duration::from_millis(100);

impl From<ClassifierError> for RpcError {
    fn from(error: ClassifierError) -> Self {
        let (code, reason) = match &error {
            ClassifierError::ModelUnknown { .. } => (Code::NotFound, "MODEL_UNKNOWN"),
            ClassifierError::TensorSize { .. } => (Code::InvalidArgument, "TENSOR_SIZE"),
            ClassifierError::PixelFormat { got, .. } => match PixelFormat::try_from(*got) {
                Ok(PixelFormat::Unspecified) | Err(_) => (Code::InvalidArgument, "PIXEL_FORMAT_UNKNOWN"),
                Ok(_) => (Code::InvalidArgument, "PIXEL_FORMAT_MISMATCH"),
            },
            ClassifierError::PixelRange => (Code::InvalidArgument, "PIXEL_OUT_OF_RANGE"),
            ClassifierError::IdReused(_) => (Code::InvalidArgument, "TENSOR_ID_REUSED"),
            ClassifierError::EmptyMessage => (Code::InvalidArgument, "MESSAGE_EMPTY"),
            ClassifierError::QueueFull { .. } | ClassifierError::QueueLong { .. } => {
                (Code::ResourceExhausted, "QUEUE_FULL")
            }
            ClassifierError::Expired => (Code::DeadlineExceeded, reason::DEADLINE_EXCEEDED),
            ClassifierError::Cancelled => (Code::Cancelled, reason::CANCELLED),
            ClassifierError::Draining => (Code::Unavailable, reason::DRAINING),
            ClassifierError::Model(_) => (Code::Internal, "MODEL_FAILED"),
        };
        let rpc = RpcError::new(code, reason, error.to_string());
        match error {
            ClassifierError::QueueFull { .. } | ClassifierError::QueueLong { .. } => {
                rpc.retry_after(RETRY_FULL_QUEUE)
            }
            _ => rpc,
        }
    }
}

/// A format by its name in the proto, or what came in its place.
fn format_name(format: i32) -> String {
    match PixelFormat::try_from(format) {
        Ok(format) => format.as_str_name().to_owned(),
        Err(_) => format!("{format}, which is no pixel format,"),
    }
}

/// Why the classifier did not start. Each message names the file or setting and the way out.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Nothing to serve.
    #[error(
        "`classifier.models` is empty: name at least one folder with a model.toml (`sightline models import` makes one)"
    )]
    NoModels,
    /// A manifest that cannot be used.
    #[error("model {}: {source}", folder.display())]
    Manifest {
        /// As configured.
        folder: PathBuf,
        /// What is wrong with it.
        source: sightline_model::manifest::ManifestError,
    },
    /// The module cannot be loaded or run.
    #[error("model {model}: {source}")]
    Backend {
        /// "name@version".
        model: String,
        /// What is wrong with it.
        source: BackendError,
    },
    /// One input is larger than a message may be.
    #[error(
        "model {model}: one input takes {input} bytes (`input.width`, `input.height` and `input.transport` in its \
         model.toml), which does not fit into `classifier.max_message` ({limit}): set that to {needed} or more, or \
         take the model out of `classifier.models`"
    )]
    InputTooLarge {
        /// "name@version".
        model: String,
        /// Bytes of one input.
        input: u64,
        /// `classifier.max_message`.
        limit: ByteSize,
        /// The input and what goes with it.
        needed: ByteSize,
    },
    /// Two models with the same name and version.
    #[error("`classifier.models` names {0} twice")]
    Duplicate(String),
    /// An executor thread could not be started.
    #[error("cannot start an executor thread: {0}")]
    Thread(#[from] std::io::Error),
}
