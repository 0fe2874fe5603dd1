//! The real servers that tests and the cluster start: from Debian's packages and Go modules.

use std::process::Command;

use anyhow::{Result, bail};
use indicatif::MultiProgress;

use crate::{cache, cargo, go};

/// Programs and the Debian packages they come from.
const DEBIAN: [(&str, &str); 12] = [
    ("redis-server", "redis-server"),
    ("redis-cli", "redis-tools"),
    ("postgres", "postgresql"),
    ("psql", "postgresql-client"),
    ("sqlite3", "sqlite3"),
    ("pgbouncer", "pgbouncer"),
    ("prometheus", "prometheus"),
    // The control plane's keys; and what runs the image's files without an engine (docker/try.sh).
    ("openssl", "openssl"),
    ("ip", "iproute2"),
    // Drops packets in the namespaces of the chaos tests.
    ("nft", "nftables"),
    ("unshare", "util-linux"),
    ("strip", "binutils"),
];

/// What there is of what was asked for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Found {
    /// Everything.
    All,
    /// These Debian packages are missing, and we may not install them.
    Missing(Vec<&'static str>),
}

/// Sees to it that the servers of the tests are there.
pub(crate) fn for_tests(progress: &MultiProgress) -> Result<Found> {
    let found = debian(progress)?;
    go::for_tests(progress)?;
    Ok(found)
}

/// Sees to it that the servers of the cluster are there.
pub(crate) fn for_cluster(progress: &MultiProgress) -> Result<()> {
    if let Found::Missing(packages) = debian(progress)? {
        bail!("the cluster needs more programs: apt-get install {}", packages.join(" "));
    }
    go::for_cluster(progress)
}

/// Installs what is missing when we are root on a Debian; else says what is missing.
fn debian(progress: &MultiProgress) -> Result<Found> {
    let missing = || -> Vec<&'static str> {
        let gone = DEBIAN.iter().filter(|(program, _)| sightline_servers::find(program).is_err());
        gone.map(|(_, package)| *package).collect()
    };
    let packages = missing();
    if packages.is_empty() {
        return Ok(Found::All);
    }
    if !sightline_servers::is_root() || !cargo::exists("apt-get") {
        return Ok(Found::Missing(packages));
    }
    cache::announce(progress, &format!("installing Debian's packages {}", packages.join(", ")));
    let apt = |arguments: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.args(arguments).env("DEBIAN_FRONTEND", "noninteractive");
        cargo::check_quietly(&mut apt)
    };
    // Only the programs are wanted: Debian would start a server of each package.
    let policy = std::path::Path::new("/usr/sbin/policy-rc.d");
    let ours = !policy.exists();
    if ours {
        std::fs::write(policy, "#!/bin/sh\nexit 101\n")?;
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(policy, mode)?;
    }
    apt(&["update", "-qq"]).ok();
    let installed =
        apt(&[&["install", "-y", "-qq", "--no-install-recommends"], packages.as_slice()].concat());
    if ours {
        std::fs::remove_file(policy)?;
    }
    installed?;
    match missing() {
        still if still.is_empty() => Ok(Found::All),
        still => Ok(Found::Missing(still)),
    }
}
