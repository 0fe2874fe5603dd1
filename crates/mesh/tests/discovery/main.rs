//! Where services are: by a real name server and by a real Kubernetes API server.

#![allow(clippy::unwrap_used)] // helpers of tests: a panic is a failed test

mod control_plane;
mod dns;
mod kubernetes;
mod names;
