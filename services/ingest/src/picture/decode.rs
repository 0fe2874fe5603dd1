//! Decoding within limits. What the header says is believed only as far as the limits go, and nothing is allocated
//! for pixels before they were checked.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageError, codecs};

use super::header;
use crate::error::IngestError;

/// The kinds of image that are decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// ITU-T T.81.
    Jpeg,
    /// RFC 2083 and later; of an animated PNG the default image.
    Png,
    /// RFC 9649; the first frame.
    WebP,
    /// GIF89a; the first frame.
    Gif,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::WebP => "WebP",
            Self::Gif => "GIF",
        }
    }
}

/// Bounds on a decoded image.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Width × height.
    pub max_pixels: u64,
    /// Of either side.
    pub max_side: u32,
}

impl Limits {
    fn check(self, width: u32, height: u32) -> Result<(), IngestError> {
        let Limits { max_pixels, max_side } = self;
        let pixels = u64::from(width) * u64::from(height);
        if pixels > max_pixels || width > max_side || height > max_side || pixels == 0 {
            return Err(IngestError::ImageDimensions { width, height, max_pixels, max_side });
        }
        Ok(())
    }
}

/// What a decoder may take beside the pixels: rows, tables, and what it keeps of an image's metadata, which is sent
/// compressed and may be made to grow a thousandfold.
const WORK_SPACE: u64 = 64 << 20;

/// A decoded image: 8-bit RGB, rows from the top. Transparency is ignored, as nsfwjs does.
#[derive(Debug)]
pub struct Picture {
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// width × height × 3 bytes.
    pub rgb: Vec<u8>,
}

/// Magic numbers of images that are known but not decoded, for a better message.
const UNSUPPORTED: [(&[u8], usize, &str); 9] = [
    (b"BM", 0, "BMP"),
    (b"II*\0", 0, "TIFF"),
    (b"MM\0*", 0, "TIFF"),
    (b"ftypavif", 4, "AVIF"),
    (b"ftypheic", 4, "HEIC"),
    (b"ftypmif1", 4, "HEIF"),
    (b"\xff\x0a", 0, "JPEG XL"),
    (b"\0\0\x01\0", 0, "ICO"),
    (b"8BPS", 0, "Photoshop"),
];

/// The kind of image by its first bytes.
///
/// # Errors
/// `ImageUnsupported` for a known kind that is not decoded, `ImageUnrecognised` for anything else.
pub fn recognise(image: &[u8]) -> Result<Kind, IngestError> {
    if image.starts_with(b"\xff\xd8\xff") {
        return Ok(Kind::Jpeg);
    }
    if image.starts_with(b"\x89PNG\r\n\x1a\n") {
        return Ok(Kind::Png);
    }
    if image.starts_with(b"RIFF") && image.get(8..12) == Some(b"WEBP") {
        return Ok(Kind::WebP);
    }
    if image.starts_with(b"GIF87a") || image.starts_with(b"GIF89a") {
        return Ok(Kind::Gif);
    }
    for (magic, at, name) in UNSUPPORTED {
        if image.get(at..).is_some_and(|rest| rest.starts_with(magic)) {
            return Err(IngestError::ImageUnsupported(name));
        }
    }
    Err(IngestError::ImageUnrecognised)
}

/// Decodes the (first) image.
///
/// # Errors
/// One of the `Image*` errors; never more than the limits' memory was allocated.
pub fn decode(image: &[u8], limits: Limits) -> Result<Picture, IngestError> {
    let kind = recognise(image)?;
    let cursor = Cursor::new(image);
    let fail = |error: ImageError| explain(kind, &error);
    match kind {
        Kind::Jpeg => {
            // The decoder fills a missing end with grey, which would be classified as if it had been seen.
            if !header::jpeg_is_whole(image) {
                return Err(IngestError::ImageTruncated(kind.name()));
            }
            read(codecs::jpeg::JpegDecoder::new(cursor).map_err(fail)?, kind, limits)
        }
        Kind::Png => {
            let (width, height) = header::png(image).ok_or(IngestError::ImageTruncated(kind.name()))?;
            limits.check(width, height)?;
            let mut bounds = image::Limits::default();
            bounds.max_alloc = Some(WORK_SPACE);
            read(codecs::png::PngDecoder::with_limits(cursor, bounds).map_err(fail)?, kind, limits)
        }
        Kind::WebP => {
            // The decoder believes the canvas first and allocates what the frame inside says.
            header::webp_frames(image).try_for_each(|(width, height)| limits.check(width, height))?;
            read(codecs::webp::WebPDecoder::new(cursor).map_err(fail)?, kind, limits)
        }
        Kind::Gif => read(codecs::gif::GifDecoder::new(cursor).map_err(fail)?, kind, limits),
    }
}

fn read<D: ImageDecoder>(mut decoder: D, kind: Kind, limits: Limits) -> Result<Picture, IngestError> {
    let (width, height) = decoder.dimensions();
    limits.check(width, height)?;
    let mut bounds = image::Limits::default();
    // At most 16 bits in four channels, and the decoder's own work space beside it.
    bounds.max_alloc = Some(limits.max_pixels.saturating_mul(8).saturating_add(WORK_SPACE));
    decoder.set_limits(bounds).map_err(|error| explain(kind, &error))?;
    let decoded = DynamicImage::from_decoder(decoder).map_err(|error| explain(kind, &error))?;
    Ok(Picture { width, height, rgb: decoded.into_rgb8().into_raw() })
}

fn explain(kind: Kind, error: &ImageError) -> IngestError {
    let early = match error {
        ImageError::IoError(error) => error.kind() == std::io::ErrorKind::UnexpectedEof,
        // The decoders wrap the end of input in errors of their own.
        other => {
            let mut source: Option<&dyn std::error::Error> = Some(other);
            std::iter::from_fn(|| {
                let error = source?;
                source = error.source();
                Some(error.to_string())
            })
            .any(|text| {
                let text = text.to_ascii_lowercase();
                ["unexpected end", "unexpected eof", "end of file", "insufficient", "not enough"]
                    .iter()
                    .any(|hint| text.contains(hint))
            })
        }
    };
    if early { IngestError::ImageTruncated(kind.name()) } else { IngestError::ImageCorrupt(kind.name()) }
}
