//! One question to the rate limiter about every rule that applies to a frame.

use std::collections::HashMap;

use sightline_config::HumanDuration;
use sightline_mesh::{
    Deadline, RpcError,
    client::{Endpoints, Lane, Message, PoolOptions, StreamPool},
    reason,
};
use sightline_proto::{
    ratelimiter::{
        CheckRequest, CheckResponse, CheckStreamRequest, CheckStreamResponse,
        check_stream_response::Result as Outcome, rate_limiter_service_client::RateLimiterServiceClient,
    },
    status::ItemError,
};
use sightline_telemetry::trace::traceparent;
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

/// How many times a check is sent: a stream that breaks may have charged already, and a second check would charge again.
/// Then `ingest.ratelimiter_away` decides. A check that was never sent still moves to another stream.
const ATTEMPTS: usize = 1;

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
    /// Asks one of `replicas`, waiting `timeout` at most; `away` decides when there is no answer.
    pub fn start(replicas: Endpoints, timeout: HumanDuration, away: WhenAway) -> Self {
        let options = PoolOptions { max_attempts: ATTEMPTS, ..PoolOptions::default() };
        Self { pool: StreamPool::start(CheckLane, replicas, options), timeout, away }
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
        let asked = self
            .pool
            .call(patience, |id| CheckStreamRequest {
                id,
                check: Some(check.clone()),
                traceparent: traceparent(),
            })
            .await;
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

#[cfg(test)]
mod tests {
    use std::{
        pin::Pin,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
        time::{Duration, SystemTime},
    };

    use sightline_mesh::server::{Lifecycle, Server, bind};
    use sightline_proto::ratelimiter::rate_limiter_service_server::{
        RateLimiterService, RateLimiterServiceServer,
    };
    use tokio_stream::Stream;
    use tonic::service::Routes;
    use uuid::Uuid;

    use super::*;

    /// Charges what it is asked, and breaks the stream instead of answering.
    #[derive(Clone, Default)]
    struct Charging {
        charged: Arc<AtomicUsize>,
    }

    #[tonic::async_trait]
    impl RateLimiterService for Charging {
        type CheckStreamStream = Pin<Box<dyn Stream<Item = Result<CheckStreamResponse, Status>> + Send>>;

        async fn check(&self, _: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
            Err(Status::unimplemented("only streams here"))
        }

        async fn check_stream(
            &self,
            request: Request<Streaming<CheckStreamRequest>>,
        ) -> Result<Response<Self::CheckStreamStream>, Status> {
            let (answers, receiver) = tokio::sync::mpsc::channel(1);
            let charged = Arc::clone(&self.charged);
            tokio::spawn(async move {
                if request.into_inner().message().await.is_ok_and(|check| check.is_some()) {
                    charged.fetch_add(1, Ordering::SeqCst);
                }
                answers.send(Err(Status::unavailable("broken in a test"))).await.ok();
            });
            Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
        }
    }

    #[tokio::test]
    async fn a_stream_that_breaks_after_the_charge_charges_once() {
        let listener = bind("test", ([127, 0, 0, 1], 0).into()).await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap());
        let charging = Charging::default();
        let server = Server {
            name: "charging",
            listener,
            routes: Routes::new(RateLimiterServiceServer::new(charging.clone())),
            service_names: vec![],
            web: None,
            drain_timeout: Duration::from_millis(100),
        };
        tokio::spawn(server.run(Lifecycle::default()));
        let replicas = Endpoints::new("ratelimiter", &[uri], &HashMap::new()).unwrap();
        let limiter = Limiter::start(replicas, HumanDuration::from_secs(20), WhenAway::Closed);
        let frame = Frame {
            id: Uuid::now_v7(),
            user: "ada".into(),
            device: String::new(),
            application: String::new(),
            captured_at: SystemTime::now(),
            image: bytes::Bytes::new(),
            model: String::new(),
        };
        let deadline = Deadline::after(Duration::from_secs(20));
        let refused = limiter.admit(&frame, &Caller::default(), deadline).await;
        assert!(matches!(refused, Err(IngestError::LimiterAway)), "{refused:?}");
        assert_eq!(charging.charged.load(Ordering::SeqCst), 1);
    }
}
