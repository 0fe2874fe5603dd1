//! Wires the statistics.

use std::path::Path;

use sightline_mesh::server::{Lifecycle, Server};
use sightline_proto::stats::stats_service_server::{SERVICE_NAME, StatsServiceServer};
use sightline_stats::{MAX_REQUEST_BYTES, StatsConfig, build};
use tokio::net::TcpListener;
use tonic::service::Routes;

use super::{Running, Shared};
use crate::{NodeError, Role};

pub(crate) async fn start(
    config: &StatsConfig,
    data_dir: &Path,
    listener: TcpListener,
    shared: &Shared,
) -> Result<Running, NodeError> {
    let lifecycle = Lifecycle::default();
    let stats = build(config, data_dir, lifecycle.clone(), &shared.dependencies).await?;
    let service = StatsServiceServer::new(stats.service()).max_decoding_message_size(MAX_REQUEST_BYTES);
    let server = Server {
        name: Role::Stats.name(),
        listener,
        routes: Routes::new(shared.service_guard().protect(service)),
        service_names: vec![SERVICE_NAME],
        web: None,
        drain_timeout: config.drain_timeout.0,
    };
    shared.serve(Role::Stats, server, lifecycle, Box::pin(stats.close()))
}
