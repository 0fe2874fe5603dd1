//! Finds or installs libtorch, so that `cargo xtask` builds the classifier on a bare machine.
//!
//! In order: the folder named by `LIBTORCH`; the torch package that `python3` already has; our cache; else a
//! download through pip into the cache. A CPU install needs three libraries of the 4.8 GB that `pip install
//! torch` brings, so only those and the headers are kept (0.5 GB).
//!
//! - `wheels`: which wheels, their hashes, and pip;
//! - `unpack`: which members of them are kept, and where they go.

mod unpack;
mod wheels;

use std::env;
use std::ffi::OsStr;
use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use indicatif::{MultiProgress, ProgressBar};

use crate::{
    cache::{announce, folder as cache_folder},
    cargo,
};

/// The release that our tch speaks to; torch-sys compiles against exactly this one.
pub const VERSION: &str = "2.11.0";

const INSTALL_FOLDER: &str = "libtorch-2.11.0-cpu";
const COMPLETE: &str = ".complete";
const HOW_TO_CHOOSE: &str =
    "set LIBTORCH to a libtorch 2.11.0 folder (with include/ and lib/), or `pip install torch==2.11.0`";

/// A libtorch that can be compiled and linked against.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LibTorch {
    /// The folder with `include/` and `lib/`.
    pub root: PathBuf,
    /// The folder with `libtorch_cpu.so`.
    pub lib: PathBuf,
    /// What cargo must have in its environment to build a crate that uses tch. The programs built need
    /// nothing: crates/cli/build.rs gives them an rpath.
    pub env: Vec<(String, String)>,
    /// Where it was found.
    pub origin: Origin,
}

/// Where a [`LibTorch`] was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Our cache folder, filled by this run or an earlier one.
    Cache,
    /// The `LIBTORCH` variable.
    LibtorchEnv,
    /// The torch package of `python3`.
    Python,
}

impl LibTorch {
    /// Checks that `root` is a libtorch we can link and that its version is 2.11.x.
    fn inspect(root: &Path, origin: Origin) -> Result<Self> {
        let root =
            std::path::absolute(root).with_context(|| format!("{} is not a usable path", root.display()))?;
        let lib = root.join("lib");
        let version = version_of(&root)?;
        ensure!(
            version == "2.11" || version.starts_with("2.11."),
            "{} holds libtorch {version}, but tch 0.24 needs {VERSION}",
            root.display()
        );
        // Both are linked by name: a folder with only the first is a half-copied one.
        for name in ["libtorch_cpu.so", "libtorch.so"] {
            ensure!(
                !cfg!(target_os = "linux") || lib.join(name).exists(),
                "{} has no {name}, so it is not a complete libtorch",
                lib.display()
            );
        }
        let mut env = vec![("LIBTORCH".to_owned(), utf8(&root)?)];
        if version != VERSION {
            // torch-sys accepts 2.11.0 only; a patch release keeps the interface.
            env.push(("LIBTORCH_BYPASS_VERSION_CHECK".to_owned(), "1".to_owned()));
        }
        Ok(Self { root, lib, env, origin })
    }
}

/// Finds libtorch 2.11, or downloads it into the cache.
///
/// `progress` shows the two bars of a download; hidden (a log file, a test), a line per step goes to stderr.
///
/// # Errors
///
/// Each says what to install or set: a `LIBTORCH` of another version, no python3 or pip, no network, a hash
/// that differs, a full disk, a platform we pin no wheel for.
pub fn ensure(progress: &MultiProgress) -> Result<LibTorch> {
    if let Some(root) = env::var_os("LIBTORCH").filter(|value| !value.is_empty()) {
        let found = LibTorch::inspect(Path::new(&root), Origin::LibtorchEnv);
        if found.is_ok() || !remembered(&root) {
            return found.context(
                "the folder in LIBTORCH cannot be used; correct it, or unset LIBTORCH to download one",
            );
        }
    }
    // A torch of another version is somebody else's business: go on as though there were none.
    if let Some(root) = python_torch()
        && let Ok(found) = LibTorch::inspect(&root, Origin::Python)
    {
        return Ok(found);
    }
    let cache = cache_folder()?;
    if let Some(found) = cached(&cache) {
        return Ok(found);
    }
    ensure!(
        cfg!(all(target_os = "linux", target_arch = "x86_64", target_env = "gnu")),
        "no libtorch was found, and one can be downloaded for Linux x86_64 with glibc only: {HOW_TO_CHOOSE}"
    );
    let _lock = lock(&cache, progress)?;
    match cached(&cache) {
        Some(found) => Ok(found), // another process did it while we waited
        None => install(&cache, progress)
            .with_context(|| format!("libtorch {VERSION} was not installed into {}", cache.display())),
    }
}

/// Whether this is what we wrote for plain cargo (`cargo::remember`), which hands it to us too: then it is not the
/// user's choice, and what it names may have moved since.
fn remembered(root: &OsStr) -> bool {
    let file = fs::read_to_string(cargo::remembered()).unwrap_or_default();
    root.to_str().is_some_and(|root| file.lines().any(|line| line == format!("LIBTORCH = {root:?}")))
}

