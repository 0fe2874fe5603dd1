//! Which processes a cluster has, for another terminal.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{Cluster, Member};
use crate::{Error, Result, io, process::run};

/// Sends SIGKILL to a process by its id: what `cargo xtask cluster --kill` does from another terminal.
///
/// # Errors
/// [`Error::Command`] when there is no such process.
pub fn kill(pid: u32) -> Result<()> {
    run(Command::new("kill").args(["-KILL", &pid.to_string()])).map(drop)
}

/// The list of a cluster's processes, which another terminal reads: a name, a process id and an address a line.
#[derive(Debug)]
pub struct Listing(PathBuf);

impl Listing {
    /// The file of the cluster in `base`.
    pub fn of(base: &Path) -> Self {
        Self(base.join("members"))
    }

    /// Writes what runs now.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, cluster: &Cluster) -> Result<()> {
        let line = |member: &Member| format!("{} {} {}\n", member.name, member.server.pid(), member.address);
        fs::write(&self.0, cluster.members.iter().map(line).collect::<String>())
            .map_err(io("writing the list"))
    }

    /// The process id of a replica.
    ///
    /// # Errors
    /// [`Error::Command`] when no cluster runs, or none with this name.
    pub fn pid(&self, name: &str) -> Result<u32> {
        let text = fs::read_to_string(&self.0)
            .map_err(io("no cluster runs here: cargo xtask cluster starts one"))?;
        let found =
            text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
        found.ok_or_else(|| Error::Command {
            command: format!("--kill {name}"),
            problem: format!("no such replica; there are:\n{text}"),
        })
    }

    /// Removes the list.
    pub fn remove(&self) {
        fs::remove_file(&self.0).ok();
    }
}
