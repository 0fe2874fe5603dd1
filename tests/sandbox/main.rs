//! The whole mesh over real sockets: what clients are promised.

#![allow(clippy::unwrap_used)] // helpers of tests: a panic is a failed test

mod counted;
mod errors;
mod lifecycle;
mod limits;
mod mesh;
mod stream;
mod tokens;
mod unary;
