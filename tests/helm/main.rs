//! The Helm chart and the Dockerfile: rendered, checked against what a real API server says of its kinds, installed,
//! upgraded and rolled back on one, and refused where they cannot work.
//!
//! `SIGHTLINE_TEST_UPDATE=1` writes what is generated (the README's table, examples, the schema's settings) instead of
//! comparing it.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // a panic here is a failed test

mod cluster;
mod config;
mod discovery;
mod fresh;
mod image;
mod install;
mod kubelet;
mod profiles;
mod refused;
mod rules;
mod schemas;
mod support;
mod switches;
mod tls;
mod values;
