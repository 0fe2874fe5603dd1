//! Calls to whichever replica of a service answers: as the services call each other.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use sightline_mesh::{
    Deadline,
    client::{
        CallOptions, Channel, Cluster, ClusterOptions, Connect, MethodPolicies, MethodPolicy,
        discovery::{DiscoveryConfig, Targets},
    },
};
use tokio::time::timeout_at;

/// A frame sent from here has an id of its own, so that it counts once however often it is sent.
const CLASSIFY: &str = "/sightline.ingest.v1.IngestService/Classify";
/// How much of one request is kept for another attempt: more than the largest image that servers take by default.
const REPLAY: usize = 16 << 20;
/// The same of all that are under way: as many as `classify` sends at once.
const REPLAY_ALL: usize = 8 * REPLAY;
/// A server is asked for a sign of life this rarely, because balancers before it may count pings as an attack; every
/// call has a deadline anyway.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// An address without a port, as browsers have it.
const PORTS: [(&str, u16); 2] = [("http://", 80), ("https://", 443)];

/// Why there is no replica to call.
#[derive(Debug)]
pub(crate) struct Nobody {
    /// What went wrong last: an address and an error of the network.
    pub(crate) problem: String,
}

/// Begins to connect to the replicas that `endpoint` names, separated by commas or by a name to look up, and waits until
/// one can be called; `connect` makes the connections.
///
/// # Errors
/// When `endpoint` is no address. Within: nobody is there, or nobody was within `patience`.
pub(crate) async fn channel(
    service: &'static str,
    endpoint: &str,
    connect: Arc<dyn Connect>,
    patience: Duration,
) -> Result<Result<Channel, Nobody>> {
    let fail = || format!("--endpoint {endpoint:?} is not an address such as http://127.0.0.1:7401");
    let entries: Vec<String> = endpoint.split(',').map(|entry| with_port(entry.trim())).collect();
    let discovery = DiscoveryConfig::default().options(|name| std::env::var(name).ok());
    let targets = Targets::parse("--endpoint", &entries).with_context(fail)?;
    let discover = targets.discover("--endpoint", &discovery).with_context(fail)?;
    let mut options = ClusterOptions::over(service, discover);
    options.connect = connect;
    options.mesh.patience = patience;
    options.mesh.transport.connect_timeout = patience;
    // A server that is about to stop says that it does not serve, and answers all the same.
    options.mesh.health.service = None;
    options.mesh.transport.keepalive_interval = KEEPALIVE;
    options.mesh.transport.keepalive_timeout = KEEPALIVE;
    let cluster = Cluster::start(options);
    if !can_be_called(&cluster, Deadline::after(patience)).await {
        return Ok(Err(Nobody { problem: cluster.snapshot().last_problem }));
    }
    let calls = CallOptions { replay_bytes: REPLAY_ALL, ..CallOptions::default() };
    Ok(Ok(Channel::new(cluster, &policies()?, calls)))
}

/// What may be done with which call: what the protos say, and of a frame more.
fn policies() -> Result<MethodPolicies> {
    let classify = MethodPolicy { replay_bytes: REPLAY, ..MethodPolicy::idempotent() };
    let policies = MethodPolicies::from_protos(sightline_proto::FILE_DESCRIPTOR_SET)?;
    Ok(policies.method(CLASSIFY, classify)?)
}

/// Waits for a replica that can be called. Not longer than each of them takes to be tried once.
async fn can_be_called(cluster: &Cluster, deadline: Deadline) -> bool {
    let mut changes = cluster.changes();
    loop {
        changes.borrow_and_update();
        if cluster.endpoints().borrow().iter().any(|endpoint| endpoint.is_usable()) {
            return true;
        }
        let tried = cluster.snapshot().endpoints;
        let failed = !tried.is_empty() && tried.iter().all(|endpoint| endpoint.last_problem.is_some());
        if failed || timeout_at(deadline.instant(), changes.changed()).await.is_err() {
            return false;
        }
    }
}

/// `https://host` is `https://host:443`.
fn with_port(entry: &str) -> String {
    let usual = PORTS.iter().find_map(|(scheme, port)| Some((entry.strip_prefix(scheme)?, port)));
    match usual {
        Some((rest, port)) if !has_port(rest.trim_end_matches('/')) => {
            format!("{}:{port}", entry.trim_end_matches('/'))
        }
        _ => entry.to_owned(),
    }
}

fn has_port(authority: &str) -> bool {
    authority.rsplit_once(':').is_some_and(|(_, port)| !port.contains(']'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_a_port_has_its_schemes() {
        for (entry, wanted) in [
            ("http://127.0.0.1:7401", "http://127.0.0.1:7401"),
            ("https://images.example/", "https://images.example:443"),
            ("http://[::1]", "http://[::1]:80"),
            ("http://[::1]:7401", "http://[::1]:7401"),
            ("127.0.0.1:7401", "127.0.0.1:7401"),
            ("dns://stats.mesh:7404", "dns://stats.mesh:7404"),
        ] {
            assert_eq!(with_port(entry), wanted);
        }
    }

    #[test]
    fn frames_from_here_may_be_sent_again_and_checks_may_not() {
        let policies = policies().unwrap();
        assert!(policies.get(CLASSIFY).idempotent);
        assert!(policies.get("/sightline.stats.v1.StatsService/Query").idempotent);
        assert!(!policies.get("/sightline.ratelimiter.v1.RateLimiterService/Check").idempotent);
    }

    #[tokio::test]
    async fn what_is_no_address_is_refused_and_nobody_is_said_at_once() {
        let connect = || Arc::new(sightline_mesh::client::TcpConnect::default());
        for bad in ["", "nowhere", "http://a:1,,http://b:1", "dns://a:1,http://b:1"] {
            let error = channel("stats", bad, connect(), Duration::from_secs(1)).await.err().unwrap();
            assert!(error.to_string().contains("is not an address"), "{error:#}");
        }
        let since = std::time::Instant::now();
        let nobody =
            channel("stats", "http://127.0.0.1:9,127.0.0.1:19", connect(), Duration::from_secs(20)).await;
        assert!(nobody.unwrap().err().unwrap().problem.contains("127.0.0.1:"), "the address that was tried");
        assert!(since.elapsed() < Duration::from_secs(10), "not the whole patience");
    }
}
