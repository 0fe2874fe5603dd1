//! The called process: a server that answers at once, or one that takes its time for each message and does a bounded
//! number of them at once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use sightline_mesh::{
    health::HealthRegistry,
    server::{Lifecycle, Server, bind},
    stream::LoadMeter,
};
use sightline_proto::{
    ratelimiter::{
        CheckRequest, CheckResponse, CheckStreamRequest, CheckStreamResponse,
        check_stream_response::Result as Answer,
        rate_limiter_service_server::{RateLimiterService, RateLimiterServiceServer, SERVICE_NAME},
    },
    stream::{Credits, Load},
};
use tokio::{
    net::TcpListener,
    sync::{Semaphore, mpsc},
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Request, Response, Status, Streaming,
    service::Routes,
    transport::server::{Server as Plain, TcpIncoming},
};
use tonic_health::pb::health_check_response::ServingStatus;

use crate::child::{orders, say};

/// Messages that one stream may have unanswered.
const CREDITS: u32 = 256;

/// What a replica does for each message, and how often it did.
struct Work {
    /// The mean time; none: it answers at once.
    mean: Option<Duration>,
    /// How many times as long it takes now.
    factor: AtomicU32,
    places: Semaphore,
    meter: LoadMeter,
    received: AtomicU64,
}

impl Work {
    fn new(mean: Option<Duration>, places: usize) -> Self {
        let (factor, received) = (AtomicU32::new(1), AtomicU64::new(0));
        Self { mean, factor, places: Semaphore::new(places), meter: LoadMeter::new(places), received }
    }

    /// Half to one and a half times the mean, evenly, once there is a place.
    async fn work(&self) -> Load {
        let Some(mean) = self.mean else { return Load::default() };
        self.received.fetch_add(1, Ordering::Relaxed);
        let (working, since) = (self.meter.begin(), Instant::now());
        let _place = self.places.acquire().await;
        let waited = since.elapsed();
        let times = (0.5 + rand::random::<f64>()) * f64::from(self.factor.load(Ordering::Relaxed));
        tokio::time::sleep(mean.mul_f64(times)).await;
        working.load(waited)
    }

    fn obey(&self, order: &str) -> Result<u64> {
        match order.split_once(' ') {
            None if order == "count" => Ok(self.received.swap(0, Ordering::Relaxed)),
            Some(("factor", factor)) => Ok(self.factor.swap(factor.parse()?, Ordering::Relaxed).into()),
            _ => bail!("{order:?} is no order"),
        }
    }
}

#[derive(Clone)]
struct Service(Arc<Work>);

#[tonic::async_trait]
impl RateLimiterService for Service {
    type CheckStreamStream = ReceiverStream<Result<CheckStreamResponse, Status>>;

    async fn check(&self, _: Request<CheckRequest>) -> Result<Response<CheckResponse>, Status> {
        self.0.work().await;
        Ok(Response::new(allowed()))
    }

    async fn check_stream(
        &self,
        request: Request<Streaming<CheckStreamRequest>>,
    ) -> Result<Response<Self::CheckStreamStream>, Status> {
        let (mut inbound, work) = (request.into_inner(), Arc::clone(&self.0));
        let (send, receive) = mpsc::channel(CREDITS as usize + 1);
        tokio::spawn(async move {
            while let Ok(Some(message)) = inbound.message().await {
                let (work, send) = (Arc::clone(&work), send.clone());
                tokio::spawn(async move { send.send(Ok(answer(&work, &message).await)).await.ok() });
            }
        });
        Ok(Response::new(ReceiverStream::new(receive)))
    }
}

async fn answer(work: &Work, message: &CheckStreamRequest) -> CheckStreamResponse {
    let (result, load) = match message.hello {
        Some(_) => (Answer::Credits(Credits { granted: CREDITS }), None),
        None => {
            let load = work.work().await;
            (Answer::Response(allowed()), Some(load))
        }
    };
    CheckStreamResponse { id: message.id, result: Some(result), load }
}

fn allowed() -> CheckResponse {
    CheckResponse { allowed: true, ..CheckResponse::default() }
}

/// Serves until there are no more orders: `echo`, or `replica MEAN_MICROSECONDS PLACES`.
pub(crate) async fn run(arguments: &[String]) -> Result<()> {
    let work = match arguments {
        [echo] if echo == "echo" => Arc::new(Work::new(None, 1)),
        [_, mean, places] => Arc::new(Work::new(Some(Duration::from_micros(mean.parse()?)), places.parse()?)),
        _ => bail!("{arguments:?} is no replica"),
    };
    let (service, mut orders) = (RateLimiterServiceServer::new(Service(Arc::clone(&work))), orders());
    let address = match work.mean {
        None => plain(service).await?,
        Some(_) => full(service).await?,
    };
    say(&address)?;
    while let Some(order) = orders.recv().await {
        say(&work.obey(&order)?.to_string())?;
    }
    Ok(())
}

/// tonic's own server, which does the least: what the client costs is not hidden behind what a server does.
async fn plain(service: RateLimiterServiceServer<Service>) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let health = HealthRegistry::default();
    health.set("", ServingStatus::Serving);
    let server = Plain::builder().add_service(health.service()).add_service(service);
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    tokio::spawn(server.serve_with_incoming(incoming));
    Ok(address)
}

/// The mesh's, as services have it.
async fn full(service: RateLimiterServiceServer<Service>) -> Result<String> {
    let listener = bind("replica", "127.0.0.1:0".parse()?).await.context("binding")?;
    let address = listener.local_addr()?.to_string();
    let server = Server {
        name: "replica",
        listener,
        routes: Routes::new(service),
        service_names: vec![SERVICE_NAME],
        web: None,
        drain_timeout: Duration::from_secs(1),
    };
    tokio::spawn(server.run(Lifecycle::default()));
    Ok(address)
}
