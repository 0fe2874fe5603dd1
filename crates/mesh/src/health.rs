//! `grpc.health.v1` as the protocol describes it: `Watch` of an unknown service stays open with `SERVICE_UNKNOWN`
//! and tells when the service appears (tonic-health ends such a stream instead).

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use tokio::sync::watch;
use tokio_stream::{Stream, StreamExt, wrappers::WatchStream};
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_server::{Health, HealthServer},
};

use crate::RpcError;

/// Services a client may ask about that we keep a channel for. Watching more unknown names is refused.
const MAX_SERVICES: usize = 256;
/// The longest name of a service, in bytes: a name is kept while it is watched, and repeated in an error.
const MAX_NAME: usize = 256;

/// The status of every service of one server. Cheap to clone; all clones are one registry.
#[derive(Debug, Clone, Default)]
pub struct HealthRegistry {
    services: Arc<Mutex<Services>>,
}

#[derive(Debug, Default)]
struct Services {
    senders: HashMap<String, watch::Sender<ServingStatus>>,
    stopping: bool,
}

impl HealthRegistry {
    /// Sets the status of a service; the empty name is the server as a whole.
    pub fn set(&self, service: &str, status: ServingStatus) {
        let senders = &mut self.services.lock().expect("no holder panics").senders;
        match senders.get(service) {
            Some(sender) => {
                sender.send_replace(status);
            }
            None => {
                senders.insert(service.to_owned(), watch::Sender::new(status));
            }
        }
    }

    /// The server is stopping: every known service is `NOT_SERVING`, and whoever watches is told so and hung up on,
    /// so that an open watch holds no drain back.
    pub fn stop(&self) {
        let services = &mut *self.services.lock().expect("no holder panics");
        services.stopping = true;
        for sender in services.senders.values_mut() {
            let status = match *sender.borrow() {
                ServingStatus::ServiceUnknown => ServingStatus::ServiceUnknown,
                _ => ServingStatus::NotServing,
            };
            // A receiver sees the last value of a dropped sender, then the end.
            std::mem::replace(sender, watch::Sender::new(status)).send_replace(status);
        }
    }

    /// The gRPC service.
    pub fn service(&self) -> HealthServer<HealthRegistry> {
        HealthServer::new(self.clone())
    }

    fn status(&self, service: &str) -> Option<ServingStatus> {
        let services = self.services.lock().expect("no holder panics");
        services
            .senders
            .get(service)
            .map(|sender| *sender.borrow())
            .filter(|status| *status != ServingStatus::ServiceUnknown)
    }

    fn watch(&self, service: &str) -> Result<watch::Receiver<ServingStatus>, Status> {
        let services = &mut *self.services.lock().expect("no holder panics");
        let unknown = ServingStatus::ServiceUnknown;
        if services.stopping {
            let status = services.senders.get(service).map_or(unknown, |sender| *sender.borrow());
            return Ok(watch::Sender::new(status).subscribe());
        }
        if let Some(sender) = services.senders.get(service) {
            return Ok(sender.subscribe());
        }
        if services.senders.len() >= MAX_SERVICES {
            return Err(Status::resource_exhausted(format!("more than {MAX_SERVICES} services are watched")));
        }
        let sender =
            services.senders.entry(service.to_owned()).or_insert_with(|| watch::Sender::new(unknown));
        Ok(sender.subscribe())
    }

    /// Forgets a name that nobody serves and nobody watches any more.
    fn forget(&self, service: &str) {
        let senders = &mut self.services.lock().expect("no holder panics").senders;
        let unused = senders.get(service).is_some_and(|sender| {
            *sender.borrow() == ServingStatus::ServiceUnknown && sender.receiver_count() == 0
        });
        if unused {
            senders.remove(service);
        }
    }
}

fn check_name(service: &str) -> Result<(), Status> {
    if service.len() <= MAX_NAME {
        return Ok(());
    }
    let message = format!("service: {} bytes; at most {MAX_NAME} are taken", service.len());
    Err(RpcError::invalid("FIELD_TOO_LONG", message).into())
}

/// What a watch hears. Its receiver is gone (fields are dropped in order) before the registry looks for others.
struct Watching {
    statuses: WatchStream<ServingStatus>,
    _forget: Forget,
}

