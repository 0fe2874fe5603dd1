//! The chores of the repository. `cargo xtask dev` and `cargo xtask test` are the README's two commands: they fetch
//! what is missing, build, and run.

mod cache;
mod cargo;
mod cluster;
mod go;
mod libtorch;
mod lint;
mod model;
mod pip;
mod samples;
mod servers;
mod tools;

use std::{os::unix::process::CommandExt, path::PathBuf, process::ExitCode};

use anyhow::{Context, Result, bail};
use indicatif::MultiProgress;

use crate::cargo::Profile;

const HELP: &str = "\
cargo xtask COMMAND

  dev [--once] [IMAGE…]  fetch libtorch and the model, build, start the mesh, classify the images (or a few samples)
                         and stay up until Ctrl-C; with --once stop after the table
  test [ARGUMENT…]       fetch what the tests need and run all of them; arguments go to `cargo test`
  build                  build the binary that ships, with all optimisations, and fetch the model; prints where both are
  cluster [--replicas N] start Redis, PostgreSQL, Jaeger, Prometheus and several replicas of each service as processes;
                         --kill NAME from another terminal kills one
  tools                  fetch and build the servers that tests start; prints where: eval \"$(cargo xtask tools)\"
  lint                   formatting, clippy, dependency rules, protos
  gen                    write the generated code and documents anew
  bench NAME             run a benchmark of benches/: serving, ratelimiter, stats, mesh
  env                    print the variables a plain `cargo build` needs: eval \"$(cargo xtask env)\"

Downloads are pinned by version and hash and kept in ~/.cache/sightline (SIGHTLINE_CACHE), so that clones share them.";

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run() -> Result<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next().unwrap_or_default();
    let rest: Vec<String> = arguments.collect();
    match command.as_str() {
        "dev" => dev(&rest),
        "cluster" => cluster::run(&rest),
        "tools" => get_tools(),
        "build" => build(),
        "test" => test(&rest),
        "lint" => lint::run(),
        "gen" => generate(),
        "bench" => bench(&rest),
        "env" => {
            for (name, value) in libtorch::ensure(&MultiProgress::new())?.env {
                cargo::print(&format!("export {name}='{value}'"));
            }
            Ok(ExitCode::SUCCESS)
        }
        "" | "help" | "--help" | "-h" => {
            cargo::print(HELP);
            Ok(ExitCode::SUCCESS)
        }
        other => bail!("{other:?} is not a command\n\n{HELP}"),
    }
}

/// What both main commands need: libtorch, the binary, the default model.
struct SetUp {
    libtorch: libtorch::LibTorch,
    binary: PathBuf,
}

fn set_up(progress: &MultiProgress, profile: Profile) -> Result<SetUp> {
    let libtorch = libtorch::ensure(progress)?;
    cargo::remember(&libtorch)?;
    let binary = cargo::build_binary(&libtorch, profile)?;
    Ok(SetUp { libtorch, binary })
}

fn dev(arguments: &[String]) -> Result<ExitCode> {
    let progress = MultiProgress::new();
    let (flags, images): (Vec<_>, Vec<_>) =
        arguments.iter().cloned().partition(|argument| argument.starts_with('-'));
    if let Some(flag) = flags.iter().find(|flag| *flag != "--once") {
        bail!("dev: {flag} is not an option; there is --once");
    }
    let SetUp { binary, .. } = set_up(&progress, Profile::Quick)?;
    model::ensure(&progress, &binary, model::DEFAULT)?;
    let images = match images.is_empty() {
        true => samples::ensure(&progress)?.into_iter().map(|path| path.display().to_string()).collect(),
        false => images,
    };
    // In our place, so that Ctrl-C is the mesh's alone and the prompt comes back when it has stopped.
    let error = std::process::Command::new(&binary).arg("dev").args(flags).args(images).exec();
    Err(error).with_context(|| format!("cannot start {}", binary.display()))
}

/// For those who install it, and for the image.
fn build() -> Result<ExitCode> {
    let progress = MultiProgress::new();
    let SetUp { binary, .. } = set_up(&progress, Profile::Release)?;
    let model = model::ensure(&progress, &binary, model::DEFAULT)?;
    cargo::print(&format!("{}\n{}", binary.display(), model.display()));
    Ok(ExitCode::SUCCESS)
}

