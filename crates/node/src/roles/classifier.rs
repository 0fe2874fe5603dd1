//! Wires the classifier.

use std::sync::Arc;

use sightline_classifier::{ClassifierConfig, Registry, Service, backend::Backend};
use sightline_mesh::server::{Lifecycle, Server};
use sightline_proto::classifier::classifier_service_server::{ClassifierServiceServer, SERVICE_NAME};
use tokio::net::TcpListener;
use tonic::service::Routes;

use super::{Running, Shared};
use crate::{NodeError, Role};

pub(crate) async fn start(
    config: &ClassifierConfig,
    listener: TcpListener,
    shared: &Shared,
) -> Result<Running, NodeError> {
    let lifecycle = Lifecycle::default();
    let backend = backend(config)?;
    let registry = {
        let config = config.clone();
        let load = move || Registry::start(&config, &backend);
        let loaded = tokio::task::spawn_blocking(load).await;
        Arc::new(loaded.map_err(|panic| NodeError::Backend(panic.to_string()))??)
    };
    let service = Service::new(config, Arc::clone(&registry), lifecycle.clone());
    let service = ClassifierServiceServer::new(service).max_decoding_message_size(config.max_message.bytes());
    let server = Server {
        name: Role::Classifier.name(),
        listener,
        routes: Routes::new(shared.service_guard().protect(service)),
        service_names: vec![SERVICE_NAME],
        web: None,
        drain_timeout: config.drain_timeout.0,
    };
    let finish = async move {
        // Joining the executors waits for the batch each is in.
        tokio::task::spawn_blocking(move || drop(registry)).await.ok();
    };
    shared.serve(Role::Classifier, server, lifecycle, Box::pin(finish))
}

#[cfg(feature = "torch")]
fn backend(config: &ClassifierConfig) -> Result<Arc<dyn Backend>, NodeError> {
    use sightline_classifier::backend::torch::Torch;
    let torch = Torch::new(&config.device, config.intra_op_threads);
    Ok(Arc::new(torch.map_err(|error| NodeError::Backend(error.to_string()))?))
}

#[cfg(not(feature = "torch"))]
fn backend(_config: &ClassifierConfig) -> Result<Arc<dyn Backend>, NodeError> {
    Err(NodeError::Backend(
        "this binary was built without libtorch and cannot run the classifier: build it with the feature `torch`"
            .into(),
    ))
}
