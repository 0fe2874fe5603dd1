//! `sightline serve`: one or more services of the mesh.

use std::process::ExitCode;

use anyhow::Result;
use sightline_node::{Node, Role};

use super::asked_to_stop;
use crate::{
    args::{Serve, Service, Settings},
    settings,
};

pub(crate) async fn run(layers: &Settings, command: Serve) -> Result<ExitCode> {
    let mut config = settings::read(layers)?;
    config.node.insecure |= command.insecure;
    sightline_telemetry::logs::init(&config.telemetry)?;
    let roles: Vec<Role> = command.services.into_iter().map(role).collect();
    let stop = asked_to_stop()?;
    tokio::pin!(stop);
    let mut node = tokio::select! {
        started = Node::start(config, &roles) => started?,
        () = &mut stop => return Ok(ExitCode::SUCCESS),
    };
    tokio::select! {
        () = stop => {}
        error = node.failed() => return Err(error.into()),
    }
    node.stop().await;
    Ok(ExitCode::SUCCESS)
}

fn role(service: Service) -> Role {
    match service {
        Service::Ingest => Role::Ingest,
        Service::Classifier => Role::Classifier,
        Service::Stats => Role::Stats,
        Service::Ratelimiter => Role::Ratelimiter,
    }
}
