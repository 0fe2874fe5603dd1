//! What can go wrong, with the code and the stable reason a caller sees.

use std::{path::PathBuf, time::Duration};

use sightline_mesh::{RpcError, reason};
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
    /// The encoding of the pixels is not known.
    #[error("tensor.format: {0} is not a pixel format")]
    PixelFormat(i32),
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
            ClassifierError::PixelFormat(_) => (Code::InvalidArgument, "PIXEL_FORMAT_UNKNOWN"),
            ClassifierError::EmptyMessage => (Code::InvalidArgument, "MESSAGE_EMPTY"),
            ClassifierError::QueueFull { .. } => (Code::ResourceExhausted, "QUEUE_FULL"),
            ClassifierError::Expired => (Code::DeadlineExceeded, reason::DEADLINE_EXCEEDED),
            ClassifierError::Cancelled => (Code::Cancelled, reason::CANCELLED),
            ClassifierError::Draining => (Code::Unavailable, reason::DRAINING),
            ClassifierError::Model(_) => (Code::Internal, "MODEL_FAILED"),
        };
        let rpc = RpcError::new(code, reason, error.to_string());
        match error {
            ClassifierError::QueueFull { .. } => rpc.retry_after(RETRY_FULL_QUEUE),
            _ => rpc,
        }
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
    /// Two models with the same name and version.
    #[error("`classifier.models` names {0} twice")]
    Duplicate(String),
    /// An executor thread could not be started.
    #[error("cannot start an executor thread: {0}")]
    Thread(#[from] std::io::Error),
}
