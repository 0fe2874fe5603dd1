//! For tests: a server, or a visible skip.

use std::io::Write;

use crate::{Error, Result};

/// What was started. Where its program is not installed the test is skipped, and says so; `SIGHTLINE_TEST_NO_SKIP`, which
/// `cargo xtask test` sets when everything is there, makes that a failure.
///
/// # Panics
/// When the server is there and does not start: the test that asked has failed.
pub fn there<T>(started: Result<T>) -> Option<T> {
    match started {
        Ok(started) => Some(started),
        Err(error @ Error::Missing { .. }) => {
            assert!(std::env::var_os("SIGHTLINE_TEST_NO_SKIP").is_none(), "{error}");
            // Not eprintln!: what goes through the macro is captured, and a test that did nothing would look like a good one.
            writeln!(std::io::stderr(), "SKIPPED: {error}").ok();
            None
        }
        Err(error) => panic!("{error}"),
    }
}
