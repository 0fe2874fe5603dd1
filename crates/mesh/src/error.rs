//! The one error that crosses the wire, as a status of a unary call or as an item of a stream.

use std::{collections::HashMap, time::Duration};

use sightline_wire::status::ItemError;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// The domain of every `google.rpc.ErrorInfo` that Sightline sends.
pub const DOMAIN: &str = "sightline";

/// Reasons that more than one service gives. They are part of the API: never renamed.
pub mod reason {
    /// The deadline passed before the work was done.
    pub const DEADLINE_EXCEEDED: &str = "DEADLINE_EXCEEDED";
    /// The caller went away.
    pub const CANCELLED: &str = "CANCELLED";
    /// No replica of a service that is needed could be reached in time.
    pub const SERVICE_UNAVAILABLE: &str = "SERVICE_UNAVAILABLE";
    /// The service sheds calls, so this process held back its own: nothing was sent.
    pub const THROTTLED: &str = "THROTTLED";
    /// This side has as many calls open to a service, or waiting for it, as it may; nothing was sent.
    pub const CLIENT_OVERLOADED: &str = "CLIENT_OVERLOADED";
    /// The server is stopping; another replica will serve.
    pub const DRAINING: &str = "DRAINING";
    /// A token is required and none was sent.
    pub const TOKEN_MISSING: &str = "TOKEN_MISSING";
    /// The token cannot be read.
    pub const TOKEN_INVALID: &str = "TOKEN_INVALID";
    /// The token is longer than is taken.
    pub const TOKEN_TOO_LARGE: &str = "TOKEN_TOO_LARGE";
    /// The token is not signed, or by an algorithm that is not taken, or not the one that its key is for.
    pub const TOKEN_ALGORITHM: &str = "TOKEN_ALGORITHM";
    /// The token asks for an extension that is not supported.
    pub const TOKEN_CRITICAL: &str = "TOKEN_CRITICAL";
    /// No configured key can be the token's.
    pub const TOKEN_KEY: &str = "TOKEN_KEY";
    /// The keys to check tokens with have not been fetched yet.
    pub const TOKEN_KEYS_UNAVAILABLE: &str = "TOKEN_KEYS_UNAVAILABLE";
    /// The token's signature does not fit its key.
    pub const TOKEN_SIGNATURE: &str = "TOKEN_SIGNATURE";
    /// The token is past its time.
    pub const TOKEN_EXPIRED: &str = "TOKEN_EXPIRED";
    /// The token is not yet valid.
    pub const TOKEN_NOT_YET_VALID: &str = "TOKEN_NOT_YET_VALID";
    /// The token says that it was issued in the future.
    pub const TOKEN_ISSUED_LATER: &str = "TOKEN_ISSUED_LATER";
    /// The token is of an issuer that is not trusted.
    pub const TOKEN_ISSUER: &str = "TOKEN_ISSUER";
    /// The token lacks a claim that is needed.
    pub const TOKEN_CLAIM_MISSING: &str = "TOKEN_CLAIM_MISSING";
    /// A claim of the token is of the wrong type.
    pub const TOKEN_CLAIM: &str = "TOKEN_CLAIM";
    /// The call is for another tenant than the token's.
    pub const TOKEN_TENANT: &str = "TOKEN_TENANT";
    /// The token is for somebody else.
    pub const TOKEN_AUDIENCE: &str = "TOKEN_AUDIENCE";
    /// The token does not allow this call.
    pub const TOKEN_SCOPE: &str = "TOKEN_SCOPE";
    /// The message is larger than the server takes.
    pub const MESSAGE_TOO_LARGE: &str = "MESSAGE_TOO_LARGE";
    /// The message is compressed and cannot be unpacked.
    pub const MESSAGE_DAMAGED: &str = "MESSAGE_DAMAGED";
    /// The server has as much to do as it may; another replica, or the same a little later, will serve.
    pub const OVERLOADED: &str = "OVERLOADED";
    /// The caller has as many calls open as one may.
    pub const TOO_MANY_CALLS: &str = "TOO_MANY_CALLS";
    /// The message arrived too slowly.
    pub const RECEIVE_TIMEOUT: &str = "RECEIVE_TIMEOUT";
    /// A fault of ours; the log has the cause.
    pub const INTERNAL: &str = "INTERNAL";
    /// An answer that does not fit the protocol.
    pub const PROTOCOL: &str = "PROTOCOL";
}

/// What tonic's messages about compressed messages begin with (`codec/decode.rs`); they have no other mark.
const UNPACKING: &str = "Error decompressing: ";
/// What they end with where it is not an answer that is damaged.
const SENDING: &str = ", while sending request";

/// An error as a caller sees it: code, stable reason and a message for people (promise P8).
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct RpcError {
    /// The canonical gRPC code.
    pub code: Code,
    /// Stable, upper snake case; the `reason` of the `ErrorInfo`.
    pub reason: String,
    /// Names the field or the limit.
    pub message: String,
    /// When the same call may be tried again.
    pub retry_after: Option<Duration>,
}

impl RpcError {
    /// An error with a code, a reason and a message.
    pub fn new(code: Code, reason: impl Into<String>, message: impl Into<String>) -> Self {
        Self { code, reason: reason.into(), message: message.into(), retry_after: None }
    }

