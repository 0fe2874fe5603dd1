//! Models: the archives we write in the libtorch that runs them, and the real ones behind the public API.

#![allow(clippy::unwrap_used)] // a panic here is a failed test

mod archive;
mod inception;
mod mobilenet;
mod same;
mod second;
mod support;
