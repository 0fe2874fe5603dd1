//! One question to the rate limiter about every rule that applies to a frame.

use std::collections::HashMap;

use sightline_config::HumanDuration;
use sightline_mesh::{
    Deadline, RpcError,
    client::{Lane, Message, StreamPool},
    reason,
};
use sightline_proto::{
    ratelimiter::{
        CheckRequest, CheckResponse, CheckStreamRequest, CheckStreamResponse,
        check_stream_response::Result as Outcome, rate_limiter_service_client::RateLimiterServiceClient,
    },
    status::ItemError,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming, transport::Channel};

use crate::{
    config::WhenAway,
    error::IngestError,
    events,
    frame::{Caller, Frame},
};

/// Checks one stream may have unanswered.
const IN_FLIGHT: usize = 256;

/// The rate limiter's `CheckStream`.
#[derive(Debug)]
pub struct CheckLane;

impl Lane for CheckLane {
    type Outbound = CheckStreamRequest;
    type Inbound = CheckStreamResponse;
    type Answer = Result<CheckResponse, ItemError>;

    async fn open(
        &self,
        channel: Channel,
        outbound: Request<ReceiverStream<CheckStreamRequest>>,
    ) -> Result<Response<Streaming<CheckStreamResponse>>, Status> {
        RateLimiterServiceClient::new(channel).check_stream(outbound).await
    }

    fn read(&self, inbound: CheckStreamResponse) -> Result<Message<Self::Answer>, RpcError> {
        match inbound.result {
            Some(Outcome::Response(response)) => Ok(Message::Answer(inbound.id, Ok(response))),
            Some(Outcome::Error(error)) => Ok(Message::Answer(inbound.id, Err(error))),
            None => {
                Err(RpcError::new(Code::Internal, reason::PROTOCOL, "the rate limiter sent an empty message"))
            }
        }
    }

    fn initial_credits(&self) -> usize {
        IN_FLIGHT
    }
}

/// Asks whether frames may pass.
#[derive(Debug, Clone)]
pub struct Limiter {
    pool: StreamPool<CheckLane>,
    timeout: HumanDuration,
    away: WhenAway,
}

impl Limiter {
    /// Asks over `pool`, waiting `timeout` at most; `away` decides when there is no answer.
    pub fn new(pool: StreamPool<CheckLane>, timeout: HumanDuration, away: WhenAway) -> Self {
        Self { pool, timeout, away }
    }

    /// Lets the frame pass, or says when to come again.
    ///
    /// # Errors
    /// `RateLimited`, `LimiterAway`, or the rate limiter's own error.
    pub async fn admit(&self, frame: &Frame, caller: &Caller, deadline: Deadline) -> Result<(), IngestError> {
        let mut keys = HashMap::from([("user".to_owned(), frame.user.clone())]);
        if let Some(ip) = caller.ip {
            keys.insert("ip".into(), ip.to_canonical().to_string());
        }
        for (key, value) in [("application", &frame.application), ("device", &frame.device)] {
            if !value.is_empty() {
                keys.insert(key.into(), value.clone());
            }
        }
        let check = CheckRequest { tenant: caller.tenant().to_owned(), keys, hits: 1 };
        let patience = Deadline::after(self.timeout.0).min(deadline);
        let asked =
            self.pool.call(patience, |id| CheckStreamRequest { id, check: Some(check.clone()) }).await;
        match asked {
            Ok(Ok(response)) if response.allowed => Ok(()),
            Ok(Ok(response)) => Err(IngestError::RateLimited {
                rule: response.refused_by,
                retry_after: response.retry_after.and_then(|after| after.try_into().ok()).unwrap_or_default(),
            }),
            Ok(Err(error)) => Err(RpcError::from(error).into()),
            Err(_) if deadline.passed() => Err(RpcError::deadline("asking the rate limiter").into()),
            Err(_) if self.away == WhenAway::Open => {
                events::unlimited();
                Ok(())
            }
            Err(_) => Err(IngestError::LimiterAway),
        }
    }
}
