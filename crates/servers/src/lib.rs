//! Real servers as child processes: Redis, PostgreSQL, PgBouncer, toxiproxy, Jaeger, Prometheus, Kubernetes.
//!
//! What the tests, the benchmarks and `cargo xtask cluster` share. Each server listens on a free port of 127.0.0.1,
//! keeps its files and its log in a folder of its own, is ready when `start` returns, and dies with the process that
//! started it, however that one ends. Faults are real: SIGKILL, SIGSTOP, SIGTERM by process id, and networks cut by
//! namespace ([`Namespace`]).
//!
//! Everything here blocks; call it from a thread that may, such as a test's own or `spawn_blocking`.

pub mod cluster;
mod home;
mod http;
mod jaeger;
mod kubernetes;
mod namespace;
mod pgbouncer;
mod postgres;
mod process;
mod prometheus;
mod redis;
mod there;
mod tools;
mod toxiproxy;

pub use home::Home;
pub use http::{Answer, request, request_at};
pub use jaeger::Jaeger;
pub use kubernetes::Kubernetes;
pub use namespace::Namespace;
pub use pgbouncer::PgBouncer;
pub use postgres::Postgres;
pub use process::{Server, Spec, free_port, is_root, lasting_port};
pub use prometheus::Prometheus;
pub use redis::{Redis, RedisCluster};
pub use there::there;
pub use tools::{TOOLS_VARIABLE, find, use_tools};
pub use toxiproxy::{Proxy, Toxiproxy};

use std::{io, path::PathBuf};

/// Why a server is not there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its program is not installed.
    #[error("{program} is not installed: {remedy}")]
    Missing {
        /// What was looked for.
        program: &'static str,
        /// How to get it.
        remedy: &'static str,
    },
    /// It ended before it was ready.
    #[error("{program} did not start: {problem}; its log: {}", log.display())]
    NotStarted {
        /// Which.
        program: String,
        /// Its status, or what was waited for.
        problem: String,
        /// Where to read on.
        log: PathBuf,
    },
    /// A command for it failed.
    #[error("{command}: {problem}")]
    Command {
        /// As run.
        command: String,
        /// What it said.
        problem: String,
    },
    /// The system refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was done.
        what: String,
        /// The system's word.
        source: io::Error,
    },
}

/// Short for this crate's results.
pub type Result<T> = std::result::Result<T, Error>;

pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    move |source| Error::Io { what, source }
}
