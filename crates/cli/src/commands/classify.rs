//! `sightline classify`: files in, verdicts out.

use std::{
    collections::HashSet,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use futures_util::{StreamExt, TryStreamExt, stream};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};
use sightline_mesh::{
    RpcError,
    auth::AuthConfig,
    identity::{EdgeTlsConfig, MeshTlsConfig},
};
use sightline_node::{Node, Role};
use sightline_proto::{
    ingest::{ClassifyRequest, Frame, ingest_service_client::IngestServiceClient},
    verdict::{Score, Verdict},
};
use uuid::Uuid;

use crate::{
    args::{Classify, Settings, Tls},
    connect::Connection,
    output,
    settings::{self, Logs},
};

/// Files on their way at once: enough to keep a few cores busy, few enough that none waits long.
const CONCURRENCY: usize = 8;
/// A file larger than this is refused before it is read: no server takes it.
const MAX_FILE: u64 = 256 << 20;
/// How long the mesh in this process may take to load its models.
pub(super) const START_TIMEOUT: Duration = Duration::from_secs(60);

/// What became of one file.
pub(super) struct Outcome {
    pub(super) path: PathBuf,
    pub(super) result: Result<Verdict, RpcError>,
    pub(super) took: Duration,
}

pub(crate) async fn run(settings: &Settings, command: Classify) -> Result<ExitCode> {
    let Some(endpoint) = command.endpoint.clone() else {
        return in_this_process(settings, command).await;
    };
    let outcomes = classify(&endpoint, &command).await?;
    print(&outcomes, command.json)
}

async fn in_this_process(layers: &Settings, mut command: Classify) -> Result<ExitCode> {
    let mut config = settings::read_dev(layers, Logs::Quiet)?;
    settings::on_free_ports(&mut config);
    // Nobody but this process is to talk to it, and this process has no token and no certificate.
    config.auth = AuthConfig::default();
    (config.edge_tls, config.tls) = (EdgeTlsConfig::default(), MeshTlsConfig::default());
    command.remote.tls = Tls::default();
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    config.node.data_dir = folder.path().into();
    let telemetry = sightline_telemetry::start(&config.telemetry, "sightline")?;
    let node = Node::start(config, &Role::ALL).await?;
    node.ready(START_TIMEOUT).await?;
    let address = node.address(Role::Ingest).context("ingest was started")?;
    let outcomes = classify(&format!("http://{address}"), &command).await;
    node.stop().await;
    telemetry.stop().await;
    print(&outcomes?, command.json)
}

/// Classifies the files of `command` through the public API at `endpoint`, in the order given.
pub(super) async fn classify(endpoint: &str, command: &Classify) -> Result<Vec<Outcome>> {
    let connection = Connection::open("ingest", endpoint, &command.remote).await?;
    let bar = ProgressBar::new(command.files.len() as u64).with_style(
        ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}").expect("the template is constant"),
    );
    if command.files.len() <= CONCURRENCY {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }
    let outcomes = stream::iter(&command.files)
        .map(|path| one(&connection, path, command))
        .buffered(CONCURRENCY)
        .inspect(|_| bar.inc(1))
        .try_collect()
        .await;
    bar.finish_and_clear();
    outcomes
}

async fn one(connection: &Connection, path: &PathBuf, command: &Classify) -> Result<Outcome> {
    let image = match read(path).await {
        Ok(image) => image,
        Err(error) => return Ok(Outcome { path: path.clone(), result: Err(error), took: Duration::ZERO }),
    };
    let frame = Frame {
        // By it the statistics know the frame when it is sent again.
        frame_id: Uuid::now_v7().to_string(),
        user_id: command.user.clone(),
        application: command.application.clone(),
        image: image.into(),
        model: command.model.clone().unwrap_or_default(),
        ..Frame::default()
    };
    let since = Instant::now();
    let mut client =
        IngestServiceClient::new(connection.channel.clone()).max_encoding_message_size(MAX_FILE as usize);
    let answer = client.classify(connection.request(ClassifyRequest { frame: Some(frame) })?).await;
    let took = since.elapsed();
    let result = match answer {
        Ok(response) => Ok(response.into_inner().verdict.unwrap_or_default()),
        Err(status) => Err(RpcError::from_status(&status)),
    };
    Ok(Outcome { path: path.clone(), result, took })
}

