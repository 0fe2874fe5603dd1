//! What the mesh says of itself: logs, metrics and the small HTTP server that shows them to operators.
//!
//! - [`logs::init`]: human-readable lines on a terminal, one JSON object a line elsewhere, always on standard error.
//! - [`metrics::recorder`]: the process's Prometheus registry.
//! - [`dependencies::Dependencies`]: how each server that the process needs is.
//! - [`admin::Admin`]: `/metrics`, `/livez`, `/readyz` and `/healthz` over plain HTTP, on a port of its own so that it never shares
//!   the public edge.
//!
//! Pixels, tokens and hashes never go into a field of either (promise P6); user ids never into a label.

pub mod admin;
pub mod dependencies;
pub mod logs;
pub mod metrics;

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use sightline_config::Listen;

sightline_config::settings! {
    /// What the process tells operators.
    pub struct TelemetryConfig in "telemetry" {
        /// What is logged: a level, or directives such as "info,sightline_mesh=debug".
        pub log: String = "info".into(),
        /// How: "text", "json", or "auto" (text on a terminal, JSON elsewhere).
        pub log_format: logs::Format = logs::Format::Auto,
        /// Where /metrics, /livez, /readyz and /healthz are served over HTTP; "off": nowhere. Several processes on one
        /// machine need one port each.
        pub admin_listen: Listen = Listen::at(SocketAddr::V4(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 7400))),
    }
}