struct Forget {
    registry: HealthRegistry,
    service: String,
}

impl Drop for Forget {
    fn drop(&mut self) {
        self.registry.forget(&self.service);
    }
}

impl Stream for Watching {
    type Item = ServingStatus;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<ServingStatus>> {
        Pin::new(&mut self.statuses).poll_next(context)
    }
}

#[tonic::async_trait]
impl Health for HealthRegistry {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        check_name(&service)?;
        match self.status(&service) {
            Some(status) => Ok(Response::new(HealthCheckResponse { status: status as i32 })),
            None => Err(Status::not_found(format!("no service {service:?} here"))),
        }
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let service = request.into_inner().service;
        check_name(&service)?;
        let statuses = WatchStream::new(self.watch(&service)?);
        let watching = Watching { statuses, _forget: Forget { registry: self.clone(), service } };
        let answers = watching.map(|status| Ok(HealthCheckResponse { status: status as i32 }));
        Ok(Response::new(Box::pin(answers)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(service: &str) -> Request<HealthCheckRequest> {
        Request::new(HealthCheckRequest { service: service.into() })
    }

    #[tokio::test]
    async fn watch_of_an_unknown_service_stays_open_until_it_appears() {
        let registry = HealthRegistry::default();
        let mut stream = Health::watch(&registry, request("late")).await.unwrap().into_inner();
        assert_eq!(stream.next().await.unwrap().unwrap().status, ServingStatus::ServiceUnknown as i32);
        assert_eq!(registry.check(request("late")).await.unwrap_err().code(), tonic::Code::NotFound);
        registry.set("late", ServingStatus::Serving);
        assert_eq!(stream.next().await.unwrap().unwrap().status, ServingStatus::Serving as i32);
        registry.set("late", ServingStatus::NotServing);
        assert_eq!(stream.next().await.unwrap().unwrap().status, ServingStatus::NotServing as i32);
    }

    #[tokio::test]
    async fn a_name_that_nobody_serves_is_kept_as_long_as_it_is_watched() {
        let registry = HealthRegistry::default();
        registry.set("known", ServingStatus::Serving);
        for n in 0..2 * MAX_SERVICES {
            let name = format!("unknown-{n}");
            let first = Health::watch(&registry, request(&name)).await.unwrap();
            let mut second = Health::watch(&registry, request(&name)).await.unwrap().into_inner();
            drop(first);
            registry.set(&name, ServingStatus::ServiceUnknown);
            let status = second.next().await.unwrap().unwrap().status;
            assert_eq!(status, ServingStatus::ServiceUnknown as i32, "the other watch goes on");
        }
        assert_eq!(registry.services.lock().unwrap().senders.len(), 1);
        assert!(Health::watch(&registry, request("known")).await.is_ok());
    }

    #[tokio::test]
    async fn a_name_is_no_longer_than_a_name() {
        let registry = HealthRegistry::default();
        let (longest, longer) = ("x".repeat(MAX_NAME), "x".repeat(MAX_NAME + 1));
        assert!(Health::watch(&registry, request(&longest)).await.is_ok());
        let watched = Health::watch(&registry, request(&longer)).await.err().unwrap();
        let checked = registry.check(request(&longer)).await.unwrap_err();
        for status in [watched, checked] {
            assert_eq!(RpcError::from_status(&status).reason, "FIELD_TOO_LONG");
            assert_eq!(status.message(), "service: 257 bytes; at most 256 are taken");
        }
    }

    #[tokio::test]
    async fn a_server_that_stops_says_so_to_every_watch_and_ends_it() {
        let registry = HealthRegistry::default();
        registry.set("known", ServingStatus::Serving);
        let mut early = Health::watch(&registry, request("known")).await.unwrap().into_inner();
        assert_eq!(early.next().await.unwrap().unwrap().status, ServingStatus::Serving as i32);
        registry.stop();
        let mut late = Health::watch(&registry, request("known")).await.unwrap().into_inner();
        for stream in [&mut early, &mut late] {
            assert_eq!(stream.next().await.unwrap().unwrap().status, ServingStatus::NotServing as i32);
            assert!(stream.next().await.is_none());
        }
        let answer = registry.check(request("known")).await.unwrap().into_inner();
        assert_eq!(answer.status, ServingStatus::NotServing as i32);
    }
}
