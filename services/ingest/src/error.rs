//! What a client can be told, with code and stable reason. The reasons are part of the API: never renamed.

use std::time::Duration;

use sightline_mesh::RpcError;
use tonic::Code;

/// Why a frame has no verdict.
#[derive(Debug, Clone, thiserror::Error)]
pub enum IngestError {
    /// The request has no frame in it.
    #[error("frame: is not set")]
    FrameMissing,
    /// The frame has no image.
    #[error("frame.image: is empty")]
    ImageEmpty,
    /// Too many bytes.
    #[error("frame.image: {bytes} bytes; at most {limit} are taken (ingest.max_image)")]
    ImageTooLarge {
        /// As sent.
        bytes: usize,
        /// `ingest.max_image`.
        limit: usize,
    },
    /// Not an image at all.
    #[error("frame.image: the bytes are no image; JPEG, PNG, WebP and GIF are taken")]
    ImageUnrecognised,
    /// An image of a kind that is not decoded.
    #[error("frame.image: {0} is not supported; JPEG, PNG, WebP and GIF are taken")]
    ImageUnsupported(&'static str),
    /// Too many pixels.
    #[error(
        "frame.image: {width} × {height} pixels; at most {max_pixels} and {max_side} on a side are taken"
    )]
    ImageDimensions {
        /// As its header says.
        width: u32,
        /// As its header says.
        height: u32,
        /// `ingest.max_pixels`.
        max_pixels: u64,
        /// `ingest.max_side`.
        max_side: u32,
    },
    /// The end is missing.
    #[error("frame.image: the {0} ends too early")]
    ImageTruncated(&'static str),
    /// The decoder gave up.
    #[error("frame.image: the {0} cannot be decoded")]
    ImageCorrupt(&'static str),
    /// A field that must be a UUID is not.
    #[error("frame.frame_id: is not a UUID")]
    FrameIdInvalid,
    /// Nobody said who the user is.
    #[error("frame.user_id: is empty, and neither the token nor the stream's hello names the user")]
    UserMissing,
    /// The token names another user.
    #[error("frame.user_id: is not the user of the token")]
    UserMismatch,
    /// The token's tenant is too long.
    #[error("the token's tenant: longer than {0} characters")]
    TenantTooLong(usize),
    /// A text field is too long.
    #[error("frame.{field}: longer than {limit} characters")]
    FieldTooLong {
        /// The field.
        field: &'static str,
        /// In characters.
        limit: usize,
    },
    /// A time that cannot be.
    #[error("frame.captured_at: {0}")]
    CapturedAtInvalid(&'static str),
    /// The model is not served.
    #[error("frame.model: {asked:?} is not served; served are: {served}")]
    ModelUnknown {
        /// As asked for.
        asked: String,
        /// "name@version", comma separated.
        served: String,
    },
    /// A rule of the rate limiter refuses.
    #[error("over the rate limit {rule:?}")]
    RateLimited {
        /// The rule's name.
        rule: String,
        /// When it will pass.
        retry_after: Duration,
    },
    /// Too much at once.
    #[error("ingest holds as many bytes as it may (ingest.max_bytes_in_flight)")]
    Overloaded,
    /// A batch with too many frames.
    #[error("frames: {count} frames; at most {limit} are taken (ingest.max_batch)")]
    BatchTooLarge {
        /// As sent.
        count: usize,
        /// `ingest.max_batch`.
        limit: usize,
    },
    /// A batch without frames.
    #[error("frames: is empty")]
    BatchEmpty,
    /// The stream did not begin with its hello, or said it twice.
    #[error("message: {0}")]
    StreamProtocol(&'static str),
    /// The user has as many streams open as allowed.
    #[error("the user has {0} streams open already (ingest.max_streams_per_user)")]
    TooManyStreams(usize),
    /// A silent stream.
    #[error("nothing was heard for {0:?} (ingest.stream_idle_timeout)")]
    StreamIdle(Duration),
    /// The rate limiter is away and frames are to be refused then.
    #[error("the rate limiter cannot be reached (ingest.ratelimiter_away is \"closed\")")]
    LimiterAway,
    /// An error of the mesh or of another service, as it is.
    #[error("{0}")]
    Rpc(#[from] RpcError),
}

/// After this long the frames in flight now are most likely answered.
const RETRY_OVERLOAD: Duration = Duration::from_millis(500);

/// A stream that its client left without a word is noticed about this soon, or by then its user has closed another.
const RETRY_STREAMS: Duration = Duration::from_secs(5);

impl From<IngestError> for RpcError {
    fn from(error: IngestError) -> Self {
        use IngestError as E;
        let (code, reason) = match &error {
            E::FrameMissing => (Code::InvalidArgument, "FRAME_MISSING"),
            E::ImageEmpty => (Code::InvalidArgument, "IMAGE_EMPTY"),
            E::ImageTooLarge { .. } => (Code::InvalidArgument, "IMAGE_TOO_LARGE"),
            E::ImageUnrecognised => (Code::InvalidArgument, "IMAGE_UNRECOGNISED"),
            E::ImageUnsupported(_) => (Code::InvalidArgument, "IMAGE_UNSUPPORTED"),
            E::ImageDimensions { .. } => (Code::InvalidArgument, "IMAGE_DIMENSIONS"),
            E::ImageTruncated(_) => (Code::InvalidArgument, "IMAGE_TRUNCATED"),
            E::ImageCorrupt(_) => (Code::InvalidArgument, "IMAGE_CORRUPT"),
            E::FrameIdInvalid => (Code::InvalidArgument, "FRAME_ID_INVALID"),
            E::UserMissing => (Code::InvalidArgument, "USER_MISSING"),
            E::UserMismatch => (Code::PermissionDenied, "USER_MISMATCH"),
            E::TenantTooLong(_) => (Code::PermissionDenied, "TENANT_TOO_LONG"),
            E::FieldTooLong { .. } => (Code::InvalidArgument, "FIELD_TOO_LONG"),
            E::CapturedAtInvalid(_) => (Code::InvalidArgument, "CAPTURED_AT_INVALID"),
            E::ModelUnknown { .. } => (Code::NotFound, "MODEL_UNKNOWN"),
            E::RateLimited { .. } => (Code::ResourceExhausted, "RATE_LIMITED"),
            E::Overloaded => (Code::ResourceExhausted, "OVERLOADED"),
            E::BatchTooLarge { .. } => (Code::InvalidArgument, "BATCH_TOO_LARGE"),
            E::BatchEmpty => (Code::InvalidArgument, "BATCH_EMPTY"),
            E::StreamProtocol(_) => (Code::InvalidArgument, "STREAM_PROTOCOL"),
            E::TooManyStreams(_) => (Code::ResourceExhausted, "TOO_MANY_STREAMS"),
            E::StreamIdle(_) => (Code::DeadlineExceeded, "STREAM_IDLE"),
            E::LimiterAway => (Code::Unavailable, "LIMITER_AWAY"),
            E::Rpc(error) => return error.clone(),
        };
        let rpc = RpcError::new(code, reason, error.to_string());
        match error {
            E::RateLimited { retry_after, .. } => rpc.retry_after(retry_after),
            E::Overloaded => rpc.retry_after(RETRY_OVERLOAD),
            E::TooManyStreams(_) => rpc.retry_after(RETRY_STREAMS),
            _ => rpc,
        }
    }
}

impl From<IngestError> for tonic::Status {
    fn from(error: IngestError) -> Self {
        RpcError::from(error).into()
    }
}
