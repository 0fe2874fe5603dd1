//! Everything that judges the code without running it.

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
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
    mesh_stands_alone()?;
    let libtorch = libtorch::ensure(&progress)?;
    cargo::remember(&libtorch)?;
    let mut clippy = cargo::command(&libtorch);
    cargo::check(clippy.args(["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"]))
        .context("clippy")?;
    Ok(ExitCode::SUCCESS)
}

/// The mesh layer knows nothing of images: of our own crates it is built from [`MESH`] alone.
fn mesh_stands_alone() -> Result<()> {
    let mut tree = Command::new(cargo::cargo());
    tree.args(["tree", "--package", "sightline-mesh", "--edges", "normal,build", "--prefix", "none"]);
    let output = tree.current_dir(cargo::root()).output().context("cargo tree")?;
    ensure!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let listed = String::from_utf8_lossy(&output.stdout);
    let crates = listed.lines().filter_map(|line| line.split_whitespace().next());
    for name in crates.filter(|name| name.starts_with("sightline")) {
        ensure!(MESH.contains(&name), "dependencies: sightline-mesh must not be built from {name}");
    }
    Ok(())
}

/// What the mesh layer may be built from of our own.
const MESH: [&str; 4] = ["sightline-config", "sightline-mesh", "sightline-telemetry", "sightline-wire"];
