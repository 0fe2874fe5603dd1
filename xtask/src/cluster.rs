//! `cargo xtask cluster`: the production shape as processes, to look at and to break.

use std::{
    path::PathBuf,
    process::{Command, ExitCode},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use indicatif::{MultiProgress, ProgressBar};
use sightline_servers::cluster::{Cluster, Listing, Plan, Ports, Replicas, Role, kill};

use crate::{
    SetUp,
    cargo::{self, Profile},
    go, model, samples, servers, set_up,
};

const HELP: &str = "\
cargo xtask cluster [--replicas N]   start Redis, PostgreSQL, Jaeger, Prometheus and N replicas (2) of each service,
                                     print where everything is, and stay up until Ctrl-C
cargo xtask cluster --kill NAME      from another terminal: kill -9 a replica, such as classifier-1; it is started
                                     again after 5 s, as Kubernetes would";

/// How long a replica that ended stays down: long enough to see what its loss does.
const DOWN: Duration = Duration::from_secs(5);
/// How often the replicas are looked at.
const POLL: Duration = Duration::from_millis(200);

static STOP: AtomicBool = AtomicBool::new(false);

/// PostgreSQL's user must be able to reach it, which a folder under a home often is not.
fn base() -> PathBuf {
    std::env::temp_dir().join("sightline-cluster")
}

pub(crate) fn run(arguments: &[String]) -> Result<ExitCode> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let replicas = match words.as_slice() {
        ["--kill", name] => {
            kill(Listing::of(&base()).pid(name)?)?;
            cargo::print(&format!("{name} was killed; it is started again in {DOWN:?}"));
            return Ok(ExitCode::SUCCESS);
        }
        [] => 2,
        ["--replicas", count] => match count.parse() {
            Ok(count @ 1..=9) => count,
            _ => bail!("--replicas {count:?}: a number from 1 to 9"),
        },
        _ => bail!("cluster: {} is not understood\n\n{HELP}", words.join(" ")),
    };
    let progress = MultiProgress::new();
    servers::for_cluster(&progress)?;
    let SetUp { binary, .. } = set_up(&progress, Profile::Quick)?;
    let model = model::ensure(&progress, &binary, model::DEFAULT)?;
    sightline_servers::use_tools(go::folder()?);
    let plan = Plan {
        binary: binary.clone(),
        model,
        base: base(),
        replicas: Replicas::each(replicas),
        ports: Ports::Usual,
        watched: true,
        settings: vec!["ratelimiter.rules=dev".into()],
        reach: vec![],
    };
    plan.clear()?;
    ctrlc::set_handler(|| STOP.store(true, Ordering::Relaxed)).context("Ctrl-C cannot be caught")?;
    let bar = progress.add(ProgressBar::new_spinner());
    bar.enable_steady_tick(POLL);
    let cluster = Cluster::start(&plan, &mut |what| bar.set_message(what.to_owned()))?;
    bar.finish_and_clear();
    let images = samples::ensure(&progress)?;
    let ingest = cluster.of(Role::Ingest).next().context("an ingest was started")?.address;
    let mut classify = Command::new(&binary);
    classify.arg("classify").args(["--endpoint", &format!("http://{ingest}")]).args(images);
    cargo::status(&mut classify)?;
    banner(&cluster, ingest);
    watch(cluster)
}

fn banner(cluster: &Cluster, ingest: std::net::SocketAddr) {
    cargo::print("");
    for member in cluster.members.iter().rev() {
        let (name, address, admin) = (&member.name, member.address, member.admin);
        cargo::print(&format!("{name:<14} http://{address:<21} metrics http://{admin}/metrics"));
    }
    for (name, port) in [
        ("jaeger", cluster.jaeger.as_ref().map(|jaeger| jaeger.port())),
        ("prometheus", cluster.prometheus.as_ref().map(|prometheus| prometheus.port())),
    ] {
        if let Some(port) = port {
            cargo::print(&format!("{name:<14} http://127.0.0.1:{port}"));
        }
    }
    for (name, url) in [
        ("redis limits", cluster.limits.url()),
        ("redis cache", cluster.cache.url()),
        ("postgresql", cluster.postgres.url()),
    ] {
        cargo::print(&format!("{name:<14} {url}"));
    }
    cargo::print(&format!("\nlogs are in {}", cluster.logs().display()));
    cargo::print(&format!("try: sightline classify --endpoint http://{ingest} photo.jpg"));
    cargo::print("     cargo xtask cluster --kill classifier-1   (from another terminal)");
    cargo::print("Ctrl-C stops everything");
}

/// Starts again what ended, until Ctrl-C.
#[allow(clippy::disallowed_methods)] // there is no runtime here that sleeping could block
fn watch(mut cluster: Cluster) -> Result<ExitCode> {
    let listing = Listing::of(&base());
    listing.write(&cluster)?;
    let mut down: Vec<(String, Instant)> = Vec::new();
    while !STOP.load(Ordering::Relaxed) {
        std::thread::sleep(POLL);
        for member in &mut cluster.members {
            if !member.server.is_running() && !down.iter().any(|(name, _)| *name == member.name) {
                cargo::print(&format!("{} ended; it is started again in {DOWN:?}", member.name));
                down.push((member.name.clone(), Instant::now()));
            }
        }
        let due: Vec<_> = down.extract_if(.., |(_, since)| since.elapsed() > DOWN).collect();
        for (name, _) in due {
            if let Some(member) = cluster.member(&name) {
                member.server.restart()?;
                cargo::print(&format!("{name} is back"));
            }
            listing.write(&cluster)?;
        }
    }
    cargo::print("stopping");
    listing.remove();
    cluster.stop()?;
    Ok(ExitCode::SUCCESS)
}
