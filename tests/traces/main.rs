//! The mesh seen from outside: real processes, a real Jaeger, a real Prometheus.

#![allow(clippy::unwrap_used)] // a panic here is a failed test

mod attempts;
mod away;
mod frame;
mod health;
mod metrics;
mod support;
mod trace;