fn test(arguments: &[String]) -> Result<ExitCode> {
    let progress = MultiProgress::new();
    let SetUp { libtorch, binary } = set_up(&progress, Profile::Quick)?;
    let mut command = cargo::command(&libtorch);
    command.args(["test", "--workspace"]).args(arguments);
    match servers::for_tests(&progress)? {
        // Everything is there: a test that skips is a failure.
        servers::Found::All => {
            command.env("SIGHTLINE_TEST_NO_SKIP", "1");
        }
        servers::Found::Missing(packages) => cache::announce(
            &progress,
            &format!("tests that need them are skipped: apt-get install {}", packages.join(" ")),
        ),
    }
    command.env(sightline_servers::TOOLS_VARIABLE, go::folder()?);
    command.env("SIGHTLINE_TEST_BINARY", &binary);
    command.env("SIGHTLINE_TEST_MODEL", model::ensure(&progress, &binary, model::DEFAULT)?);
    command.env("SIGHTLINE_TEST_INCEPTION", model::ensure(&progress, &binary, model::INCEPTION)?);
    command.env("SIGHTLINE_TEST_SAMPLES", samples::folder(&progress)?);
    command.env("SIGHTLINE_TEST_PYTHON", tools::python(&progress)?);
    command.env("SIGHTLINE_TEST_NODE", tools::node(&progress)?);
    command.env("SIGHTLINE_TEST_NODE_MODULES", tools::node_modules(&progress)?);
    command.env("SIGHTLINE_TEST_GRPCURL", tools::grpcurl(&progress)?);
    cargo::status(&mut command)
}

/// What `cargo test` alone needs beside Rust, for those who call it themselves.
fn get_tools() -> Result<ExitCode> {
    let found = servers::for_tests(&MultiProgress::new())?;
    cargo::print(&format!("export {}='{}'", sightline_servers::TOOLS_VARIABLE, go::folder()?.display()));
    match found {
        servers::Found::All => Ok(ExitCode::SUCCESS),
        servers::Found::Missing(packages) => bail!("still missing: apt-get install {}", packages.join(" ")),
    }
}

fn bench(arguments: &[String]) -> Result<ExitCode> {
    let progress = MultiProgress::new();
    let SetUp { libtorch, binary } = set_up(&progress, Profile::Release)?;
    let name = match arguments.first().map(String::as_str) {
        Some(name @ ("serving" | "ratelimiter" | "stats" | "mesh")) => name,
        _ => bail!("bench: name one of: serving, ratelimiter, stats, mesh"),
    };
    let mut command = cargo::command(&libtorch);
    command.args(["run", "--release", "-p", "sightline-benches", "--bin", name, "--"]).args(&arguments[1..]);
    command.env("SIGHTLINE_TEST_BINARY", &binary).env(sightline_servers::TOOLS_VARIABLE, go::folder()?);
    match name {
        "serving" => {
            command.env("SIGHTLINE_TEST_MODEL", model::ensure(&progress, &binary, model::DEFAULT)?);
            command.env("SIGHTLINE_TEST_PACKAGE", model::package(&progress)?);
            command.env("SIGHTLINE_TEST_SAMPLES", samples::folder(&progress)?);
            command.env("SIGHTLINE_TEST_PYTHON", tools::peer_python(&progress)?);
        }
        "ratelimiter" => go::ratelimit(&progress)?,
        "mesh" => go::for_cluster(&progress)?,
        _ => {}
    }
    cargo::status(&mut command)
}

/// The tests that write what of the chart follows from the settings: its schema, the table of its README, its examples.
const CHART: [&str; 3] = ["the_schema_has_the_settings", "every_value_is_documented", "the_examples_show"];

fn generate() -> Result<ExitCode> {
    let mut codegen = std::process::Command::new(cargo::cargo());
    cargo::check(codegen.args(["run", "-q", "-p", "sightline-codegen"]))?;
    let SetUp { binary, .. } = set_up(&MultiProgress::new(), Profile::Quick)?;
    let output = cargo::output(std::process::Command::new(binary).args(["config", "print", "--markdown"]))?;
    std::fs::write(cargo::root().join("docs/CONFIG.md"), output)?;
    go::helm(&MultiProgress::new())?;
    let mut chart = std::process::Command::new(cargo::cargo());
    chart.args(["test", "-q", "-p", "sightline-tests", "--test", "helm", "--"]).args(CHART);
    chart.env("SIGHTLINE_TEST_UPDATE", "1").env(sightline_servers::TOOLS_VARIABLE, go::folder()?);
    cargo::check(&mut chart)?;
    Ok(ExitCode::SUCCESS)
}
