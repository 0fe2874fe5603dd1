//! `grpc.health.v1` as the protocol describes it: `Watch` of an unknown service stays open with `SERVICE_UNKNOWN`
//! and tells when the service appears (tonic-health ends such a stream instead).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use tokio::sync::watch;
use tokio_stream::{StreamExt, wrappers::WatchStream};
use tonic::{Request, Response, Status};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_server::{Health, HealthServer},
};

/// Services a client may ask about that we keep a channel for. Watching more unknown names is refused.
const MAX_SERVICES: usize = 256;

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

    fn watch(&self, service: String) -> Result<watch::Receiver<ServingStatus>, Status> {
        let services = &mut *self.services.lock().expect("no holder panics");
        let unknown = ServingStatus::ServiceUnknown;
        if services.stopping {
            let status = services.senders.get(&service).map_or(unknown, |sender| *sender.borrow());
            return Ok(watch::Sender::new(status).subscribe());
        }
        if services.senders.len() >= MAX_SERVICES && !services.senders.contains_key(&service) {
            return Err(Status::resource_exhausted(format!("more than {MAX_SERVICES} services are watched")));
        }
        Ok(services.senders.entry(service).or_insert_with(|| watch::Sender::new(unknown)).subscribe())
    }
}

#[tonic::async_trait]
impl Health for HealthRegistry {
    type WatchStream =
        std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        match self.status(&service) {
            Some(status) => Ok(Response::new(HealthCheckResponse { status: status as i32 })),
            None => Err(Status::not_found(format!("no service {service:?} here"))),
        }
    }

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let receiver = self.watch(request.into_inner().service)?;
        let stream =
            WatchStream::new(receiver).map(|status| Ok(HealthCheckResponse { status: status as i32 }));
        Ok(Response::new(Box::pin(stream)))
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
