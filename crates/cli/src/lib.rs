//! The command line: one file per command under `commands/`.
//!
//! Exit codes: 0 done; 1 done, but something was refused or failed (a file, a check); 2 could not be done at all.
//! Results go to standard output, as a table or with `--json` as one object a line; everything else to standard error.

mod args;
mod commands;
mod connect;
mod output;
mod settings;

pub use args::Cli;
use std::process::ExitCode;

/// Runs a command to its end.
pub fn run(cli: Cli) -> ExitCode {
    let outcome = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("sightline")
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| {
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
