//! The whole mesh in the test's process.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use sightline_node::{Node, NodeConfig, Role};
use sightline_proto::{
    classifier::classifier_service_client::ClassifierServiceClient,
    ingest::{ClassifyRequest, Frame, ingest_service_client::IngestServiceClient},
    ratelimiter::rate_limiter_service_client::RateLimiterServiceClient,
    stats::{QueryRequest, stats_service_client::StatsServiceClient},
    verdict::Verdict,
};
use tempfile::TempDir;
use tonic::{Status, transport::Channel};

use crate::models::Small;

/// All four services on free ports of loopback, embedded stores in a temporary folder, the preset of limits "dev" and
/// a small model, unless told otherwise.
pub struct MeshSandbox {
    node: Node,
    folder: TempDir,
}

impl MeshSandbox {
    /// Starts with everything as usual.
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// Starts with some settings changed. A model named by `change` replaces the small one.
    pub async fn start_with(change: impl FnOnce(&mut NodeConfig)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Self::config(&folder);
        change(&mut config);
        if config.classifier.models.is_empty() {
            config.classifier.models = vec![Small::default().write(folder.path())];
        }
        let node = Node::start(config, &Role::ALL).await.unwrap_or_else(|error| panic!("{error}"));
        node.ready(Duration::from_secs(60)).await.unwrap_or_else(|error| panic!("{error}"));
        Self { node, folder }
    }

    /// Settings for a test: free ports, files in `folder`.
    pub fn config(folder: &TempDir) -> NodeConfig {
        let mut config = NodeConfig::default();
        config.node.data_dir = folder.path().join("data");
        config.telemetry.admin_listen = sightline_config::Listen::at(any_port());
        config.ingest.listen = any_port();
        config.classifier.listen = any_port();
        config.ratelimiter.listen = any_port();
        config.stats.listen = any_port();
        config.ratelimiter.rules = "dev".into();
        config
    }

    /// A folder that goes with the sandbox.
    pub fn folder(&self) -> PathBuf {
        self.folder.path().into()
    }

    /// Where a role listens.
    pub fn address(&self, role: Role) -> SocketAddr {
        self.node.address(role).unwrap()
    }

    /// Where /metrics is.
    pub fn admin_address(&self) -> SocketAddr {
        self.node.admin_address().unwrap()
    }

    /// A connection to a role.
    pub async fn channel(&self, role: Role) -> Channel {
        let uri = format!("http://{}", self.address(role));
        Channel::from_shared(uri).unwrap().connect().await.unwrap()
    }

    /// A client of the public API.
    pub async fn ingest(&self) -> IngestServiceClient<Channel> {
        IngestServiceClient::new(self.channel(Role::Ingest).await).max_encoding_message_size(64 << 20)
    }

    /// A client of the classifier.
    pub async fn classifier(&self) -> ClassifierServiceClient<Channel> {
        ClassifierServiceClient::new(self.channel(Role::Classifier).await)
    }

    /// A client of the rate limiter.
    pub async fn ratelimiter(&self) -> RateLimiterServiceClient<Channel> {
        RateLimiterServiceClient::new(self.channel(Role::Ratelimiter).await)
    }

    /// A client of the statistics.
    pub async fn stats(&self) -> StatsServiceClient<Channel> {
        StatsServiceClient::new(self.channel(Role::Stats).await)
    }

    /// Frames counted so far.
    pub async fn counted(&self) -> u64 {
        let page = self.stats().await.query(QueryRequest::default()).await.unwrap().into_inner();
        page.rows.iter().map(|row| row.frames).sum()
    }

    /// Classifies one image for a user named "ada".
    ///
    /// # Errors
    /// The status of the call.
    pub async fn classify(&self, image: Vec<u8>) -> Result<Verdict, Status> {
        let frame = Frame { user_id: "ada".into(), image: image.into(), ..Frame::default() };
        let answer = self.ingest().await.classify(ClassifyRequest { frame: Some(frame) }).await?;
        Ok(answer.into_inner().verdict.unwrap())
    }

    /// Stops the mesh as a signal would.
    pub async fn stop(self) {
        self.node.stop().await;
    }

    /// Stops the mesh and gives the folder with its files.
    pub async fn stop_keeping_files(self) -> TempDir {
        self.node.stop().await;
        self.folder
    }
}

fn any_port() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}
