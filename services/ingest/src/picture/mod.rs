//! From an encoded image to the pixels a model takes.

mod decode;
mod header;
mod resize;

use bytes::Bytes;
pub use decode::{Kind, Limits, Picture, decode, recognise};
pub use resize::resize;
use sightline_proto::classifier::InputSpec;

use crate::error::IngestError;

/// Decodes and resizes in one go. Takes milliseconds: call it from a blocking thread.
///
/// # Errors
/// One of the `Image*` errors.
pub fn prepare(image: &[u8], limits: Limits, input: &InputSpec) -> Result<Bytes, IngestError> {
    let picture = decode(image, limits)?;
    Ok(resize(&picture, input))
}
