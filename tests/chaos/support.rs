//! Clusters to be broken, and what they counted.

use std::{
    net::SocketAddr,
    path::Path,
    time::{Duration, Instant},
};

use sightline_proto::{
    ratelimiter::{CheckRequest, rate_limiter_service_client::RateLimiterServiceClient},
    stats::{QueryRequest, stats_service_client::StatsServiceClient},
};
use sightline_servers::{
    cluster::{Cluster, Plan, Ports, Reach, Replicas, Role},
    there,
};
use sightline_testkit::{models::Small, setup};
use tempfile::TempDir;
use tokio::{sync::Mutex, task::block_in_place};

/// What needs no time at all on an idle machine, and ends a test that hangs.
pub const LONG: Duration = Duration::from_secs(30);

/// These tests measure: one at a time.
pub static ALONE: Mutex<()> = Mutex::const_new(());

/// What all frames of the load have in common, so that one counter of the rate limiter counts them all.
pub const APPLICATION: &str = "chaos";

/// One hit comes back a minute, and the burst is more than any test sends: how full the counter is says exactly how often
/// it was charged.
const RULES: &str = r#"
[[rule]]
name = "count"
keys = ["application"]
limit = 1
per = "1m"
burst = 500_000
"#;
const INTERVAL: Duration = Duration::from_secs(60);

/// A number from the environment: the long form of a test.
pub fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).map_or(default, |text| text.parse().unwrap())
}

/// What of a cluster differs from test to test.
pub struct Shape<'a> {
    pub replicas: Replicas,
    pub model: Small,
    pub settings: &'a [&'a str],
    pub reach: &'a [(&'a str, Reach)],
}

/// A cluster in a folder of its own, or a visible skip.
pub fn start(folder: &TempDir, shape: &Shape<'_>) -> Option<Cluster> {
    let own = [
        format!("ratelimiter.rules={}", write_rules(folder.path())),
        // None may be decided without Redis here, however busy the machine is: it would not be counted.
        "ratelimiter.redis_timeout=10s".into(),
        "ratelimiter.replicas=3".into(),
        // Known sizes spare the measurement at start.
        "classifier.executors=1".into(),
        "classifier.max_batch=4".into(),
    ];
    let plan = Plan {
        binary: setup::path("SIGHTLINE_TEST_BINARY")?,
        model: shape.model.write(folder.path()),
        base: folder.path().join("cluster"),
        replicas: shape.replicas,
        ports: Ports::Free,
        watched: false,
        settings: own.into_iter().chain(shape.settings.iter().map(ToString::to_string)).collect(),
        reach: shape.reach.iter().map(|(name, reach)| ((*name).to_owned(), *reach)).collect(),
    };
    block_in_place(|| there(Cluster::start(&plan, &mut |_| {})))
}

fn write_rules(folder: &Path) -> String {
    let path = folder.join("rules.toml");
    std::fs::write(&path, RULES).unwrap();
    path.display().to_string()
}

/// Where the replicas of a service are.
pub fn addresses(cluster: &Cluster, role: Role) -> Vec<SocketAddr> {
    cluster.of(role).map(|member| member.address).collect()
}

/// Waits until exactly so many frames are counted, and looks again that it stays so.
pub async fn counted(stats: SocketAddr, frames: u64) {
    let mut stats = StatsServiceClient::connect(format!("http://{stats}")).await.unwrap();
    let since = Instant::now();
    loop {
        let rows = stats.query(QueryRequest::default()).await.unwrap().into_inner().rows;
        let counted: u64 = rows.iter().map(|row| row.frames).sum();
        if counted == frames {
            break;
        }
        assert!(counted < frames && since.elapsed() < LONG, "{counted} of {frames} frames are counted");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let rows = stats.query(QueryRequest::default()).await.unwrap().into_inner().rows;
    assert_eq!(rows.iter().map(|row| row.frames).sum::<u64>(), frames);
}

/// How often the rate limiter has charged a frame, since `begun`.
pub async fn charged(limiter: SocketAddr, begun: Instant) -> u64 {
    let mut limiter = RateLimiterServiceClient::connect(format!("http://{limiter}")).await.unwrap();
    let keys = [("application".to_owned(), APPLICATION.to_owned())].into();
    let check = CheckRequest { keys, hits: 1, ..CheckRequest::default() };
    let status = limiter.check(check).await.unwrap().into_inner().rules.remove(0);
    let full: Duration = status.reset_after.unwrap().try_into().unwrap();
    let charged = (full + begun.elapsed()).as_secs_f64() / INTERVAL.as_secs_f64();
    // This check was one of them.
    charged.round() as u64 - 1
}
