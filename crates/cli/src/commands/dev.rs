//! `sightline dev`: the whole mesh in one process.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use sightline_node::{Node, NodeConfig, Role};

use super::{INTERRUPTED, asked_to_stop, classify};
use crate::{
    args::{Classify, Dev, Remote, Settings, Tls},
    output,
    settings::{self, Logs},
};

pub(crate) async fn run(layers: &Settings, command: Dev) -> Result<ExitCode> {
    let logs = if command.once { Logs::Quiet } else { Logs::Usual };
    let mut config = settings::read_dev(layers, logs)?;
    if command.once {
        settings::on_free_ports(&mut config);
    }
    let telemetry = sightline_telemetry::start(&config.telemetry, "sightline")?;
    let stop = asked_to_stop()?;
    tokio::pin!(stop);
    let once = command.once;
    let mut node = tokio::select! {
        started = Node::start(config.clone(), &Role::ALL) => started?,
        () = &mut stop => return Ok(interrupted(once)),
    };
    let code = tokio::select! {
        code = begin(&node, &config, command) => code?,
        () = &mut stop => {
            node.stop().await;
            telemetry.stop().await;
            return Ok(interrupted(once));
        }
    };
    if !once {
        tokio::select! {
            () = stop => {}
            error = node.failed() => return Err(error.into()),
        }
    }
    node.stop().await;
    telemetry.stop().await;
    Ok(code)
}

/// Being stopped is how a mesh ends; images that were to be classified were not.
fn interrupted(once: bool) -> ExitCode {
    if once { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS }
}

async fn begin(node: &Node, config: &NodeConfig, command: Dev) -> Result<ExitCode> {
    if !command.images.is_empty() && config.edge_tls.cert_file.is_some() {
        bail!(
            "images are sent in plain HTTP, and `edge_tls.cert_file` is set: start without images, then \
             `sightline classify --endpoint https://…`"
        );
    }
    node.ready(classify::START_TIMEOUT).await?;
    let code = match command.images.is_empty() {
        true => ExitCode::SUCCESS,
        false => samples(node, command.images).await?,
    };
    if !command.once {
        banner(node, config)?;
    }
    Ok(code)
}

async fn samples(node: &Node, images: Vec<std::path::PathBuf>) -> Result<ExitCode> {
    let address = node.address(Role::Ingest).context("ingest was started")?;
    let command = Classify {
        files: images,
        json: false,
        endpoint: None,
        model: None,
        user: "sample".into(),
        application: "sightline-dev".into(),
        remote: Remote {
            token_file: None,
            timeout: std::time::Duration::from_secs(30).into(),
            tls: Tls::default(),
        },
    };
    let outcomes = classify::classify(&format!("http://{address}"), &command).await?;
    classify::print(&outcomes, false)
}

fn banner(node: &Node, config: &NodeConfig) -> Result<()> {
    output::line("")?;
    let postgres = config.stats.postgres_url.is_some();
    let what = |role| match role {
        Role::Ingest => "gRPC and grpc-web; clients connect here",
        Role::Classifier => "gRPC; models in this process",
        Role::Ratelimiter => "gRPC; counters in memory",
        Role::Stats if postgres => "gRPC; PostgreSQL",
        Role::Stats => "gRPC; SQLite",
    };
    let scheme = |role| match role {
        Role::Ingest => scheme(config.edge_tls.cert_file.is_some()),
        _ => scheme(config.tls.cert_file.is_some()),
    };
    for role in Role::ALL.into_iter().rev() {
        if let Some(address) = node.address(role) {
            output::line(&format!("{:<12} {}://{address:<21}  {}", role.name(), scheme(role), what(role)))?;
        }
    }
    if let Some(address) = node.admin_address() {
        output::line(&format!("{:<12} http://{}", "metrics", format_args!("{address}/metrics")))?;
    }
    let data = std::fs::canonicalize(&config.node.data_dir).unwrap_or(config.node.data_dir.clone());
    let statistics = match postgres {
        true => "statistics are in PostgreSQL".to_owned(),
        false => format!("stores are embedded: statistics in {}", data.display()),
    };
    output::line(&format!("\n{statistics}, limits and cache in memory"))?;
    output::line(&format!(
        "limits are the preset {:?}; production has its own (--set ratelimiter.rules=production)",
        config.ratelimiter.rules
    ))?;
    output::line(&format!(
        "try: sightline classify --endpoint {}://{} photo.jpg",
        scheme(Role::Ingest),
        node.address(Role::Ingest).context("ingest was started")?
    ))?;
    output::line("Ctrl-C stops everything")
}

fn scheme(tls: bool) -> &'static str {
    if tls { "https" } else { "http" }
}
