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
    services: Arc<Mutex<HashMap<String, watch::Sender<ServingStatus>>>>,
}

impl HealthRegistry {
    /// Sets the status of a service; the empty name is the server as a whole.
    pub fn set(&self, service: &str, status: ServingStatus) {
        let mut services = self.services.lock().expect("no holder panics");
        match services.get(service) {
            Some(sender) => {
                sender.send_replace(status);
            }
            None => {
                services.insert(service.to_owned(), watch::Sender::new(status));
            }
        }
    }

    /// Sets every known service, the server as a whole included.
    pub fn set_all(&self, status: ServingStatus) {
        let services = self.services.lock().expect("no holder panics");
        for (_, sender) in
            services.iter().filter(|(_, sender)| *sender.borrow() != ServingStatus::ServiceUnknown)
        {
            sender.send_replace(status);
        }
    }

    /// The gRPC service.
    pub fn service(&self) -> HealthServer<HealthRegistry> {
        HealthServer::new(self.clone())
    }

    fn status(&self, service: &str) -> Option<ServingStatus> {
        let services = self.services.lock().expect("no holder panics");
        services
            .get(service)
            .map(|sender| *sender.borrow())
            .filter(|status| *status != ServingStatus::ServiceUnknown)
    }

    fn watch(&self, service: String) -> Result<watch::Receiver<ServingStatus>, Status> {
        let mut services = self.services.lock().expect("no holder panics");
        if services.len() >= MAX_SERVICES && !services.contains_key(&service) {
            return Err(Status::resource_exhausted(format!("more than {MAX_SERVICES} services are watched")));
        }
        let sender =
            services.entry(service).or_insert_with(|| watch::Sender::new(ServingStatus::ServiceUnknown));
        Ok(sender.subscribe())
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
        registry.set_all(ServingStatus::NotServing);
        assert_eq!(stream.next().await.unwrap().unwrap().status, ServingStatus::NotServing as i32);
    }
}
