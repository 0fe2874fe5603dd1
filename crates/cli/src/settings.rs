//! From layers of settings to a [`NodeConfig`].

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use sightline_config::{Layers, Listen, load};
use sightline_node::{NodeConfig, registry};

use crate::args::Settings;

/// The preset of limits for trials on one machine.
const DEV_RULES: &str = "dev";

/// The folder under `models/` of the cache in which `cargo xtask dev` puts the default model (xtask/src/model.rs).
const DEFAULT_MODEL: &str = "nsfwjs-mobilenet-v2-4.4.0-r1";

/// Settings of `serve`, `config check` and `config print`: plain defaults under the layers.
pub(crate) fn read(settings: &Settings) -> Result<NodeConfig> {
    over(&NodeConfig::default(), settings)
}

/// How much a mesh in this process logs unless it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Logs {
    /// As `serve` does: the mesh stays up.
    Usual,
    /// Warnings: a command's own output is what is looked at.
    Quiet,
}

/// Settings of a mesh in this process: as [`read`], with generous limits and the model that set-up left in the cache.
pub(crate) fn read_dev(settings: &Settings, logs: Logs) -> Result<NodeConfig> {
    let mut base = NodeConfig::default();
    base.ratelimiter.rules = DEV_RULES.into();
    // A few frames by hand: whoever looks at traces here wants each of them.
    base.telemetry.otlp_sample = 1.0;
    if logs == Logs::Quiet {
        base.telemetry.log = "warn".into();
    }
    let mut config = over(&base, settings)?;
    if config.classifier.models.is_empty() {
        config.classifier.models = vec![default_model()?];
    }
    Ok(config)
}

/// Any free port for every listener: for a mesh that only this process talks to.
pub(crate) fn on_free_ports(config: &mut NodeConfig) {
    for listen in [
        &mut config.ingest.listen,
        &mut config.classifier.listen,
        &mut config.ratelimiter.listen,
        &mut config.stats.listen,
    ] {
        *listen = ([127, 0, 0, 1], 0).into();
    }
    config.telemetry.admin_listen = Listen::OFF;
}

fn over(base: &NodeConfig, settings: &Settings) -> Result<NodeConfig> {
    let layers = Layers {
        file: settings.config.clone(),
        // A variable that is not UTF-8 is none of ours.
        environment: std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect(),
        flags: settings.set.clone(),
    };
    let config = load(base, &registry(), &layers)?;
    if let Err(problem) = config.validate() {
        bail!(problem);
    }
    Ok(config)
}

/// Where `cargo xtask` keeps what it fetched and made.
pub(crate) fn cache_dir() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("SIGHTLINE_CACHE") {
        return Ok(folder.into());
    }
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let base = base.or_else(home).context("neither SIGHTLINE_CACHE, XDG_CACHE_HOME nor HOME is set")?;
    Ok(base.join("sightline"))
}

fn default_model() -> Result<PathBuf> {
    let folder = cache_dir()?.join("models").join(DEFAULT_MODEL);
    if !folder.join("model.toml").is_file() {
        bail!(
            "no model is configured and none lies in {}: run `cargo xtask dev` once, or `sightline models import`, or \
             set classifier.models",
            folder.display()
        );
    }
    Ok(folder)
}
