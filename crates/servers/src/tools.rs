//! Where programs are.

use std::{
    env,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use crate::{Error, Result};

/// Folders to look in before `PATH`, separated like it. `cargo xtask` sets it to where it built what Debian lacks.
pub const TOOLS_VARIABLE: &str = "SIGHTLINE_TOOLS";

/// A folder to look in first, for a program that built it itself; the first call wins.
pub fn use_tools(folder: PathBuf) {
    TOOLS.set(folder).ok();
}

static TOOLS: OnceLock<PathBuf> = OnceLock::new();

/// Programs, and how to get each.
const REMEDIES: [(&str, &str); 18] = [
    ("redis-server", "apt-get install redis-server"),
    ("redis-cli", "apt-get install redis-tools"),
    ("postgres", "apt-get install postgresql"),
    ("initdb", "apt-get install postgresql"),
    ("psql", "apt-get install postgresql-client"),
    ("pg_dump", "apt-get install postgresql-client"),
    ("pg_restore", "apt-get install postgresql-client"),
    ("sqlite3", "apt-get install sqlite3"),
    ("pgbouncer", "apt-get install pgbouncer"),
    ("prometheus", "apt-get install prometheus"),
    ("promtool", "apt-get install prometheus"),
    ("setpriv", "apt-get install util-linux"),
    ("unshare", "apt-get install util-linux"),
    ("openssl", "apt-get install openssl"),
    ("ip", "apt-get install iproute2"),
    ("nft", "apt-get install nftables"),
    ("strip", "apt-get install binutils"),
    ("toxiproxy-server", "cargo xtask tools builds it"),
];

/// The path of a program: from [`TOOLS_VARIABLE`], `PATH`, or where Debian keeps PostgreSQL's.
///
/// # Errors
/// [`Error::Missing`], saying what to install.
pub fn find(program: &'static str) -> Result<PathBuf> {
    let listed = |variable| env::var_os(variable).into_iter();
    let mut folders: Vec<PathBuf> = TOOLS.get().cloned().into_iter().collect();
    for list in listed(TOOLS_VARIABLE).chain(listed("PATH")) {
        folders.extend(env::split_paths(&list));
    }
    folders.push("/usr/sbin".into());
    folders.extend(postgresql());
    let found = folders.into_iter().map(|folder| folder.join(program)).find(|path| path.is_file());
    let remedy = REMEDIES.iter().find(|(name, _)| *name == program);
    found.ok_or(Error::Missing {
        program,
        remedy: remedy.map_or("cargo xtask tools builds it", |(_, how)| how),
    })
}

/// Debian keeps several versions beside each other and none in `PATH`; the newest comes first.
fn postgresql() -> Vec<PathBuf> {
    let versions = Path::new("/usr/lib/postgresql").read_dir().into_iter().flatten().flatten();
    let mut folders: Vec<_> = versions
        .filter_map(|entry| {
            Some((entry.file_name().to_str()?.parse::<u32>().ok()?, entry.path().join("bin")))
        })
        .collect();
    folders.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    folders.into_iter().map(|(_, folder)| folder).collect()
}
