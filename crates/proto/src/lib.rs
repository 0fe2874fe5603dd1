//! The contracts of the mesh: messages, clients and servers generated from `proto/`.
//!
//! The code under `gen/` is checked in; a test of `sightline-codegen` fails when it differs
//! from what the protos give, and `cargo xtask gen` writes it anew. Image and tensor bytes are [`bytes::Bytes`](prost::bytes::Bytes): they are
//! slices of the received buffer, never copies.

#![allow(missing_docs, clippy::all)] // generated code

/// Everything under the protobuf package `sightline`.
pub mod sightline {
    pub mod classifier {
        pub mod v1 {
            include!("gen/sightline.classifier.v1.rs");
        }
    }
    pub mod ingest {
        pub mod v1 {
            include!("gen/sightline.ingest.v1.rs");
        }
    }
    pub mod ratelimiter {
        pub mod v1 {
            include!("gen/sightline.ratelimiter.v1.rs");
        }
    }
    pub mod stats {
        pub mod v1 {
            include!("gen/sightline.stats.v1.rs");
        }
    }
    pub mod verdict {
        pub mod v1 {
            include!("gen/sightline.verdict.v1.rs");
        }
    }
}

/// What is answered of Envoy's rate limit service: a foreign contract, with its names.
pub mod envoy {
    pub mod extensions {
        pub mod common {
            pub mod ratelimit {
                pub mod v3 {
                    include!("gen/envoy.extensions.common.ratelimit.v3.rs");
                }
            }
        }
    }
    pub mod service {
        pub mod ratelimit {
            pub mod v3 {
                include!("gen/envoy.service.ratelimit.v3.rs");
            }
        }
    }
    pub mod r#type {
        pub mod v3 {
            include!("gen/envoy.r#type.v3.rs");
        }
    }
}

pub use sightline::{
    classifier::v1 as classifier, ingest::v1 as ingest, ratelimiter::v1 as ratelimiter, stats::v1 as stats,
    verdict::v1 as verdict,
};
/// The mesh layer's own messages, which the services' contracts use.
pub use sightline_wire::{status, stream};

/// All of Sightline's protos as an encoded `FileDescriptorSet`, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!("gen/descriptors.bin");

impl verdict::Level {
    /// How severe the level is: `NONE` 0, `MILD` 1, `SUGGESTIVE` 2, `EXPLICIT` 3, `SEVERE` 4; unspecified counts as 0.
    pub fn severity(self) -> u8 {
        (self as i32).saturating_sub(1).max(0) as u8
    }

    /// The name without the enum's prefix: `NONE`, `MILD`, …
    pub fn short_name(self) -> &'static str {
        self.as_str_name().trim_start_matches("LEVEL_")
    }

    /// The level a name means, with or without the `LEVEL_` prefix, in any case.
    pub fn parse(name: &str) -> Option<Self> {
        let upper = name.to_ascii_uppercase();
        Self::from_str_name(&upper).or_else(|| Self::from_str_name(&format!("LEVEL_{upper}")))
    }
}

impl verdict::VerdictSource {
    /// The name without the enum's prefix: `MODEL`, `EXACT_DUPLICATE`.
    pub fn short_name(self) -> &'static str {
        self.as_str_name().trim_start_matches("VERDICT_SOURCE_")
    }
}

/// Shows everything but the pixels (P6).
impl std::fmt::Debug for ingest::Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Frame")
            .field("frame_id", &self.frame_id)
            .field("application", &self.application)
            .field("image", &format_args!("{} bytes", self.image.len()))
            .field("model", &self.model)
            .finish_non_exhaustive()
    }
}

/// Shows everything but the pixels (P6).
impl std::fmt::Debug for classifier::Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tensor")
            .field("id", &self.id)
            .field("model", &self.model)
            .field("pixels", &format_args!("{} bytes", self.pixels.len()))
            .finish_non_exhaustive()
    }
}
