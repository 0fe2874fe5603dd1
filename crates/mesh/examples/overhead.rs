//! What a cluster costs over a bare tonic channel: the same server, the same call, in turns in one run.
//!
//! `cargo run --release -p sightline-mesh --example overhead`. The call is a health check, so that nearly all time is the
//! library's. Each way runs in rounds one after another, and the median of the rounds counts. The processor's time per call,
//! server included, is steadier than the rate where other programs run.

#![allow(clippy::print_stdout, clippy::unwrap_used)] // a program for people

use std::time::{Duration, Instant};

use sightline_mesh::{
    Deadline,
    client::{Cluster, ClusterOptions, Fixed, Outcome, Pick},
    health::HealthRegistry,
};
use tonic::transport::{Channel, Endpoint, Server};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_millis(1500);
const CALLERS: usize = 50;

/// A way to make one call.
#[derive(Clone)]
enum Way {
    Bare(Channel),
    Mesh(Cluster),
}

impl Way {
    async fn call(&self) {
        match self {
            Self::Bare(channel) => {
                HealthClient::new(channel.clone()).check(HealthCheckRequest::default()).await.unwrap();
            }
            Self::Mesh(cluster) => {
                let deadline = Deadline::after(Duration::from_secs(5));
                let picked = cluster.pick(Pick::until(deadline)).await.unwrap();
                let mut client = HealthClient::new(picked.transport().unwrap());
                client.check(HealthCheckRequest::default()).await.unwrap();
                picked.done(Outcome::Success);
            }
        }
    }

    /// `callers` that call one after another for one round.
    async fn round(&self, callers: usize) -> Round {
        let before = processor_time();
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..callers {
            let way = self.clone();
            tasks.spawn(async move {
                let (mut latencies, end) = (Vec::new(), Instant::now() + ROUND);
                while Instant::now() < end {
                    let since = Instant::now();
                    way.call().await;
                    latencies.push(since.elapsed());
                }
                latencies
            });
        }
        let latencies: Vec<Duration> = tasks.join_all().await.into_iter().flatten().collect();
        let calls = latencies.len() as f64;
        Round {
            rate: calls / ROUND.as_secs_f64(),
            p50: median(latencies).as_secs_f64() * 1e6,
            cpu: (processor_time() - before) / calls * 1e6,
        }
    }
}

/// What one round showed: calls per second, and µs.
struct Round {
    rate: f64,
    p50: f64,
    cpu: f64,
}

/// Seconds of processor that this process has used: fields 14 and 15 of `/proc/self/stat`, in hundredths.
fn processor_time() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat.rsplit_once(')').unwrap().1.split_whitespace().skip(11).take(2);
    fields.map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / 100.0
}

fn median<T: Copy + PartialOrd>(mut of: Vec<T>) -> T {
    of.sort_by(|a, b| a.partial_cmp(b).unwrap());
    of[of.len() / 2]
}

async fn serve() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let health = HealthRegistry::default();
    health.set("", ServingStatus::Serving);
    let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
    tokio::spawn(Server::builder().add_service(health.service()).serve_with_incoming(incoming));
    address
}

fn main() {
    let runtime = |threads| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build().unwrap()
    };
    let (servers, clients) = (runtime(1), runtime(1));
    let address = servers.block_on(async { tokio::spawn(serve()).await.unwrap() });
    clients.block_on(async {
        // With the settings of a mesh connection: what is compared is the way to it.
        let alive = Duration::from_secs(2);
        let channel = Endpoint::from_shared(format!("http://{address}"))
            .unwrap()
            .tcp_nodelay(true)
            .http2_keep_alive_interval(alive)
            .keep_alive_timeout(alive)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20);
        let bare = Way::Bare(channel.connect().await.unwrap());
        let fixed = Fixed::from_uris("health", &[address]).unwrap();
        let mesh = Way::Mesh(Cluster::start(ClusterOptions::new("health", fixed)));
        for callers in [1, CALLERS] {
            let mut rounds = [Vec::new(), Vec::new()];
            bare.round(callers).await;
            mesh.round(callers).await;
            for _ in 0..ROUNDS {
                rounds[0].push(bare.round(callers).await);
                rounds[1].push(mesh.round(callers).await);
            }
            let of = |rounds: &[Round], what: fn(&Round) -> f64| median(rounds.iter().map(what).collect());
            let names = ["bare", "mesh"];
            for (name, rounds) in names.iter().zip(&rounds) {
                let (rate, p50, cpu) = (of(rounds, |r| r.rate), of(rounds, |r| r.p50), of(rounds, |r| r.cpu));
                println!(
                    "{callers:>3} callers, {name}: {rate:.0}/s, p50 {p50:.1} µs, processor {cpu:.1} µs/call"
                );
            }
            let ratio = |what| of(&rounds[1], what) / of(&rounds[0], what);
            println!("    mesh ÷ bare: rate {:.3}, processor {:.3}", ratio(|r| r.rate), ratio(|r| r.cpu));
        }
    });
}
