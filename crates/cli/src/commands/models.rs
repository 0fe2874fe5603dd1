//! `sightline models list` and `import`.

use std::{path::Path, process::ExitCode};

use anyhow::{Context, Result};
use serde_json::json;
use sightline_model::nsfwjs::{self, Package, Which};
use sightline_proto::classifier::{
    ListModelsRequest, Model, classifier_service_client::ClassifierServiceClient,
};

use crate::{
    args::{Architecture, Models, Remote},
    connect::{Connection, explain},
    output,
};

pub(crate) async fn run(command: Models) -> Result<ExitCode> {
    match command {
        Models::List { endpoint, json, remote } => list(&endpoint, json, &remote).await,
        Models::Import { package, model, out } => {
            tokio::task::spawn_blocking(move || import(&package, model, &out)).await?
        }
    }
}

async fn list(endpoint: &str, as_json: bool, remote: &Remote) -> Result<ExitCode> {
    let connection = Connection::open("classifier", endpoint, remote).await?;
    let mut client = ClassifierServiceClient::new(connection.channel.clone());
    let answer = client.list_models(connection.request(ListModelsRequest {})?).await;
    let models = answer.map_err(|status| explain(&status))?.into_inner().models;
    if as_json {
        for model in &models {
            output::line(&json_of(model).to_string())?;
        }
    } else {
        let rows: Vec<Vec<String>> = models.iter().map(row_of).collect();
        output::table(
            &["model", "default", "device", "input", "executors", "batch", "classes"],
            &rows,
            &[4, 5],
        )?;
    }
    Ok(ExitCode::SUCCESS)
}

fn row_of(model: &Model) -> Vec<String> {
    let input = model.input.unwrap_or_default();
    vec![
        format!("{}@{}", model.name, model.version),
        if model.default { "yes" } else { "" }.into(),
        model.device.clone(),
        format!("{} × {}", input.width, input.height),
        model.executors.to_string(),
        model.max_batch.to_string(),
        model.classes.iter().map(|class| class.name.as_str()).collect::<Vec<_>>().join(" "),
    ]
}

fn json_of(model: &Model) -> serde_json::Value {
    let input = model.input.unwrap_or_default();
    json!({
        "name": model.name,
        "version": model.version,
        "default": model.default,
        "device": model.device,
        "width": input.width,
        "height": input.height,
        "executors": model.executors,
        "max_batch": model.max_batch,
        "classes": model.classes.iter().map(|class| &class.name).collect::<Vec<_>>(),
        "tolerance": model.tolerance,
        "license": model.license,
        "source": model.source,
        "digest": model.digest,
    })
}

fn import(package: &Path, model: Architecture, out: &Path) -> Result<ExitCode> {
    let which = match model {
        Architecture::MobilenetV2 => Which::MobileNetV2,
        Architecture::InceptionV3 => Which::InceptionV3,
    };
    let fail = || format!("cannot import {}", package.display());
    let manifest =
        nsfwjs::import(&Package::open(package).with_context(fail)?, which, out).with_context(fail)?;
    output::line(&format!("{}@{} is in {}", manifest.name, manifest.version, out.display()))?;
    Ok(ExitCode::SUCCESS)
}
