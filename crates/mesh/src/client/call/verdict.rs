//! What an answer, or the lack of one, says of the server and of another try.

use std::time::Duration;

use http::{HeaderMap, Response, StatusCode};
use tonic::{Code, Status, body::Body};
use tonic_types::StatusExt;

use super::{
    super::{Outcome, TransportError, breaker::is_failure},
    backoff::Pushback,
};
use crate::{RpcError, names::GRPC_STATUS};

/// How an attempt ended before its answer began.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) code: Code,
    /// It is certain that no server acted on the call.
    pub(crate) unsent: bool,
    /// Not the server's word but ours, after its time for one attempt.
    pub(crate) timed_out: bool,
    /// No endpoint could be had, and that was waited for already.
    pub(crate) no_endpoint: bool,
    pub(crate) pushback: Pushback,
    /// The server turned the call away to protect itself, and when it may come back.
    pub(crate) shed: Option<Duration>,
}

impl Verdict {
    fn of(code: Code) -> Self {
        Self {
            code,
            unsent: false,
            timed_out: false,
            no_endpoint: false,
            pushback: Pushback::Unsaid,
            shed: None,
        }
    }

    /// Of an answer's head: `None` when it is the beginning of an answer that goes on.
    pub(crate) fn of_head(head: &Response<Body>) -> Option<Self> {
        if let Some(verdict) = Self::of_headers(head.headers()) {
            return Some(verdict);
        }
        (head.status() != StatusCode::OK).then(|| Self::of(code_of(head.status())))
    }

    /// Of headers that have a status: trailers, or the head of an answer without messages.
    pub(crate) fn of_headers(headers: &HeaderMap) -> Option<Self> {
        let code = Code::from_bytes(headers.get(&GRPC_STATUS)?.as_bytes());
        Some(Self { pushback: Pushback::read(headers), shed: shed(code, headers), ..Self::of(code) })
    }

    /// Of a call that ended without an answer.
    pub(crate) fn of_status(status: &Status) -> Self {
        let unsent = TransportError::of(status).is_some_and(TransportError::is_unsent);
        Self { unsent, ..Self::of(status.code()) }
    }

    /// Of an attempt for which there was no endpoint.
    pub(crate) fn no_endpoint(error: &RpcError) -> Self {
        Self { no_endpoint: true, unsent: true, ..Self::of(error.code) }
    }

    /// Of an attempt that was given up.
    pub(crate) fn timed_out() -> Self {
        Self { timed_out: true, ..Self::of(Code::DeadlineExceeded) }
    }

    /// For the endpoint's load and breaker.
    pub(crate) fn outcome(&self) -> Outcome {
        outcome(self.code, self.shed.is_some())
    }
}

/// Codes that say something of the endpoint are failures. An error that is the caller's own is a success, and so is
/// `RESOURCE_EXHAUSTED` without `RetryInfo`: a quota, not a server in need.
pub(crate) fn outcome(code: Code, shed: bool) -> Outcome {
    match code {
        _ if is_failure(code) => Outcome::Failure(code),
        Code::ResourceExhausted if shed => Outcome::Failure(code),
        Code::Cancelled => Outcome::Cancelled,
        _ => Outcome::Success,
    }
}

/// A server sheds when it says so: `RESOURCE_EXHAUSTED` or `UNAVAILABLE` with a `google.rpc.RetryInfo`. A plain
/// `UNAVAILABLE` is a server that is broken or going away, which another replica helps and throttling does not.
fn shed(code: Code, headers: &HeaderMap) -> Option<Duration> {
    if !matches!(code, Code::ResourceExhausted | Code::Unavailable) {
        return None;
    }
    Status::from_header_map(headers)?.get_details_retry_info()?.retry_delay
}

/// What an HTTP status means where a proxy answered instead of gRPC, by gRPC's table (http-grpc-status-mapping).
fn code_of(status: StatusCode) -> Code {
    match status.as_u16() {
        400 => Code::Internal,
        401 => Code::Unauthenticated,
        403 => Code::PermissionDenied,
        404 => Code::Unimplemented,
        429 | 502..=504 => Code::Unavailable,
        _ => Code::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::pb::RetryInfo;

    use super::*;
    use crate::reason;

    fn head(status: Status) -> Response<Body> {
        status.into_http()
    }

    /// `RESOURCE_EXHAUSTED` with a `google.rpc.Status` that holds a `RetryInfo`, as a peer may write it.
    fn shedding(after: prost_types::Duration) -> Status {
        use prost::Message;
        let value = RetryInfo { retry_delay: Some(after) }.encode_to_vec();
        let info = prost_types::Any { type_url: "type.googleapis.com/google.rpc.RetryInfo".into(), value };
        let status = tonic_types::pb::Status { code: 8, message: "full".into(), details: vec![info] };
        Status::with_details(Code::ResourceExhausted, "full", status.encode_to_vec().into())
    }

    #[test]
    fn only_a_server_that_says_when_to_come_back_sheds() {
        let after = Duration::from_millis(1500);
        let of = |status: Status| Verdict::of_head(&head(status)).unwrap();
        let busy = RpcError::new(Code::ResourceExhausted, "OVERLOADED", "full");
        assert_eq!(of(busy.clone().retry_after(after).into()).shed, Some(after));
        assert_eq!(of(RpcError::unavailable("x").retry_after(after).into()).shed, Some(after));
        assert_eq!(of(busy.into()).shed, None);
        // As far ahead as a peer can say.
        let never = Duration::from_secs(i64::MAX as u64);
        let late = prost_types::Duration { seconds: i64::MAX, nanos: 0 };
        assert_eq!(of(shedding(late)).shed, Some(never));
        assert_eq!(of(RpcError::internal("x").retry_after(after).into()).shed, None);
        assert_eq!(of(Status::unavailable("x")).shed, None);
    }

    #[test]
    fn an_answer_has_begun_when_its_head_has_no_status() {
        assert!(Verdict::of_head(&Response::new(Body::empty())).is_none());
        assert_eq!(Verdict::of_head(&head(Status::not_found("x"))).unwrap().code, Code::NotFound);
        let mut proxy = Response::new(Body::empty());
        *proxy.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
        assert_eq!(Verdict::of_head(&proxy).unwrap().code, Code::Unavailable);
    }

    #[test]
    fn what_the_endpoint_is_blamed_for() {
        for (code, shed, expected) in [
            (Code::Ok, false, Outcome::Success),
            (Code::NotFound, false, Outcome::Success),
            (Code::Unimplemented, false, Outcome::Success),
            (Code::ResourceExhausted, false, Outcome::Success),
            (Code::ResourceExhausted, true, Outcome::Failure(Code::ResourceExhausted)),
            (Code::Unavailable, false, Outcome::Failure(Code::Unavailable)),
            (Code::Internal, false, Outcome::Failure(Code::Internal)),
            (Code::Cancelled, false, Outcome::Cancelled),
        ] {
            assert_eq!(outcome(code, shed), expected, "{code:?}");
        }
        assert_eq!(Verdict::timed_out().outcome(), Outcome::Failure(Code::DeadlineExceeded));
        let none = Verdict::no_endpoint(&RpcError::deadline("x"));
        assert!(none.unsent && none.code == Code::DeadlineExceeded);
        assert_eq!(reason::DEADLINE_EXCEEDED, RpcError::deadline("x").reason);
    }
}
