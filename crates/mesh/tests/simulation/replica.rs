//! A replica: the scripted service on our own server, on a host that may be killed and started again.

use std::{
    sync::{Arc, Mutex, atomic::Ordering},
    time::Duration,
};

use sightline_config::HumanDuration;
use sightline_mesh::server::{Lifecycle, Options, Server, ServerConfig};
use sightline_proto::{
    FILE_DESCRIPTOR_SET, ratelimiter::rate_limiter_service_server::RateLimiterServiceServer,
};
use sightline_telemetry::dependencies::{Condition, Dependencies, Dependency};
use tokio::time::sleep;
use tonic::service::Routes;

use crate::{
    network::{Names, PORT, SimListen},
    plan::Serving,
    scripted::{Script, Scripted},
};

/// What the replicas watch, so that their health can be turned without an end.
const DISK: &str = "disk";
/// The name of its health.
pub const HEALTH: &str = "dependency.disk";

/// One host and what is known of it whether it runs or not.
pub struct Host {
    pub name: String,
    pub script: Arc<Script>,
    serving: Serving,
    seed: u64,
    names: Names,
    /// Of the process that runs.
    process: Mutex<Process>,
}

struct Process {
    lifecycle: Lifecycle,
    disk: Dependency,
}

impl Host {
    pub fn new(number: usize, credits: u32, serving: Serving, seed: u64, names: &Names) -> Arc<Self> {
        let script = Arc::<Script>::default();
        script.credits.store(credits, Ordering::SeqCst);
        script.delay_ms.store(serving.delay_ms, Ordering::SeqCst);
        let disk = Dependencies::default().register(DISK);
        let process = Mutex::new(Process { lifecycle: Lifecycle::default(), disk });
        let (name, names) = (format!("replica-{number}"), names.clone());
        let host = Self { name, script, serving, seed, names, process };
        host.named(true);
        Arc::new(host)
    }

    pub fn authority(&self) -> String {
        format!("{}:{PORT}", self.name)
    }

    /// Asks the process to stop; another takes its place.
    pub fn drain(&self) {
        self.process.lock().unwrap().lifecycle.drain();
    }

    /// The process serves, or says that it does not.
    pub fn healthy(&self, healthy: bool) {
        let condition = if healthy { Condition::Healthy } else { Condition::Down("full".into()) };
        self.process.lock().unwrap().disk.report(condition);
    }

    /// Discovery finds it, or does not.
    pub fn named(&self, named: bool) {
        self.names.set(self.authority(), named);
    }

    /// An ordinary answer takes so long again.
    pub fn fast(&self) {
        self.script.delay_ms.store(self.serving.delay_ms, Ordering::SeqCst);
    }

    /// What runs on the host: one process after another.
    pub async fn run(self: Arc<Self>) -> turmoil::Result {
        loop {
            let (lifecycle, dependencies) = (Lifecycle::default(), Dependencies::default());
            let disk = dependencies.register(DISK);
            *self.process.lock().unwrap() = Process { lifecycle: lifecycle.clone(), disk };
            let server = Server {
                name: "simulated",
                listener: SimListen::bind().await?,
                routes: Routes::new(RateLimiterServiceServer::new(Scripted(Arc::clone(&self.script)))),
                service_names: vec!["sightline.ratelimiter.v1.RateLimiterService"],
                web: None,
                drain_timeout: self.serving.drain_timeout,
            };
            server.run_with(lifecycle, self.options(dependencies)).await?;
            sleep(self.serving.downtime).await;
        }
    }

    fn options(&self, dependencies: Dependencies) -> Options {
        let config = ServerConfig {
            lame_duck: HumanDuration(self.serving.lame_duck),
            max_connection_age: HumanDuration(self.serving.max_connection_age),
            max_connection_age_grace: HumanDuration(Duration::from_secs(1)),
            ..ServerConfig::default()
        };
        let (descriptors, seed) = (vec![FILE_DESCRIPTOR_SET], Some(self.seed));
        Options { config, descriptors, dependencies, seed, ..Options::default() }
    }
}
