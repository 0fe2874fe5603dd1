//! The default model: the npm package nsfwjs, fetched by npm and converted by our own binary.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use indicatif::MultiProgress;

use crate::{cache, cargo, tools};

const PACKAGE: &str = "nsfwjs@4.4.0";
/// What npm calls the package's file. `sightline models import` checks its hash.
const FILE: &str = "nsfwjs-4.4.0.tgz";

/// The model that everything uses unless told otherwise; the folder's name is also known to the binary
/// (`DEFAULT_FOLDER`) and ends in the revision of the converter, so that a better converter makes it anew.
pub(crate) const DEFAULT: (&str, &str) = ("mobilenet-v2", "nsfwjs-mobilenet-v2-4.4.0-r1");
/// The larger one.
pub(crate) const INCEPTION: (&str, &str) = ("inception-v3", "nsfwjs-inception-v3-4.4.0-r1");

/// The package's tarball in the cache.
pub(crate) fn package(progress: &MultiProgress) -> Result<PathBuf> {
    let folder = cache::folder()?.join("packages");
    let file = folder.join(FILE);
    if file.is_file() {
        return Ok(file);
    }
    let mut npm = tools::npm(progress)?;
    cache::announce(progress, "downloading the model package nsfwjs 4.4.0 (25 MB)");
    let partial = folder.join("partial");
    fs::remove_dir_all(&partial).ok();
    fs::create_dir_all(&partial)?;
    npm.args(["pack", "--silent", PACKAGE, "--pack-destination"]).arg(&partial);
    cargo::check_quietly(npm.current_dir(&partial))
        .context("npm could not fetch the model; is there a network?")?;
    fs::rename(partial.join(FILE), &file)?;
    Ok(file)
}

/// A converted model's folder in the cache.
pub(crate) fn ensure(progress: &MultiProgress, binary: &Path, model: (&str, &str)) -> Result<PathBuf> {
    let (architecture, name) = model;
    let folder = cache::folder()?.join("models").join(name);
    if folder.join("model.toml").is_file() {
        return Ok(folder);
    }
    let package = package(progress)?;
    cache::announce(progress, &format!("converting {name}"));
    let partial = folder.with_extension("partial");
    fs::remove_dir_all(&partial).ok();
    let mut import = Command::new(binary);
    import.args(["models", "import"]).arg(package).args(["--model", architecture, "--out"]).arg(&partial);
    cargo::check_quietly(&mut import)?;
    fs::remove_dir_all(&folder).ok();
    fs::rename(&partial, &folder)?;
    Ok(folder)
}