/// Downloads, unpacks beside the target, and renames: the target exists only when complete.
fn install(cache: &Path, progress: &MultiProgress) -> Result<LibTorch> {
    let target = cache.join(INSTALL_FOLDER);
    let staging = Staging::create(cache.join(format!(".{INSTALL_FOLDER}.partial")))?;
    let downloads = staging.0.join("wheels");
    let unpacked = staging.0.join("libtorch");

    wheels::download(&downloads, progress)?;
    unpack::unpack(&downloads, &unpacked, progress).map_err(explain_disk)?;
    fs::write(unpacked.join("build-version"), format!("{VERSION}\n")).map_err(|e| explain_disk(e.into()))?;
    fs::write(unpacked.join(COMPLETE), wheels::requirements()).map_err(|e| explain_disk(e.into()))?;

    LibTorch::inspect(&unpacked, Origin::Cache).context("the downloaded wheels hold something unexpected")?;
    remove_folder(&target)?;
    fs::rename(&unpacked, &target)
        .with_context(|| format!("cannot move the new libtorch to {}", target.display()))?;
    LibTorch::inspect(&target, Origin::Cache)
}

/// The folder a download is made in; removed when dropped, whether the install succeeded or not.
struct Staging(PathBuf);

impl Staging {
    fn create(folder: PathBuf) -> Result<Self> {
        remove_folder(&folder)?; // what a killed run left
        fs::create_dir_all(&folder).with_context(|| {
            format!("cannot create {}; set SIGHTLINE_CACHE to a folder you may write to", folder.display())
        })?;
        Ok(Self(folder))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Nothing to be done about a failure here, and the next run tries again.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn cached(cache: &Path) -> Option<LibTorch> {
    let root = cache.join(INSTALL_FOLDER);
    root.join(COMPLETE).exists().then(|| LibTorch::inspect(&root, Origin::Cache).ok()).flatten()
}

/// Held by whoever installs. The system lets go of it when the process ends, however it ends.
fn lock(cache: &Path, progress: &MultiProgress) -> Result<File> {
    let advice =
        || format!("cannot lock {}; set SIGHTLINE_CACHE to a folder you may write to", cache.display());
    fs::create_dir_all(cache).with_context(advice)?;
    let file = File::create(cache.join(format!("{INSTALL_FOLDER}.lock"))).with_context(advice)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            announce(progress, "waiting for another process that is installing libtorch");
            file.lock().with_context(advice)?;
        }
        Err(TryLockError::Error(error)) => return Err(error).with_context(advice),
    }
    Ok(file)
}

/// Where `python3` keeps its torch package, without importing it: an import takes seconds.
fn python_torch() -> Option<PathBuf> {
    const WHERE: &str = "import importlib.util as u; s = u.find_spec('torch'); \
                         print(s.submodule_search_locations[0] if s and s.submodule_search_locations else '')";
    let output = Command::new("python3")
        .args(["-c", WHERE])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let folder = String::from_utf8(output.stdout).ok()?;
    let folder = Path::new(folder.trim());
    // Wheels for other accelerators (ROCm, XPU) link libraries that tch does not know.
    let usual_build = fs::read_to_string(folder.join("version.py")).is_ok_and(|text| is_usual_build(&text));
    usual_build.then(|| folder.to_owned())
}

/// Whether a `torch/version.py` is of a CPU or CUDA build: `2.11.0`, `2.11.0+cpu`, `2.11.0+cu130`.
fn is_usual_build(version_py: &str) -> bool {
    version_py.lines().any(|line| {
        line.strip_prefix("__version__ = '").and_then(|rest| rest.split_once('\'')).is_some_and(
            |(version, _)| match version.split_once('+') {
                None => true,
                Some((_, build)) => build == "cpu" || build.starts_with("cu"),
            },
        )
    })
}

/// The version that a libtorch's headers state, else its `build-version` file.
fn version_of(root: &Path) -> Result<String> {
    const HEADERS: [&str; 3] = [
        "include/torch/headeronly/version.h", // since 2.9
        "include/torch/version.h",
        "include/torch/csrc/api/include/torch/version.h",
    ];
    let header = HEADERS
        .iter()
        .filter_map(|name| fs::read_to_string(root.join(name)).ok())
        .find_map(|text| header_version(&text));
    let version = header.or_else(|| {
        let text = fs::read_to_string(root.join("build-version")).ok()?;
        Some(text.trim().split('+').next()?.to_owned())
    });
    version.with_context(|| {
        format!("{} does not look like libtorch: no {} and no build-version file", root.display(), HEADERS[0])
    })
}

fn header_version(text: &str) -> Option<String> {
    let number = |name: &str| {
        let define = format!("#define TORCH_VERSION_{name} ");
        text.lines().find_map(|line| line.strip_prefix(&define)?.trim().parse::<u32>().ok())
    };
    Some(format!("{}.{}.{}", number("MAJOR")?, number("MINOR")?, number("PATCH")?))
}

fn remove_folder(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", folder.display()))
        }
        _ => Ok(()),
    }
}

fn utf8(path: &Path) -> Result<String> {
    match path.to_str() {
        Some(text) => Ok(text.to_owned()),
        None => {
            bail!("{} is not UTF-8, and the C++ compiler needs it to be: use another folder", path.display())
        }
    }
}

/// Adds what to do to an error whose cause is a full disk.
fn explain_disk(error: anyhow::Error) -> anyhow::Error {
    let full = error.chain().filter_map(|cause| cause.downcast_ref::<std::io::Error>()).any(|cause| {
        matches!(cause.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
    });
    if full { error.context(wheels::DISK_FULL) } else { error }
}

fn byte_bar(progress: &MultiProgress, total: u64, what: &'static str) -> ProgressBar {
    let bar = progress.add(ProgressBar::new(total));
    if let Ok(style) = indicatif::ProgressStyle::with_template(
        "{msg:>12} [{bar:32}] {bytes}/{total_bytes} {bytes_per_sec} eta {eta}",
    ) {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.with_message(what)
}

#[cfg(test)]
mod tests;
