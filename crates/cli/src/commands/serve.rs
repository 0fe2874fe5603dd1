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
    let roles: Vec<Role> = command.services.into_iter().map(role).collect();
    let telemetry = sightline_telemetry::start(&config.telemetry, &service_name(&roles))?;
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
    telemetry.stop().await;
    Ok(ExitCode::SUCCESS)
}

/// As `node.worker_threads` says; a rate limiter by itself has one unless told otherwise.
pub(crate) fn worker_threads(layers: &Settings, command: &Serve) -> Result<Option<usize>> {
    let limiter = command.services.iter().all(|service| matches!(service, Service::Ratelimiter));
    let told = settings::read(layers)?.node.worker_threads;
    Ok(told.or(limiter.then_some(1)))
}

/// What traces call this process: `sightline-ingest`; with all roles in it just `sightline`.
fn service_name(roles: &[Role]) -> String {
    let names = Role::ALL.iter().filter(|role| roles.contains(role)).map(|role| format!("-{}", role.name()));
    match names.clone().count() == Role::ALL.len() {
        true => "sightline".into(),
        false => format!("sightline{}", names.collect::<String>()),
    }
}

fn role(service: Service) -> Role {
    match service {
        Service::Ingest => Role::Ingest,
        Service::Classifier => Role::Classifier,
        Service::Stats => Role::Stats,
        Service::Ratelimiter => Role::Ratelimiter,
    }
}
