//! The folder that all clones on a machine share: what was downloaded, and what was made from it.

use std::{env, path::PathBuf};

use anyhow::{Context, Result};
use indicatif::MultiProgress;

/// `$SIGHTLINE_CACHE`, else `$XDG_CACHE_HOME/sightline`, else `~/.cache/sightline`.
pub(crate) fn folder() -> Result<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(own) = set("SIGHTLINE_CACHE") {
        return std::path::absolute(&own)
            .with_context(|| format!("SIGHTLINE_CACHE={} is not a usable path", own.display()));
    }
    // The XDG base directory specification: a relative path is to be ignored.
    let base = set("XDG_CACHE_HOME")
        .filter(|path| path.is_absolute())
        .or_else(|| Some(set("HOME")?.join(".cache")))
        .context(
            "neither HOME nor XDG_CACHE_HOME is set: set SIGHTLINE_CACHE to a folder to keep downloads in",
        )?;
    Ok(base.join("sightline"))
}

/// A line for people, above the bars, or alone where no bars are drawn.
pub(crate) fn announce(progress: &MultiProgress, line: &str) {
    if progress.is_hidden() {
        eprintln!("{line}");
    } else {
        // A terminal that went away is no reason to stop.
        let _ = progress.println(line);
    }
}
