//! Running cargo and other programs.

use std::{
    env,
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::libtorch::LibTorch;

/// The repository.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the repository")
}

/// The cargo that runs us.
pub(crate) fn cargo() -> String {
    env::var("CARGO").unwrap_or_else(|_| "cargo".into())
}

/// Cargo in the repository, with what building against libtorch needs.
pub(crate) fn command(libtorch: &LibTorch) -> Command {
    let mut command = Command::new(cargo());
    // The user's own would override LIBTORCH inside torch-sys.
    command.current_dir(root()).envs(libtorch.env.iter().cloned()).env_remove("LIBTORCH_USE_PYTORCH");
    // What `cargo run` tells xtask of itself: ring's build script looks at it, and would be run again, with all that is built on
    // ring, whenever a plain `cargo build` comes after an xtask.
    for (name, _) in env::vars_os() {
        if name.to_str().is_some_and(is_of_the_package) {
            command.env_remove(name);
        }
    }
    command
}

/// Whether cargo sets this variable for a program that it runs, to tell which package it is of.
fn is_of_the_package(variable: &str) -> bool {
    ["CARGO_PKG_", "CARGO_MANIFEST_"].iter().any(|start| variable.starts_with(start))
}

/// Where [`remember`] writes.
pub(crate) fn remembered() -> PathBuf {
    root().join(".cargo/libtorch.toml")
}

/// Tells later plain `cargo build`s in this clone where libtorch is (`.cargo/config.toml` includes the file).
pub(crate) fn remember(libtorch: &LibTorch) -> Result<()> {
    let variables: String =
        libtorch.env.iter().map(|(name, value)| format!("{name} = {value:?}\n")).collect();
    let text = format!("[env]\n{variables}");
    let file = remembered();
    if std::fs::read_to_string(&file).is_ok_and(|have| have == text) {
        return Ok(());
    }
    std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))
}

/// How the binary is built: profiles of the workspace's Cargo.toml.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Profile {
    /// Soon there.
    Quick,
    /// What ships and is measured.
    Release,
}

/// Builds the binary; cargo shows its own progress.
pub(crate) fn build_binary(libtorch: &LibTorch, profile: Profile) -> Result<PathBuf> {
    let profile = match profile {
        Profile::Quick => "quick",
        Profile::Release => "release",
    };
    let build = ["build", "-p", "sightline-cli", "--message-format=json-render-diagnostics", "--profile"];
    let mut cargo = command(libtorch);
    let output =
        cargo.args(build).arg(profile).stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("the build failed; it needs a C and C++ compiler (Debian: apt-get install build-essential)");
    }
    // Only cargo knows where it builds: a folder or a target may be set in many places.
    let messages = String::from_utf8_lossy(&output.stdout);
    let built = messages.lines().rev().find_map(|line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let path = message["executable"].as_str().filter(|_| message["target"]["name"] == "sightline")?;
        Some(PathBuf::from(path))
    });
    built.context("cargo named no program `sightline`")
}

/// Runs a program to its end and gives its exit code on.
pub(crate) fn status(command: &mut Command) -> Result<ExitCode> {
    let status =
        command.status().with_context(|| format!("cannot start {}", command.get_program().display()))?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Runs a program that must succeed.
pub(crate) fn check(command: &mut Command) -> Result<()> {
    let status =
        command.status().with_context(|| format!("cannot start {}", command.get_program().display()))?;
    if !status.success() {
        bail!("{} ended with {status}", command.get_program().display());
    }
    Ok(())
}

/// Runs a program that must succeed, showing its output only when it does not.
pub(crate) fn check_quietly(command: &mut Command) -> Result<()> {
    output(command).map(drop)
}

/// Runs a program that must succeed, and gives what it printed.
pub(crate) fn output(command: &mut Command) -> Result<Vec<u8>> {
    let program = command.get_program().display().to_string();
    let output = command.output().with_context(|| format!("cannot start {program}"))?;
    if !output.status.success() {
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        bail!("{program} ended with {}:\n{}{}", output.status, out, err);
    }
    Ok(output.stdout)
}

/// Whether a program is there at all.
pub(crate) fn exists(program: &str) -> bool {
    Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// Standard output is where a chore's results go.
#[allow(clippy::print_stdout)]
pub(crate) fn print(text: &str) {
    println!("{text}");
}
