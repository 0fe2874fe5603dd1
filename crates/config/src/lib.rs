//! Configuration: defaults < TOML file < environment < flags; unknown keys are refused, errors name the key and where it stands.
//!
//! - [`settings!`] declares a section: a struct, its defaults, and from the docstrings the documentation of every key.
//! - [`Registry`] is the list of all sections. It gives every environment variable ([`Registry::variables`]), the
//!   commented file that `sightline config print` shows ([`Registry::render`]) and `docs/CONFIG.md`.
//! - [`load`] puts the layers together.
//! - [`HumanDuration`] (`"5s"`, `"1m 30s"`) and [`ByteSize`] (`"10MiB"`) carry their unit in the file too.
//! - [`ServerUrl`]: the address of a server, whose password is never shown.

mod layers;
mod registry;
mod secret;
mod settings;
mod units;

pub use layers::{ConfigError, Layers, load};
pub use registry::{Registry, Variable};
pub use secret::{ServerUrl, mask};
pub use settings::{Field, Section, SectionDoc};
pub use units::{ByteSize, HumanDuration, Listen};

#[doc(hidden)]
pub use serde;
