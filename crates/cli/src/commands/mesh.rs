//! `sightline mesh top`: the services that a process calls, live.

use std::{
    io::{self, IsTerminal, Write},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, Result, bail};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::{Request, body::Bytes, client::conn::http1::handshake, header::HOST};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::time::timeout;

use super::{INTERRUPTED, asked_to_stop};
use crate::{args::Mesh, connect::Dialer, output};

/// How long the admin port may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// An answer is a few hundred bytes per replica; one of a thousand replicas is far smaller.
const MAX_ANSWER: usize = 16 << 20;
/// Clears a terminal and goes to its first place (ECMA-48).
const CLEAR: &str = "\x1b[2J\x1b[H";

const HEAD: [&str; 12] = [
    "SERVICE",
    "REPLICA",
    "ZONE",
    "STATE",
    "IN FLIGHT",
    "LATENCY",
    "BUSY",
    "QUEUE",
    "STREAMS",
    "CREDITS",
    "EJECTED",
    "PROBLEM",
];
/// Columns of numbers.
const RIGHT: [usize; 7] = [4, 5, 6, 7, 8, 9, 10];

pub(crate) async fn run(command: Mesh) -> Result<ExitCode> {
    let Mesh::Top { admin, every, once, json, tls } = command;
    if every.is_zero() {
        bail!("--every must be longer than 0s");
    }
    let live = io::stdout().is_terminal() && !once && !json;
    let dialer = Dialer::new("--admin", &admin, &tls, b"http/1.1", PATIENCE).await?;
    let stop = asked_to_stop()?;
    if !live {
        let page = tokio::select! {
            page = ask(&admin, &dialer) => page?,
            () = stop => return Ok(ExitCode::from(INTERRUPTED)),
        };
        match json {
            true => output::line(&page.to_string())?,
            false => show(&page)?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut seen = false;
    let watched = async {
        loop {
            match ask(&admin, &dialer).await {
                Ok(page) => {
                    seen = true;
                    write!(io::stdout(), "{CLEAR}")?;
                    show(&page)?;
                }
                // Whoever watches a process that restarts goes on watching.
                Err(error) if seen => {
                    write!(io::stdout(), "{CLEAR}")?;
                    output::line(&format!("{error:#}\nasked again every {every:?}"))?;
                }
                Err(error) => return Err(error),
            }
            tokio::time::sleep(every).await;
        }
    };
    tokio::select! {
        failed = watched => failed,
        () = stop => Ok(ExitCode::SUCCESS),
    }
}

/// The page `/mesh` of an admin port.
async fn ask(admin: &str, dialer: &Dialer) -> Result<Value> {
    let asked = timeout(PATIENCE, get(dialer)).await;
    let answer =
        asked.map_err(|_| anyhow::anyhow!("no answer within {PATIENCE:?}")).and_then(|answer| answer);
    answer
        .with_context(|| format!("--admin {admin}: is it the telemetry.admin_listen of a running sightline?"))
}

async fn get(dialer: &Dialer) -> Result<Value> {
    let stream = dialer.connect.connect(&dialer.address).await?;
    let (mut sender, connection) = handshake::<_, Empty<Bytes>>(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::get("/mesh").header(HOST, dialer.address.authority.as_str()).body(Empty::new())?;
    let response = sender.send_request(request).await?;
    if !response.status().is_success() {
        bail!("it answered {}", response.status());
    }
    let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    let body = body.map_err(|error| anyhow::anyhow!("its answer broke off: {error}"))?.to_bytes();
    serde_json::from_slice(&body).context("its answer is not JSON")
}

fn show(page: &Value) -> Result<()> {
    let services = page.as_array().map_or(&[][..], Vec::as_slice);
    if services.is_empty() {
        return output::line("this process calls no other: ask an ingest");
    }
    output::table(&HEAD, &services.iter().flat_map(rows).collect::<Vec<_>>(), &RIGHT)?;
    for service in services {
        let name = text(&service["service"]);
        if service["failing_fast"] == true {
            output::line(&format!("{name}: calls fail at once: {}", text(&service["last_problem"])))?;
        } else if service["panic"] == true {
            output::line(&format!("{name}: too few replicas are usable, all that are connected are tried"))?;
        }
        if let Some(waiting) = service["waiting"].as_u64().filter(|waiting| *waiting > 0) {
            output::line(&format!("{name}: {waiting} messages wait for a credit"))?;
        }
    }
    Ok(())
}

/// A line for each replica of one service.
fn rows(service: &Value) -> Vec<Vec<String>> {
    let endpoints = service["endpoints"].as_array().map_or(&[][..], Vec::as_slice);
    let row = |(index, endpoint): (usize, &Value)| {
        let streams = &service["streams"][index];
        let number = |value: &Value, unit: &str| {
            value.as_f64().map_or("-".into(), |value| format!("{value:.1}{unit}"))
        };
        let count = |value: &Value| value.as_u64().map_or("-".into(), |value| value.to_string());
        vec![
            text(&service["service"]),
            text(&endpoint["address"]),
            text(&endpoint["zone"]),
            text(&endpoint["state"]),
            count(&endpoint["in_flight"]),
            number(&endpoint["ewma_ms"], " ms"),
            endpoint["occupancy"].as_f64().map_or("-".into(), |busy| format!("{:.0} %", busy * 100.0)),
            number(&endpoint["queue_delay_ms"], " ms"),
            count(&streams["open"]),
            count(&streams["credits"]),
            count(&endpoint["ejections"]),
            text(&endpoint["last_problem"]),
        ]
    };
    match endpoints.is_empty() {
        true => vec![vec![text(&service["service"]), "none found yet".into()]],
        false => endpoints.iter().enumerate().map(row).collect(),
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or("-").to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_replica_is_a_line_and_what_is_not_known_a_dash() {
        let service = json!({
            "service": "stats",
            "endpoints": [{"address": "10.0.0.1:7404", "state": "ready", "in_flight": 3, "ewma_ms": 1.25, "ejections": 0}],
            "streams": [{"open": 2, "credits": 7}],
        });
        let row = &rows(&service)[0];
        assert_eq!(row.join(" "), "stats 10.0.0.1:7404 - ready 3 1.2 ms - - 2 7 0 -");
        assert_eq!(row.len(), HEAD.len());
    }

    #[test]
    fn a_service_without_replicas_says_so() {
        assert_eq!(rows(&json!({"service": "stats", "endpoints": []}))[0][1], "none found yet");
    }
}
