//! The commands.

mod classify;
mod config;
mod dev;
mod health;
mod limits;
mod mesh;
mod migrate;
mod models;
mod serve;
mod stats;
mod token;

use std::{io, process::ExitCode};

use anyhow::Result;
use clap::CommandFactory;

use crate::{
    args::{Cli, Command},
    settings,
};

/// The exit code of a command that was interrupted before it was done: what shells show for Ctrl-C.
pub(crate) const INTERRUPTED: u8 = 130;

pub(crate) async fn run(cli: Cli) -> Result<ExitCode> {
    let settings = cli.settings;
    match cli.command {
        Command::Dev(command) => dev::run(&settings, command).await,
        Command::Serve(command) => serve::run(&settings, command).await,
        Command::Migrate(command) => migrate::run(&settings, &command).await,
        Command::Classify(command) => classify::run(&settings, command).await,
        Command::Stats(command) => stats::run(command).await,
        Command::Models(command) => models::run(command).await,
        Command::Limits(command) => limits::run(command).await,
        Command::Mesh(command) => mesh::run(command).await,
        Command::Health(command) => health::run(command).await,
        Command::Config(command) => config::run(&settings, &command),
        Command::Token(command) => token::run(&settings, command),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "sightline", &mut io::stdout());
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// Threads of a process that serves; `None`: as many as cores.
pub(crate) fn worker_threads(cli: &Cli) -> Result<Option<usize>> {
    match &cli.command {
        Command::Serve(command) => serve::worker_threads(&cli.settings, command),
        Command::Dev(_) => Ok(settings::read(&cli.settings)?.node.worker_threads),
        _ => Ok(None),
    }
}

/// A future that completes at the first Ctrl-C or SIGTERM from now on; a second one ends the process at once.
pub(crate) fn asked_to_stop() -> Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    // Listening begins here, not when the future is first polled: a signal while the process starts is not lost.
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut asked = async move || {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    };
    Ok(async move {
        asked().await;
        tokio::spawn(async move {
            asked().await;
            std::process::exit(INTERRUPTED.into());
        });
    })
}
