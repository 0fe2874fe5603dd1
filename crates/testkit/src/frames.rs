//! Images of every kind.

use std::io::Cursor;

use image::{ImageFormat, Rgb, RgbImage};

/// A picture that differs for every `seed`: a few soft blobs on a gradient, as photographs compress.
pub fn picture(seed: u64, width: u32, height: u32) -> RgbImage {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32
    };
    let blobs: Vec<[f32; 6]> = (0..4).map(|_| std::array::from_fn(|_| next())).collect();
    RgbImage::from_fn(width, height, |x, y| {
        let (u, v) = (x as f32 / width as f32, y as f32 / height as f32);
        let mut colour = [u * 120.0, v * 120.0, (1.0 - u) * 120.0];
        for [cx, cy, radius, r, g, b] in &blobs {
            let near = 1.0 - ((u - cx).powi(2) + (v - cy).powi(2)) / (0.02 + radius * 0.2);
            if near > 0.0 {
                for (channel, strength) in colour.iter_mut().zip([r, g, b]) {
                    *channel += near * strength * 135.0;
                }
            }
        }
        Rgb(colour.map(|value| value.clamp(0.0, 255.0) as u8))
    })
}

fn encode(picture: &RgbImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Cursor::new(Vec::new());
    picture.write_to(&mut bytes, format).unwrap();
    bytes.into_inner()
}

/// A JPEG.
pub fn jpeg(seed: u64, side: u32) -> Vec<u8> {
    encode(&picture(seed, side, side), ImageFormat::Jpeg)
}

/// A PNG.
pub fn png(seed: u64, side: u32) -> Vec<u8> {
    encode(&picture(seed, side, side), ImageFormat::Png)
}

/// A WebP, lossless.
pub fn webp(seed: u64, side: u32) -> Vec<u8> {
    encode(&picture(seed, side, side), ImageFormat::WebP)
}

/// A GIF of one frame.
pub fn gif(seed: u64, side: u32) -> Vec<u8> {
    encode(&picture(seed, side, side), ImageFormat::Gif)
}

/// One of the four kinds, by the seed.
pub fn mixed(seed: u64, side: u32) -> Vec<u8> {
    match seed % 4 {
        0 => jpeg(seed, side),
        1 => png(seed, side),
        2 => webp(seed, side),
        _ => gif(seed, side),
    }
}

/// A PNG whose header claims these dimensions; there are no pixels behind it.
pub fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut header = b"IHDR".to_vec();
    header.extend(width.to_be_bytes());
    header.extend(height.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    for chunk in [header, b"IDAT".to_vec(), b"IEND".to_vec()] {
        png.extend((chunk.len() as u32 - 4).to_be_bytes());
        png.extend(&chunk);
        png.extend(crc32(&chunk).to_be_bytes());
    }
    png
}

/// An animated GIF of a large canvas and very many frames in few bytes.
pub fn gif_bomb(side: u16, frames: usize) -> Vec<u8> {
    let mut gif = b"GIF89a".to_vec();
    gif.extend(side.to_le_bytes());
    gif.extend(side.to_le_bytes());
    gif.extend([0x80, 0, 0, 0, 0, 0, 255, 255, 255]);
    for _ in 0..frames {
        // A frame of one pixel in the corner; a player composes the whole canvas for each.
        gif.push(0x2c);
        gif.extend([0, 0, 0, 0, 1, 0, 1, 0, 0]);
        gif.extend([2, 2, 0x44, 0x01, 0]);
    }
    gif.push(0x3b);
    gif
}

/// CRC-32 of the PNG specification, annex D.
fn crc32(bytes: &[u8]) -> u32 {
    let mut crc = u32::MAX;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = if crc & 1 == 1 { (crc >> 1) ^ 0xedb8_8320 } else { crc >> 1 };
        }
    }
    !crc
}
