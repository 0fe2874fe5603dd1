//! What tests are made of.
//!
//! - [`MeshSandbox`]: the whole mesh in the test's process, on free ports, over real sockets, with a real (small) model.
//! - [`Process`]: the real binary as a child process, to be killed.
//! - [`frames`]: images of every kind, good and bad.
//! - [`models`]: small TorchScript models with a manifest, made on the spot.
//! - [`setup`]: what `cargo xtask test` fetched, or a visible skip.
//! - [`eventually!`]: waits for a condition, bounded.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // a panic here is a failed test

pub mod frames;
pub mod models;
mod process;
mod sandbox;
pub mod setup;

pub use process::Process;
pub use sandbox::MeshSandbox;

/// Tries `$condition` (an expression of type `bool`, may await) every 10 ms until it holds, at most 20 s.
#[macro_export]
macro_rules! eventually {
    ($condition:expr) => {{
        let since = std::time::Instant::now();
        while !$condition {
            assert!(
                since.elapsed() < std::time::Duration::from_secs(20),
                "never: {}",
                stringify!($condition)
            );
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    }};
}
