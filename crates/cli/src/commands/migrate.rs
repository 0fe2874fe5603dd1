//! `sightline migrate`.

use std::process::ExitCode;

use anyhow::Result;
use serde_json::json;
use sightline_node::{Migration, migrate, migration_status};

use crate::{
    args::{Migrate, Settings},
    output, settings,
};

pub(crate) async fn run(layers: &Settings, command: &Migrate) -> Result<ExitCode> {
    let config = settings::read(layers)?;
    let _telemetry = sightline_telemetry::start(&config.telemetry, "sightline-migrate")?;
    if !command.dry_run {
        let done = migrate(&config).await?;
        print(&[("applied", done.as_slice())], command.json)?;
        if done.is_empty() && !command.json {
            output::line("nothing to do: the schema is current")?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let standing = migration_status(&config).await?;
    print(&[("applied", &standing.applied), ("pending", &standing.pending)], command.json)?;
    Ok(if standing.pending.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(lists: &[(&str, &[Migration])], as_json: bool) -> Result<()> {
    let mut rows = Vec::new();
    for (state, list) in lists {
        for Migration { version, name, checksum } in *list {
            if as_json {
                let one = json!({ "version": version, "name": name, "checksum": checksum, "state": state });
                output::line(&one.to_string())?;
            } else {
                rows.push(vec![version.to_string(), (*state).to_owned(), name.clone()]);
            }
        }
    }
    if !rows.is_empty() {
        output::table(&["version", "state", "name"], &rows, &[0])?;
    }
    Ok(())
}
