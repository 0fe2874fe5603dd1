//! Structured logs.

use std::io::IsTerminal;

use serde::{Deserialize, Serialize};
use tracing_subscriber::{EnvFilter, fmt, prelude::*};

use crate::TelemetryConfig;

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// For people.
    Text,
    /// One object a line.
    Json,
}

/// Why logging cannot start.
#[derive(Debug, thiserror::Error)]
#[error("`telemetry.log`: {0:?} is not a level or a list of directives")]
pub struct LogError(String);

impl TelemetryConfig {
    /// Checks what types cannot.
    ///
    /// # Errors
    /// [`LogError`] when the filter cannot be read.
    pub fn validate(&self) -> Result<(), LogError> {
        EnvFilter::try_new(&self.log).map(drop).map_err(|_| LogError(self.log.clone()))
    }
}

/// Sends this process's events to standard error. A second call in the same process changes nothing.
///
/// # Errors
/// [`LogError`] when the filter cannot be read.
pub fn init(config: &TelemetryConfig) -> Result<(), LogError> {
    let filter = EnvFilter::try_new(&config.log).map_err(|_| LogError(config.log.clone()))?;
    let text = match config.log_format {
        Format::Auto => std::io::stderr().is_terminal(),
        Format::Text => true,
        Format::Json => false,
    };
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = if text {
        lines.with_target(false).boxed()
    } else {
        lines.json().flatten_event(true).with_current_span(true).with_span_list(false).boxed()
    };
    // Fails only when a subscriber is already there, as in tests that start several meshes in one process.
    tracing_subscriber::registry().with(filter).with(lines).try_init().ok();
    Ok(())
}