    /// `INVALID_ARGUMENT`.
    pub fn invalid(reason: &'static str, message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, reason, message)
    }

    /// `DEADLINE_EXCEEDED`, saying during which stage.
    pub fn deadline(stage: &str) -> Self {
        Self::new(
            Code::DeadlineExceeded,
            reason::DEADLINE_EXCEEDED,
            format!("the deadline passed during: {stage}"),
        )
    }

    /// `UNAVAILABLE`.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(Code::Unavailable, reason::SERVICE_UNAVAILABLE, message)
    }

    /// `INTERNAL`; the message must not carry what the caller sent.
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, reason::INTERNAL, message)
    }

    /// The same error with a time after which a retry makes sense.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        self.retry_after = Some(after);
        self
    }

    /// Reads what our own server's transport says of a message that a client sent: one over the size limit, packed or
    /// not, and one that cannot be unpacked have a reason like every other error (P8).
    pub fn from_inbound(status: &Status) -> Self {
        Self::of_transport(status).unwrap_or_else(|| Self::from_status(status))
    }

    /// What the transport says by itself; `None` for what others say.
    pub(crate) fn of_transport(status: &Status) -> Option<Self> {
        if !status.details().is_empty() {
            return None;
        }
        let unpacking = status.message().strip_prefix(UNPACKING);
        let sent = unpacking.and_then(|problem| problem.strip_suffix(SENDING));
        let (code, reason, message) = match (status.code(), sent.or(unpacking)) {
            (Code::OutOfRange, _) => {
                (Code::OutOfRange, reason::MESSAGE_TOO_LARGE, status.message().to_owned())
            }
            (Code::ResourceExhausted, Some(problem)) => {
                (Code::OutOfRange, reason::MESSAGE_TOO_LARGE, format!("the message is too large: {problem}"))
            }
            (Code::Internal, Some(problem)) if sent.is_some() => (
                Code::InvalidArgument,
                reason::MESSAGE_DAMAGED,
                format!("the message cannot be unpacked by its `grpc-encoding`: {problem}"),
            ),
            _ => return None,
        };
        Some(Self::new(code, reason, message))
    }

    /// Reads an error back from a status another service of ours sent. A status without our details keeps its code
    /// and gets the code's name as its reason.
    pub fn from_status(status: &Status) -> Self {
        let details = status.get_error_details();
        Self {
            code: status.code(),
            reason: match details.error_info() {
                Some(info) => info.reason.clone(),
                None => code_name(status.code()),
            },
            message: status.message().to_owned(),
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
        }
    }
}

/// A code as the reason of last resort: `ResourceExhausted` is `RESOURCE_EXHAUSTED`.
fn code_name(code: Code) -> String {
    let mut name = String::new();
    for c in format!("{code:?}").chars() {
        if c.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(c.to_ascii_uppercase());
    }
    name
}

impl From<RpcError> for Status {
    fn from(error: RpcError) -> Self {
        let mut details = ErrorDetails::with_error_info(error.reason, DOMAIN, HashMap::new());
        if let Some(after) = error.retry_after {
            details.set_retry_info(Some(after));
        }
        Status::with_error_details(error.code, error.message, details)
    }
}

impl From<RpcError> for ItemError {
    fn from(error: RpcError) -> Self {
        ItemError {
            code: error.code as i32,
            reason: error.reason,
            message: error.message,
            retry_after: error.retry_after.and_then(|after| after.try_into().ok()),
        }
    }
}

impl From<ItemError> for RpcError {
    fn from(error: ItemError) -> Self {
        Self {
            code: Code::from(error.code),
            reason: error.reason,
            message: error.message,
            retry_after: error.retry_after.and_then(|after| after.try_into().ok()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_survives_the_wire() {
        let error =
            RpcError::invalid("IMAGE_EMPTY", "frame.image is empty").retry_after(Duration::from_millis(1500));
        assert_eq!(RpcError::from_status(&Status::from(error.clone())), error);
        assert_eq!(RpcError::from(ItemError::from(error.clone())), error);
    }

    #[test]
    fn a_foreign_status_gets_its_code_as_the_reason() {
        assert_eq!(RpcError::from_status(&Status::resource_exhausted("x")).reason, "RESOURCE_EXHAUSTED");
    }

    #[test]
    fn a_message_that_the_transport_refuses_gets_a_reason() {
        let large = RpcError::from_inbound(&Status::out_of_range("10 bytes, the limit is 5 bytes"));
        assert_eq!((large.code, large.reason.as_str()), (Code::OutOfRange, reason::MESSAGE_TOO_LARGE));
        let packed = "Error decompressing: size limit, of 5 bytes, exceeded while decompressing message";
        let packed = RpcError::from_inbound(&Status::resource_exhausted(packed));
        assert_eq!((packed.code, packed.reason.as_str()), (Code::OutOfRange, reason::MESSAGE_TOO_LARGE));
        let full = RpcError::from_inbound(&Status::resource_exhausted("no memory"));
        assert_eq!((full.code, full.reason.as_str()), (Code::ResourceExhausted, "RESOURCE_EXHAUSTED"));
        let ours = RpcError::new(Code::OutOfRange, "OURS", "x");
        assert_eq!(RpcError::from_inbound(&Status::from(ours.clone())), ours);
        assert_eq!(RpcError::from_inbound(&Status::internal("cannot be read")).reason, "INTERNAL");
    }
}
