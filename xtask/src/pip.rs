//! Packages through pip, the ordinary client, pinned.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result};
use indicatif::MultiProgress;

use crate::{cache, cargo};

/// Downloads one wheel by name, version and SHA-256 into `folder`; `tags` choose the file whatever python runs pip.
pub(crate) fn download(requirement: &str, sha256: &str, tags: &[&str], folder: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    let pinned = folder.join("requirements.txt");
    fs::write(&pinned, format!("{requirement} --hash=sha256:{sha256}\n"))?;
    let mut pip = Command::new("python3");
    pip.args(["-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "--require-hashes"]);
    pip.args(tags).arg("--dest").arg(folder).arg("-r").arg(&pinned);
    cargo::check_quietly(&mut pip).with_context(|| {
        format!("{requirement} could not be downloaded; python3 with pip and a network are needed")
    })
}

/// The virtual environment `name` in the cache, with exactly what `requirements/NAME.txt` lists, each file by its hash;
/// made once per list.
pub(crate) fn environment(progress: &MultiProgress, name: &str) -> Result<PathBuf> {
    let folder = cache::folder()?.join(name);
    let list = cargo::root().join(format!("xtask/requirements/{name}.txt"));
    let wanted = fs::read_to_string(&list).with_context(|| list.display().to_string())?;
    let stamp = folder.join(".packages");
    if fs::read_to_string(&stamp).is_ok_and(|have| have == wanted) {
        return Ok(folder.join("bin"));
    }
    let packages: Vec<_> = wanted.lines().filter_map(|line| line.split_once("==")?.0.into()).collect();
    cache::announce(progress, &format!("installing {} into {}", packages.join(", "), folder.display()));
    fs::remove_dir_all(&folder).ok();
    fs::create_dir_all(folder.parent().context("the cache is a folder")?)?;
    cargo::check_quietly(Command::new("python3").args(["-m", "venv"]).arg(&folder))
        .context("python3 with its venv module is needed (Debian: apt-get install python3-venv)")?;
    let mut pip = Command::new(folder.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--require-hashes"]);
    pip.args(["--only-binary=:all:", "-r"]).arg(&list);
    cargo::check_quietly(&mut pip)
        .with_context(|| format!("pip could not install {}; is there a network?", list.display()))?;
    fs::write(&stamp, wanted)?;
    Ok(folder.join("bin"))
}
