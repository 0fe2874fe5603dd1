//! Names of metadata that each call is asked about, made once: a name that is not one of HTTP's own is otherwise looked at
//! letter by letter each time.

use http::HeaderName;
use sightline_telemetry::trace;

/// How long the caller waits.
pub(crate) static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// How a call ended.
pub(crate) static GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
/// How many attempts were sent before this one (gRFC A6).
pub(crate) static PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");
/// Lent attempts, there in the head of a call and back at the end of its answer.
pub(crate) static ATTEMPTS_LEFT: HeaderName = HeaderName::from_static(crate::client::ATTEMPTS_LEFT);
/// W3C Trace Context.
pub(crate) static TRACEPARENT: HeaderName = HeaderName::from_static(trace::TRACEPARENT);
