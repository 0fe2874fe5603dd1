//! `sightline health`: what `grpc.health.v1` says.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use crate::{
    args::Health,
    connect::{Connection, explain},
    output,
};

pub(crate) async fn run(command: Health) -> Result<ExitCode> {
    let Health { endpoint, service, json, remote } = command;
    let connection = Connection::open("sightline", &endpoint, &remote).await?;
    let mut client = HealthClient::new(connection.channel.clone());
    let request = connection.request(HealthCheckRequest { service: service.clone() })?;
    let status = client.check(request).await.map_err(|status| explain(&status))?.into_inner().status();
    let text = status.as_str_name();
    match json {
        true => output::line(&json!({ "service": service, "status": text }).to_string())?,
        false => output::line(text)?,
    }
    Ok(if status == ServingStatus::Serving { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
