//! The one place where Sightline touches libtorch, and the only crate allowed `unsafe`.
//!
//! A [`Model`] is a TorchScript module that one thread owns: floats in, a table of floats out, and every
//! failure a [`TorchError`] with one clean line. Everything else (batching, queues, manifests, policies)
//! lives in crates that build and test without libtorch.
//!
//! | module | |
//! |---|---|
//! | [`model`](Model) | load, forward, shapes |
//! | [`device`](Device) | CPU or GPU, and finding the GPU library at run time |
//! | `archive` | the check of a module file that libtorch leaves out |
//! | [`error`](TorchError) | libtorch's exceptions, cut down to the line that matters |
//! | [`worker`](configure_worker_thread) | what each worker thread sets once |
//!
//! # Threads
//!
//! Workers are few, fixed, long-lived `std` threads: libtorch keeps memory for every thread that ever ran a
//! model, and half of its settings are per thread. Call [`configure_worker_thread`] first on each.
//!
//! # Safety
//!
//! A module's code decides what happens to the tensor it is given: it may write into it (an in-place
//! `clamp_`) or keep it (`self.last = x`). So a tensor made over a caller's `&[f32]` (`from_blob`) cannot be
//! sound. The input lives instead in memory that libtorch allocated and counts references to, and callers who
//! want no copy write straight into it ([`Model::forward_with`]).
#![allow(unsafe_code, reason = "the crate that holds the workspace's FFI")]
#![deny(clippy::undocumented_unsafe_blocks, unsafe_op_in_unsafe_fn)]

mod archive;
mod device;
mod error;
mod model;
mod worker;

pub use device::{Device, ParseDeviceError, cuda_device_count, libtorch_version};
pub use error::TorchError;
pub use model::{InputShape, Layout, Model, OutputShape};
pub use worker::configure_worker_thread;
