//! The services as processes that prove to each other who they are: who is let in, certificates that change under load
//! and end, tokens and their keys, and the command line as a client.
//!
//! `SIGHTLINE_ROTATIONS` says how often certificates change under load.

#![allow(clippy::unwrap_used)] // a panic here is a failed test

#[path = "../../crates/mesh/tests/keys/bad.rs"]
mod bad;
#[path = "../../crates/mesh/tests/certs/mod.rs"]
mod certs;
mod cli;
mod client;
mod expiry;
#[path = "../../crates/mesh/tests/keys/mod.rs"]
mod keys;
mod mesh;
mod refused;
mod rotation;
#[path = "../../crates/mesh/tests/secret/mod.rs"]
#[allow(dead_code)] // the mesh layer's own tests use all of it
mod secret;
mod tokens;
