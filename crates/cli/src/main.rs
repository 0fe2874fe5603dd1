//! The `sightline` binary: reads the command line, runs the command, turns an error into a message and an exit code.

use std::process::ExitCode;

use clap::Parser;

/// Half of what a small call costs is making and dropping what belongs to it: a fifth less CPU per rate limit check than
/// with glibc's (docs/BENCHMARKS.md). libtorch keeps its own.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    sightline_cli::run(sightline_cli::Cli::parse())
}
