//! Everything that can be wrong with a call, each with its gRPC code and stable reason.

use std::time::Duration;

use sightline_mesh::{RpcError, reason};
use tonic::Code;

use crate::store::StoreError;

/// A full queue is worked off within about this time.
const RETRY_QUEUE_FULL: Duration = Duration::from_millis(250);
/// A store that fails (disk full, locked) needs somebody or something to change.
const RETRY_STORE_FAILED: Duration = Duration::from_secs(1);
/// Ids forgotten too early need a person.
const RETRY_FORGOTTEN: Duration = Duration::from_secs(30);

/// Why a batch or a query was refused. Fields are named as in `stats.proto`.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StatsError {
    /// `BATCH_TOO_LARGE`
    #[error("events: {count} events; a batch holds at most {limit}")]
    BatchTooLarge {
        /// As sent.
        count: usize,
        /// `stats.max_batch_events`.
        limit: usize,
    },
    /// `EVENT_ID_INVALID`
    #[error("events[{index}].event_id is not a UUID")]
    EventId {
        /// The place in the batch.
        index: usize,
    },
    /// `EVENT_USER_MISSING`
    #[error("events[{index}].user_id is empty")]
    EventUser {
        /// The place in the batch.
        index: usize,
    },
    /// `EVENT_LEVEL_INVALID`
    #[error("events[{index}].level is unset or unknown ({level})")]
    EventLevel {
        /// The place in the batch.
        index: usize,
        /// As sent.
        level: i32,
    },
    /// `EVENT_SOURCE_INVALID`
    #[error("events[{index}].source is unset or out of range ({source_number})")]
    EventSource {
        /// The place in the batch.
        index: usize,
        /// As sent.
        source_number: i32,
    },
    /// `FIELD_TOO_LONG`
    #[error("{field} has {chars} characters; at most {limit} are allowed")]
    FieldTooLong {
        /// With its place, as in `events[3].user_id`.
        field: String,
        /// As sent.
        chars: usize,
        /// [`crate::MAX_NAME_CHARS`], or what a model may have.
        limit: usize,
    },
    /// `EVENT_TIME_INVALID`
    #[error("events[{index}].occurred_at {problem}")]
    EventTime {
        /// The place in the batch.
        index: usize,
        /// "is unset", "lies … in the future", …
        problem: &'static str,
    },
    /// `EVENT_TOO_OLD`
    #[error(
        "events[{index}].occurred_at is older than the event ids that are remembered \
         (`stats.dedupe_window`): it could count twice"
    )]
    EventTooOld {
        /// The place in the batch.
        index: usize,
    },
    /// `TENANT_MISMATCH`
    #[error("{field} is not the token's tenant")]
    Tenant {
        /// `tenant`, or as in `events[3].tenant`.
        field: String,
    },
    /// `TIME_INVALID`
    #[error("{field} is not a valid timestamp after 1970")]
    Time {
        /// `from` or `to`.
        field: &'static str,
    },
    /// `TIME_RANGE_EMPTY`
    #[error("from must be before to")]
    TimeRange,
    /// `BUCKET_INVALID`
    #[error("bucket: {0} is unknown")]
    Bucket(i32),
    /// `GROUP_BY_INVALID`
    #[error("group_by[{index}]: {group} is unset or unknown")]
    GroupBy {
        /// The place in the list.
        index: usize,
        /// As sent.
        group: i32,
    },
    /// `LEVEL_INVALID`
    #[error("levels[{index}]: {level} is unset or unknown")]
    Level {
        /// The place in the list.
        index: usize,
        /// As sent.
        level: i32,
    },
    /// `FILTER_TOO_LARGE`
    #[error("{field}: {count} values; at most {limit} are allowed")]
    Filter {
        /// The list.
        field: &'static str,
        /// As sent.
        count: usize,
        /// [`crate::MAX_FILTER_VALUES`].
        limit: usize,
    },
    /// `PAGE_SIZE_TOO_LARGE`
    #[error("page_size: {size} is more than {limit}")]
    PageSize {
        /// As sent.
        size: u32,
        /// [`crate::MAX_PAGE_SIZE`].
        limit: u32,
    },
    /// `PAGE_TOKEN_INVALID`
    #[error("page_token is not from an answer to this request: {0}")]
    PageToken(&'static str),
    /// `STATS_QUEUE_FULL`, `STORE_UNAVAILABLE`, `DRAINING`, or `EVENT_TIME_FORGOTTEN`
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl StatsError {
    fn class(&self) -> (Code, &'static str) {
        use Code::{InvalidArgument as Invalid, PermissionDenied, ResourceExhausted, Unavailable};
        match self {
            Self::BatchTooLarge { .. } => (Invalid, "BATCH_TOO_LARGE"),
            Self::EventId { .. } => (Invalid, "EVENT_ID_INVALID"),
            Self::EventUser { .. } => (Invalid, "EVENT_USER_MISSING"),
            Self::EventLevel { .. } => (Invalid, "EVENT_LEVEL_INVALID"),
            Self::EventSource { .. } => (Invalid, "EVENT_SOURCE_INVALID"),
            Self::FieldTooLong { .. } => (Invalid, "FIELD_TOO_LONG"),
            Self::EventTime { .. } => (Invalid, "EVENT_TIME_INVALID"),
            Self::EventTooOld { .. } => (Invalid, "EVENT_TOO_OLD"),
            Self::Tenant { .. } => (PermissionDenied, "TENANT_MISMATCH"),
            Self::Time { .. } => (Invalid, "TIME_INVALID"),
            Self::TimeRange => (Invalid, "TIME_RANGE_EMPTY"),
            Self::Bucket(_) => (Invalid, "BUCKET_INVALID"),
            Self::GroupBy { .. } => (Invalid, "GROUP_BY_INVALID"),
            Self::Level { .. } => (Invalid, "LEVEL_INVALID"),
            Self::Filter { .. } => (Invalid, "FILTER_TOO_LARGE"),
            Self::PageSize { .. } => (Invalid, "PAGE_SIZE_TOO_LARGE"),
            Self::PageToken(_) => (Invalid, "PAGE_TOKEN_INVALID"),
            Self::Store(StoreError::QueueFull { .. }) => (ResourceExhausted, "STATS_QUEUE_FULL"),
            // The intake took its time, so it is the store that forgot too much: not the event's fault, and not for ever.
            Self::Store(StoreError::Forgotten { .. }) => (Unavailable, "EVENT_TIME_FORGOTTEN"),
            Self::Store(StoreError::Closed) => (Unavailable, reason::DRAINING),
            Self::Store(StoreError::Failed(_)) => (Unavailable, "STORE_UNAVAILABLE"),
        }
    }
}

impl From<StatsError> for RpcError {
    fn from(error: StatsError) -> Self {
        let (code, reason) = error.class();
        let message = match &error {
            StatsError::Store(StoreError::Forgotten { index }) => format!(
                "events[{index}].occurred_at lies in a time whose event ids the store has forgotten, though it is within \
                 `stats.dedupe_window`: the server's clock was ahead, or the window was made longer; its log says more"
            ),
            // The cause was logged where it happened; it is the operator's business.
            StatsError::Store(StoreError::Failed(_)) => {
                "the statistics store failed; nothing was acknowledged, send it again later".into()
            }
            other => other.to_string(),
        };
        let rpc = RpcError::new(code, reason, message);
        match error {
            StatsError::Store(StoreError::QueueFull { .. }) => rpc.retry_after(RETRY_QUEUE_FULL),
            StatsError::Store(StoreError::Failed(_) | StoreError::Closed) => {
                rpc.retry_after(RETRY_STORE_FAILED)
            }
            StatsError::Store(StoreError::Forgotten { .. }) => rpc.retry_after(RETRY_FORGOTTEN),
            _ => rpc,
        }
    }
}
