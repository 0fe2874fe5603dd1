//! `sightline config check` and `print`.

use std::process::ExitCode;

use anyhow::Result;

use crate::{
    args::{Config, Settings},
    output, settings,
};

/// What `docs/CONFIG.md` begins with.
const PREFACE: &str = "# Settings

Written by `sightline config print --markdown`; a test keeps it fresh. Settings come from these defaults, then the TOML file
given by `--config` (or `SIGHTLINE_CONFIG`), then the environment variables, then `--set section.key=value`. Unknown keys and
unknown `SIGHTLINE_*` variables are refused. `sightline dev` and `sightline classify` start from `ratelimiter.rules = \"dev\"`
and the model in the cache folder (`SIGHTLINE_CACHE`, by default `~/.cache/sightline`).
";

pub(crate) fn run(layers: &Settings, command: &Config) -> Result<ExitCode> {
    match command {
        Config::Check => {
            let config = settings::read(layers)?;
            sightline_node::check(&config)?;
            output::line("the settings are good")?;
        }
        Config::Print { markdown: true } => {
            output::line(&format!("{PREFACE}{}", sightline_node::registry().markdown().trim_end()))?;
        }
        Config::Print { markdown: false } => output::line(settings::read(layers)?.render().trim_end())?,
    }
    Ok(ExitCode::SUCCESS)
}
