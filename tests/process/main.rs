//! The real binary, from outside: arguments in, output, exit codes and signals.

#![allow(clippy::unwrap_used)] // a panic here is a failed test

mod auth;
mod classify;
mod config;
mod help;
mod kill;
mod limits;
mod questions;
mod replicas;
mod start;
mod stop;
mod support;
