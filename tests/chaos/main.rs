//! What the mesh promises while things go wrong, on real processes: replicas that are killed, stopped, cut off and started
//! anew under load.
//!
//! `SIGHTLINE_CHAOS_RATE` (messages per second), `SIGHTLINE_CHAOS_STREAMS` and `SIGHTLINE_CHAOS_ROUNDS` make the tests longer
//! than CI's two slow cores allow:
//!
//! ```text
//! SIGHTLINE_CHAOS_RATE=1000 SIGHTLINE_CHAOS_ROUNDS=20 cargo xtask test --profile quick -p sightline-tests --test chaos -- --nocapture
//! ```

#![allow(clippy::unwrap_used, clippy::print_stdout)] // helpers of tests: a panic is a failed test, figures are of use

mod book;
mod client;
mod faults;
mod load;
mod overload;
mod rolling;
mod support;