async fn read(path: &PathBuf) -> Result<Vec<u8>, RpcError> {
    use tonic::Code;
    let fail = |error: std::io::Error| {
        let (code, reason) = match error.kind() {
            std::io::ErrorKind::NotFound => (Code::NotFound, "FILE_NOT_FOUND"),
            std::io::ErrorKind::PermissionDenied => (Code::PermissionDenied, "FILE_FORBIDDEN"),
            _ => (Code::Unknown, "FILE_UNREADABLE"),
        };
        RpcError::new(code, reason, error.to_string())
    };
    let size = tokio::fs::metadata(path).await.map_err(fail)?.len();
    if size > MAX_FILE {
        return Err(RpcError::invalid(
            "FILE_TOO_LARGE",
            format!("{size} bytes; at most {MAX_FILE} are sent"),
        ));
    }
    tokio::fs::read(path).await.map_err(fail)
}

/// Prints what became of the files; the exit code is 1 if any failed.
pub(super) fn print(outcomes: &[Outcome], as_json: bool) -> Result<ExitCode> {
    if as_json {
        for outcome in outcomes {
            output::line(&json_of(outcome).to_string())?;
        }
    } else {
        let names: HashSet<_> = outcomes.iter().map(|outcome| outcome.path.file_name()).collect();
        let distinct = names.len() == outcomes.len();
        let rows: Vec<Vec<String>> = outcomes.iter().map(|outcome| row_of(outcome, distinct)).collect();
        output::table(&["image", "level", "scores", "source", "ms"], &rows, &[4])?;
    }
    let failed = outcomes.iter().any(|outcome| outcome.result.is_err());
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn milliseconds(took: Duration) -> f64 {
    (took.as_secs_f64() * 1e4).round() / 10.0
}

fn json_of(outcome: &Outcome) -> Value {
    let path = outcome.path.display().to_string();
    match &outcome.result {
        Ok(verdict) => {
            let scores: Map<String, Value> =
                verdict.scores.iter().map(|score| (score.class.clone(), json!(score.value))).collect();
            json!({
                "path": path,
                "level": verdict.level().short_name(),
                "scores": scores,
                "source": verdict.source().short_name(),
                "model": verdict.model,
                "milliseconds": milliseconds(outcome.took),
            })
        }
        Err(error) => json!({
            "path": path,
            "error": { "code": code(error), "reason": error.reason, "message": error.message },
        }),
    }
}

/// The code as gRPC writes it: `INVALID_ARGUMENT`.
fn code(error: &RpcError) -> String {
    let mut name = String::new();
    for letter in format!("{:?}", error.code).chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_uppercase());
    }
    name
}

/// One line of the table; where the files' names tell them apart, folders are left out.
fn row_of(outcome: &Outcome, distinct: bool) -> Vec<String> {
    let path = match outcome.path.file_name() {
        Some(name) if distinct => name.to_string_lossy().into_owned(),
        _ => outcome.path.display().to_string(),
    };
    match &outcome.result {
        Ok(verdict) => vec![
            path,
            verdict.level().short_name().into(),
            best(&verdict.scores),
            verdict.source().short_name().into(),
            format!("{:.1}", milliseconds(outcome.took)),
        ],
        Err(error) => vec![path, "-".into(), format!("{} ({})", error.message, error.reason)],
    }
}

/// The classes that matter, largest first.
fn best(scores: &[Score]) -> String {
    let mut scores: Vec<&Score> = scores.iter().filter(|score| score.value >= 0.01).collect();
    scores.sort_by(|a, b| b.value.total_cmp(&a.value));
    scores.iter().map(|score| format!("{} {:.2}", score.class, score.value)).collect::<Vec<_>>().join("  ")
}
