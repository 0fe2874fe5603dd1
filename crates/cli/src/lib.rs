//! The command line: one file per command under `commands/`.
//!
//! Exit codes: 0 done; 1 done, but something was refused or failed (a file, a check); 2 could not be done at all.
//! Results go to standard output, as a table or with `--json` as one object a line; everything else to standard error.

mod args;
mod commands;
mod connect;
mod output;
mod replicas;
mod settings;

pub use args::Cli;
use std::process::ExitCode;

use tokio::runtime::{Builder, Runtime};

/// Runs a command to its end.
pub fn run(cli: Cli) -> ExitCode {
    let outcome = runtime(&cli).and_then(|runtime| {
        let outcome = runtime.block_on(commands::run(cli));
        // Decoders that still run are not waited for: their callers are gone.
        runtime.shutdown_background();
        outcome
    });
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("sightline: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Its threads serve; what blocks (decoders, models, files) has threads of its own.
fn runtime(cli: &Cli) -> anyhow::Result<Runtime> {
    let mut builder = Builder::new_multi_thread();
    builder.enable_all().thread_name("sightline");
    if let Some(threads) = commands::worker_threads(cli)? {
        builder.worker_threads(threads);
    }
    Ok(builder.build()?)
}
