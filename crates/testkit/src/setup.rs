//! What only `cargo xtask test` provides.

use std::{env, io::Write, path::PathBuf};

/// The path in an environment variable that `cargo xtask test` sets.
///
/// Without it the test is skipped, and says so; `SIGHTLINE_TEST_NO_SKIP`, which `cargo xtask test` sets, makes that a
/// failure.
pub fn path(variable: &str) -> Option<PathBuf> {
    if let Some(path) = env::var_os(variable) {
        return Some(path.into());
    }
    skip(&format!("{variable} is not set; `cargo xtask test` sets it"));
    None
}

/// Says that a test is skipped, and why.
///
/// # Panics
/// With `SIGHTLINE_TEST_NO_SKIP`, which `cargo xtask test` sets.
pub fn skip(why: &str) {
    assert!(env::var_os("SIGHTLINE_TEST_NO_SKIP").is_none(), "{why}, and no test may be skipped");
    // Not eprintln!: what goes through the macro is captured, and a test that did nothing would look like a good one.
    writeln!(std::io::stderr(), "SKIPPED: {why}").ok();
}

/// The default model, converted.
pub fn model() -> Option<PathBuf> {
    path("SIGHTLINE_TEST_MODEL")
}

/// The repository.
pub fn repository() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}
