//! Everything that judges the code without running it.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use indicatif::MultiProgress;

use crate::{cargo, go, libtorch, tools};

pub(crate) fn run() -> Result<ExitCode> {
    let progress = MultiProgress::new();
    let root = cargo::root();
    cargo::check(Command::new(cargo::cargo()).args(["fmt", "--all", "--check"]).current_dir(root))
        .context("formatting: run `cargo fmt --all`")?;
    cargo::check(Command::new(tools::buf(&progress)?).arg("lint").current_dir(root))
        .context("protos: buf lint")?;
    let mut chart = Command::new(go::helm(&progress)?);
    cargo::check_quietly(chart.args(["lint", "--strict", "helm/sightline"]).current_dir(root))
        .context("chart: helm lint")?;
    let deny = tools::cargo_deny(&progress)?;
    // Advisories need a database that only the public network has.
    cargo::check(
        Command::new(deny)
            .args(["check", "--hide-inclusion-graph", "bans", "licenses", "sources"])
            .current_dir(root),
    )
    .context("dependencies: deny.toml")?;
    let libtorch = libtorch::ensure(&progress)?;
    cargo::remember(&libtorch)?;
    let mut clippy = cargo::command(&libtorch);
    cargo::check(clippy.args(["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"]))
        .context("clippy")?;
    Ok(ExitCode::SUCCESS)
}
