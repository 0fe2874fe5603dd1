//! Wires ingest.

use std::sync::Arc;

use sightline_ingest::{
    Pipeline, Service, config::WhenAway, pipeline::Upstreams, shared::Shared as Verdicts, spool::Spool,
};
use sightline_mesh::{
    Deadline,
    client::{Cluster, Without},
    server::{Lifecycle, Server, WebOptions},
};
use sightline_proto::ingest::ingest_service_server::{IngestServiceServer, SERVICE_NAME};
use tokio::net::TcpListener;
use tonic::service::Routes;

use super::{MESSAGE_SLACK, Running, Shared};
use crate::{NodeConfig, NodeError, Role, upstreams::Upstreams as Called};

pub(crate) async fn start(
    config: &NodeConfig,
    listener: TcpListener,
    shared: &Shared,
) -> Result<(Running, Arc<Pipeline>), NodeError> {
    let lifecycle = Lifecycle::default();
    let ingest = &config.ingest;
    let called = Called::new(config, &shared.tls)?;
    let replicas = |service: &'static str, without| {
        let options = called.options(service)?.reporting(shared.dependencies.register(service), without);
        Ok::<_, NodeError>(Cluster::start(options))
    };
    let without_limits = match ingest.ratelimiter_away {
        WhenAway::Open => Without::GoesOn,
        WhenAway::Closed => Without::Fails,
    };
    let upstreams = Upstreams {
        classifier: replicas("classifier", Without::Fails)?,
        ratelimiter: replicas("ratelimiter", without_limits)?,
        // Events wait for it.
        stats: replicas("stats", Without::GoesOn)?,
        calls: config.mesh.calls(),
        pools: config.mesh.pools(),
        shared: Verdicts::from_config(ingest, &shared.dependencies)?,
        spool: spool(config).await?,
    };
    let pipeline = Pipeline::start(ingest, &config.policy, upstreams);
    // A batch carries several images; beyond this the transport itself refuses the message.
    let largest = ingest.max_image.bytes() + ingest.max_image.bytes() / 8 + MESSAGE_SLACK;
    let service = IngestServiceServer::new(Service::new(Arc::clone(&pipeline), lifecycle.clone()))
        .max_decoding_message_size(largest.max(ingest.max_message.bytes()));
    let service = sightline_mesh::compressed!(service);
    let server = Server {
        name: Role::Ingest.name(),
        listener,
        routes: Routes::new(shared.client_guard().protect(service)),
        service_names: vec![SERVICE_NAME],
        web: Some(WebOptions { allowed_origins: ingest.cors_origins.clone() }),
        drain_timeout: ingest.drain_timeout.0,
    };
    let finish = {
        let (pipeline, drain) = (Arc::clone(&pipeline), ingest.drain_timeout.0);
        async move { pipeline.finish(Deadline::after(drain)).await }
    };
    Ok((shared.serve(Role::Ingest, server, lifecycle, Box::pin(finish))?, pipeline))
}

/// Where events wait while the statistics are away. Opening it reads what is left there.
async fn spool(config: &NodeConfig) -> Result<Option<Spool>, NodeError> {
    let (limit, durability) = (config.ingest.spool_max_bytes.0, config.ingest.spool_durability);
    if limit == 0 {
        return Ok(None);
    }
    let folder = config.node.data_dir.join(&config.ingest.spool_dir);
    let opening = tokio::task::spawn_blocking(move || Spool::open(&folder, limit, durability));
    Ok(Some(opening.await.expect("opening is neither cancelled nor does it panic")?))
}
