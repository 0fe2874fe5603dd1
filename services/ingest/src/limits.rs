//! One question to the rate limiter about every rule that applies to a frame.

use std::collections::HashMap;

use sightline_config::HumanDuration;
use sightline_mesh::{
    Deadline, RpcError,
    client::{Cluster, Lane, Message, PoolOptions, PoolSnapshot, StreamPool, Transport},
    reason,
};
use sightline_proto::{
    ratelimiter::{
        CheckRequest, CheckResponse, CheckStreamRequest, CheckStreamResponse,
        check_stream_response::Result as Outcome, rate_limiter_service_client::RateLimiterServiceClient,
    },
    status::ItemError,
    stream::Hello,
};
use sightline_telemetry::trace::traceparent;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status, Streaming};
use tracing::Instrument;

use crate::{
    config::WhenAway,
    error::IngestError,
    events,
    frame::{Caller, Frame},
    traces,
};

/// Checks that a rate limiter which knows nothing of credits may have unanswered on one stream.
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
        transport: Transport,
        outbound: Request<ReceiverStream<CheckStreamRequest>>,
    ) -> Result<Response<Streaming<CheckStreamResponse>>, Status> {
        RateLimiterServiceClient::new(transport).check_stream(outbound).await
    }

    fn read(&self, inbound: CheckStreamResponse) -> Result<Message<Self::Answer>, RpcError> {
        match inbound.result {
            Some(Outcome::Credits(credits)) => Ok(Message::Credits(credits.granted as usize)),
            Some(Outcome::Drain(_)) => Ok(Message::Drain),
            // A server that knows nothing of credits took the hello for a check.
            Some(_) if inbound.id == 0 => Ok(Message::Credits(IN_FLIGHT)),
            Some(Outcome::Response(response)) => Ok(Message::of_item(inbound.id, Ok(response), inbound.load)),
            Some(Outcome::Error(error)) => Ok(Message::of_item(inbound.id, Err(error), inbound.load)),
            None => {
                Err(RpcError::new(Code::Internal, reason::PROTOCOL, "the rate limiter sent an empty message"))
            }
        }
    }

    /// A stream that breaks may have charged already, and a second check would charge again: then
    /// `ingest.ratelimiter_away` decides. A check that no rate limiter has read moves to another.
    fn repeatable(&self) -> bool {
        false
    }

    fn hello(&self) -> Option<CheckStreamRequest> {
        Some(CheckStreamRequest { hello: Some(Hello {}), ..CheckStreamRequest::default() })
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
    /// The rate limiters, at this moment.
    pub fn snapshot(&self) -> PoolSnapshot {
        self.pool.snapshot()
    }

    /// Asks one of `replicas`, waiting `timeout` at most; `away` decides when there is no answer.
    pub fn start(replicas: Cluster, timeout: HumanDuration, away: WhenAway, options: PoolOptions) -> Self {
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
        let build = |id| CheckStreamRequest {
            id,
            check: Some(check.clone()),
            traceparent: traceparent(),
            hello: None,
        };
        let span = traces::admit();
        let asked = self.pool.call(frame.ask(caller, patience), build).instrument(span.clone()).await;
        traces::answered(&span, &asked);
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
        collections::BTreeSet,
        pin::Pin,
        sync::{Arc, Mutex},
        time::{Duration, SystemTime},
    };

    use sightline_mesh::{
        client::{Balance, ClusterOptions, Fixed, MeshOptions},
        server::{Lifecycle, Server, bind},
    };
    use sightline_proto::{
        ratelimiter::rate_limiter_service_server::{RateLimiterService, RateLimiterServiceServer},
        stream::Credits,
    };
    use tokio_stream::Stream;
    use tonic::service::Routes;
    use uuid::Uuid;

    use super::*;

    /// Charges what it is asked, and allows it or breaks the stream instead of answering.
    #[derive(Clone, Default)]
    struct Charging {
        breaks: bool,
        /// The users, in order.
        charged: Arc<Mutex<Vec<String>>>,
    }

    impl Charging {
        /// Serves; where.
        async fn start(&self) -> String {
            let listener = bind("test", ([127, 0, 0, 1], 0).into()).await.unwrap();
            let uri = format!("http://{}", listener.local_addr().unwrap());
            let server = Server {
                name: "charging",
                listener,
                routes: Routes::new(RateLimiterServiceServer::new(self.clone())),
                service_names: vec![],
                web: None,
                drain_timeout: Duration::from_millis(100),
            };
            tokio::spawn(server.run(Lifecycle::default()));
            uri
        }

        fn decide(&self, check: CheckStreamRequest) -> Result<CheckStreamResponse, Status> {
            self.charged.lock().unwrap().push(check.check.unwrap().keys["user"].clone());
            if self.breaks {
                return Err(Status::unavailable("broken in a test"));
            }
            let allowed = CheckResponse { allowed: true, ..CheckResponse::default() };
            Ok(CheckStreamResponse { id: check.id, result: Some(Outcome::Response(allowed)), load: None })
        }
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
            let charging = self.clone();
            tokio::spawn(async move {
                let mut checks = request.into_inner();
                assert!(
                    checks
                        .message()
                        .await
                        .is_ok_and(|first| first.is_some_and(|first| first.hello.is_some()))
                );
                let granted = Some(Outcome::Credits(Credits { granted: 8 }));
                answers
                    .send(Ok(CheckStreamResponse { result: granted, ..CheckStreamResponse::default() }))
                    .await
                    .ok();
                while let Ok(Some(check)) = checks.message().await {
                    answers.send(charging.decide(check)).await.ok();
                }
            });
            Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
        }
    }

    fn limiter(uris: &[String], balance: Balance) -> Limiter {
        let fixed = Fixed::from_uris("ratelimiter", uris).unwrap();
        let mesh = MeshOptions { balance, ..MeshOptions::default() };
        let replicas = Cluster::start(ClusterOptions::new("ratelimiter", fixed).mesh(mesh));
        Limiter::start(replicas, HumanDuration::from_secs(20), WhenAway::Closed, PoolOptions::default())
    }

    async fn admit(limiter: &Limiter, user: &str) -> Result<(), IngestError> {
        let frame = Frame {
            id: Uuid::now_v7(),
            user: user.into(),
            device: String::new(),
            application: String::new(),
            captured_at: SystemTime::now(),
            image: bytes::Bytes::new(),
            model: String::new(),
        };
        limiter.admit(&frame, &Caller::default(), Deadline::after(Duration::from_secs(20))).await
    }

    #[tokio::test]
    async fn a_stream_that_breaks_after_the_charge_charges_once() {
        let charging = Charging { breaks: true, ..Charging::default() };
        let limiter = limiter(&[charging.start().await], Balance::LeastLoaded);
        let refused = admit(&limiter, "ada").await;
        assert!(matches!(refused, Err(IngestError::LimiterAway)), "{refused:?}");
        assert_eq!(*charging.charged.lock().unwrap(), ["ada"]);
    }

    #[tokio::test]
    async fn by_ring_hash_a_users_checks_go_to_one_rate_limiter() {
        let (one, two) = (Charging::default(), Charging::default());
        let limiter = limiter(&[one.start().await, two.start().await], Balance::RingHash);
        let ready = async {
            while limiter.snapshot().streams.iter().filter(|to| to.credits > 0).count() < 2 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), ready).await.unwrap();
        for _ in 0..4 {
            for user in 0..16 {
                admit(&limiter, &format!("user-{user}")).await.unwrap();
            }
        }
        let users = |at: &Charging| at.charged.lock().unwrap().iter().cloned().collect::<BTreeSet<_>>();
        let (first, second) = (users(&one), users(&two));
        assert!(first.is_disjoint(&second), "{first:?} {second:?}");
        assert!(!first.is_empty() && !second.is_empty());
    }
}
