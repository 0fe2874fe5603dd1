//! The `sightline` binary: reads the command line, runs the command, turns an error into a message and an exit code.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    sightline_cli::run(sightline_cli::Cli::parse())
}
