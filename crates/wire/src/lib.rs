//! What the mesh layer itself says on the wire: the load, the credits and the drain of a stream of messages, and how one
//! item of a stream failed. Nothing here belongs to one service; `crates/proto` has the services' contracts and uses
//! these messages in them.
//!
//! The code under `gen/` is checked in; `cargo xtask gen` writes it anew.

#![allow(missing_docs, clippy::all)] // generated code

/// `sightline.status.v1`: how one item of a batch or stream failed.
pub mod status {
    include!("gen/sightline.status.v1.rs");
}

/// `sightline.stream.v1`: what long-lived streams have in common.
pub mod stream {
    include!("gen/sightline.stream.v1.rs");
}
