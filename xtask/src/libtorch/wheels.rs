//! The wheels a CPU libtorch is taken from, and their download through pip.

use std::fs;
use std::io;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use indicatif::{HumanBytes, MultiProgress};

use super::{HOW_TO_CHOOSE, VERSION, byte_bar};
use crate::cache::announce;

pub(super) const DISK_FULL: &str = "the disk is full: libtorch needs 1.2 GB while it is installed and 0.5 GB \
                                    afterwards; free some, or set SIGHTLINE_CACHE to a folder on another disk";

/// One pinned wheel.
pub(super) struct Wheel {
    /// Name and version, as pip writes them.
    pub(super) requirement: &'static str,
    /// What the file's name starts with.
    pub(super) file_prefix: &'static str,
    sha256: &'static str,
    /// Bytes of the file, for the progress bar.
    size: u64,
}

/// `libtorch_cpu.so` names the libraries of the second and third, also when no GPU is there.
pub(super) const WHEELS: [Wheel; 3] = [
    Wheel {
        requirement: "torch==2.11.0",
        file_prefix: "torch-2.11.0-",
        sha256: "7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a",
        size: 530_604_548,
    },
    Wheel {
        requirement: "nvidia-cuda-runtime==13.0.96",
        file_prefix: "nvidia_cuda_runtime-13.0.96-",
        sha256: "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548",
        size: 2_243_632,
    },
    Wheel {
        requirement: "nvidia-cuda-cupti==13.0.85",
        file_prefix: "nvidia_cuda_cupti-13.0.85-",
        sha256: "4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8",
        size: 10_715_597,
    },
];

/// The tags of those three files: with them pip takes the same file whatever Python it runs on. pip does not
/// infer the older manylinux tags from the newer when the platform is given, so each is named.
const TAGS: [&str; 14] = [
    "--python-version=3.11",
    "--implementation=cp",
    "--abi=cp311",
    "--abi=none",
    "--platform=manylinux_2_28_x86_64",
    "--platform=manylinux_2_25_x86_64",
    "--platform=manylinux_2_17_x86_64",
    "--platform=manylinux2014_x86_64",
    "--only-binary=:all:",
    "--no-deps",
    "--require-hashes",
    "--no-cache-dir", // half a gigabyte that nobody would ask for again
    "--disable-pip-version-check",
    "--no-input",
];

/// A pip requirements file that pins each wheel's version and content.
pub(super) fn requirements() -> String {
    WHEELS.iter().map(|w| format!("{} --hash=sha256:{}\n", w.requirement, w.sha256)).collect()
}

/// Puts the wheels into `folder`, which is made, with pip's scratch files below it too.
pub(super) fn download(folder: &Path, progress: &MultiProgress) -> Result<()> {
    require_pip()?;
    let scratch = folder.join("scratch");
    fs::create_dir_all(&scratch).with_context(|| format!("cannot create {}", scratch.display()))?;
    let list = folder.join("requirements.txt");
    fs::write(&list, requirements()).with_context(|| format!("cannot write {}", list.display()))?;

    let total = WHEELS.iter().map(|wheel| wheel.size).sum();
    announce(progress, &format!("downloading libtorch {VERSION} ({}) with pip", HumanBytes(total)));
    let bar = byte_bar(progress, total, "downloading");
    let child = Command::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--progress-bar=off"])
        .args(TAGS)
        .arg("--dest")
        .arg(folder)
        .arg("--requirement")
        .arg(&list)
        // pip downloads here and copies at the end: /tmp is often too small, and the bar watches this folder.
        .env("TMPDIR", &scratch)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start python3")?;
    // The copy at the end doubles what is seen, so the bar stops at the whole.
    let output =
        watch(child, || bar.set_position(size_of(folder).min(total))).context("cannot wait for pip")?;
    bar.finish_and_clear();
    if output.status.success() {
        return fs::remove_dir_all(&scratch).with_context(|| format!("cannot remove {}", scratch.display()));
    }
    let said = [output.stdout, output.stderr].concat();
    Err(explain(&String::from_utf8_lossy(&said)))
}

fn require_pip() -> Result<()> {
    let pip = Command::new("python3")
        .args(["-m", "pip", "--version"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    match pip {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => bail!(
            "python3 has no pip: install it (`apt-get install python3-pip`, or `python3 -m ensurepip`), or {HOW_TO_CHOOSE}"
        ),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            bail!(
                "python3 is not installed, and libtorch is downloaded with its pip: `apt-get install python3 python3-pip`, or {HOW_TO_CHOOSE}"
            )
        }
        Err(error) => Err(error).context("python3 does not start"),
    }
}

/// Calls `tick` five times a second until the child ends, and returns what it wrote.
#[expect(clippy::disallowed_methods, reason = "xtask has no async runtime to block")]
fn watch(child: Child, tick: impl Fn()) -> io::Result<Output> {
    let reader = std::thread::spawn(move || child.wait_with_output());
    while !reader.is_finished() {
        tick();
        std::thread::sleep(Duration::from_millis(200));
    }
    reader.join().unwrap_or_else(|_| Err(io::Error::other("the thread that reads its output ended")))
}

/// Bytes of all files below `folder`; those that vanish while we look count nothing.
fn size_of(folder: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    entries
        .flatten()
        .map(|entry| match entry.metadata() {
            Ok(meta) if meta.is_dir() => size_of(&entry.path()),
            Ok(meta) => meta.len(),
            Err(_) => 0,
        })
        .sum()
}

/// Says what to do about a failed pip, whose exit status is always 1, from what it wrote.
pub(super) fn explain(log: &str) -> anyhow::Error {
    const NETWORK: [&str; 9] = [
        "NewConnectionError",
        "ConnectTimeoutError",
        "NameResolutionError",
        "ProxyError",
        "ReadTimeoutError",
        "Read timed out",
        "SSLError",
        "Temporary failure in name resolution",
        "Connection broken",
    ];
    let said = |words: &[&str]| words.iter().any(|word| log.contains(word));
    let advice = if said(&["DO NOT MATCH THE HASHES"]) {
        "a downloaded wheel is not the one we pinned (its hash differs), so it was discarded: \
         check the package index that pip is configured with (`python3 -m pip config list`)"
            .to_owned()
    } else if said(&["No space left on device", "Disk quota exceeded"]) {
        DISK_FULL.to_owned()
    } else if said(&NETWORK) {
        format!(
            "pip cannot reach its package index: check the network, or set HTTPS_PROXY or PIP_INDEX_URL; without a network, {HOW_TO_CHOOSE}"
        )
    } else if said(&["No matching distribution found", "Could not find a version"]) {
        format!(
            "the package index that pip is configured with lacks a wheel we pinned; use another (PIP_INDEX_URL), or {HOW_TO_CHOOSE}"
        )
    } else {
        format!("pip could not download the wheels; {HOW_TO_CHOOSE}")
    };
    let lines: Vec<&str> = log.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    let tail = lines[lines.len().saturating_sub(4)..].join("\n  ");
    if tail.is_empty() { anyhow!(advice) } else { anyhow!("pip said:\n  {tail}").context(advice) }
}
