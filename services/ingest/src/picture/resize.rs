//! Resizing exactly as a model's manifest says: a model sees in service what it saw in training (P7).

use bytes::Bytes;
use image::{RgbImage, imageops};
use sightline_proto::classifier::{ColourOrder, CornerRule, InputSpec, PixelFormat, ResizeFilter};

use super::Picture;

/// Resizes to the input's width and height, stretching, and encodes the pixels as the input's format asks: rows from
/// the top, colours together in the input's order.
pub fn resize(picture: &Picture, input: &InputSpec) -> Bytes {
    let mut out = Vec::with_capacity((input.width * input.height) as usize * 3 * bytes_per_value(input));
    let swap = input.colour() == ColourOrder::Bgr;
    let mut put = |pixel: [f32; 3]| {
        let pixel = if swap { [pixel[2], pixel[1], pixel[0]] } else { pixel };
        match input.format() {
            PixelFormat::U16 => pixel.iter().for_each(|value| {
                out.extend_from_slice(&((value * 257.0 + 0.5) as u16).to_le_bytes());
            }),
            PixelFormat::F32 => pixel.iter().for_each(|value| out.extend_from_slice(&value.to_le_bytes())),
            _ => out.extend(pixel.iter().map(|value| (value + 0.5) as u8)),
        }
    };
    let shrinks = picture.width > input.width || picture.height > input.height;
    match (input.resize(), input.antialias && shrinks) {
        (ResizeFilter::Nearest, _) => nearest(picture, input, &mut put),
        (_, false) => bilinear(picture, input, &mut put),
        (_, true) => antialiased(picture, input, &mut put),
    }
    Bytes::from(out)
}

fn bytes_per_value(input: &InputSpec) -> usize {
    match input.format() {
        PixelFormat::F32 => 4,
        PixelFormat::U16 => 2,
        _ => 1,
    }
}

/// One target coordinate: two source coordinates and how far it lies towards the second.
#[derive(Clone, Copy)]
struct Tap {
    first: usize,
    second: usize,
    weight: f32,
}

/// Where each target coordinate falls, by the corner rule (as TensorFlow and PyTorch define them).
fn taps(source: u32, target: u32, corners: CornerRule) -> Vec<Tap> {
    let last = source - 1;
    (0..target)
        .map(|at| {
            let position = match corners {
                CornerRule::HalfPixel => ((at as f32 + 0.5) * (source as f32 / target as f32) - 0.5).max(0.0),
                _ if target == 1 => 0.0,
                _ => at as f32 * (last as f32 / (target - 1) as f32),
            };
            let first = (position.floor() as u32).min(last);
            Tap {
                first: first as usize,
                second: (first + 1).min(last) as usize,
                weight: (position - first as f32).clamp(0.0, 1.0),
            }
        })
        .collect()
}

fn bilinear(picture: &Picture, input: &InputSpec, put: &mut impl FnMut([f32; 3])) {
    let columns = taps(picture.width, input.width, input.corners());
    let stride = picture.width as usize * 3;
    for row in taps(picture.height, input.height, input.corners()) {
        let (top, bottom) = (&picture.rgb[row.first * stride..], &picture.rgb[row.second * stride..]);
        for column in &columns {
            let (left, right) = (column.first * 3, column.second * 3);
            put(std::array::from_fn(|c| {
                let mix = |line: &[u8]| {
                    let (a, b) = (f32::from(line[left + c]), f32::from(line[right + c]));
                    a + (b - a) * column.weight
                };
                let (upper, lower) = (mix(top), mix(bottom));
                upper + (lower - upper) * row.weight
            }));
        }
    }
}

fn nearest(picture: &Picture, input: &InputSpec, put: &mut impl FnMut([f32; 3])) {
    let columns = taps(picture.width, input.width, input.corners());
    for row in taps(picture.height, input.height, input.corners()) {
        let y = if row.weight < 0.5 { row.first } else { row.second };
        for column in &columns {
            let x = if column.weight < 0.5 { column.first } else { column.second };
            let at = (y * picture.width as usize + x) * 3;
            put(std::array::from_fn(|c| f32::from(picture.rgb[at + c])));
        }
    }
}

/// A triangle as wide as the shrinking asks, half-pixel centres: what PIL and PyTorch call antialiased bilinear.
fn antialiased(picture: &Picture, input: &InputSpec, put: &mut impl FnMut([f32; 3])) {
    let view = image::ImageBuffer::<image::Rgb<u8>, &[u8]>::from_raw(
        picture.width,
        picture.height,
        &picture.rgb[..],
    )
    .expect("a picture has width × height × 3 bytes");
    let small: RgbImage = imageops::resize(&view, input.width, input.height, imageops::FilterType::Triangle);
    for pixel in small.pixels() {
        put(pixel.0.map(f32::from));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(width: u32, height: u32, corners: CornerRule, format: PixelFormat) -> InputSpec {
        InputSpec {
            width,
            height,
            channels: 3,
            colour: ColourOrder::Rgb.into(),
            resize: ResizeFilter::Bilinear.into(),
            corners: corners.into(),
            antialias: false,
            format: format.into(),
        }
    }

    fn ramp() -> Picture {
        // Two pixels: black and (0, 100, 200).
        Picture { width: 2, height: 1, rgb: vec![0, 0, 0, 0, 100, 200] }
    }

    #[test]
    fn aligned_corners_keep_the_corners() {
        let out = resize(&ramp(), &input(3, 1, CornerRule::Align, PixelFormat::U8));
        assert_eq!(&out[..], [0, 0, 0, 0, 50, 100, 0, 100, 200]);
    }

    #[test]
    fn half_pixel_centres_weigh_areas() {
        let out = resize(&ramp(), &input(4, 1, CornerRule::HalfPixel, PixelFormat::U8));
        assert_eq!(out.chunks(3).map(|pixel| pixel[1]).collect::<Vec<_>>(), [0, 25, 75, 100]);
    }

    #[test]
    fn two_bytes_keep_what_one_byte_rounds_away() {
        let out = resize(&ramp(), &input(4, 1, CornerRule::Align, PixelFormat::U16));
        let green = u16::from_le_bytes([out[8], out[9]]);
        assert_eq!(green, (100.0_f32 / 3.0 * 257.0 + 0.5) as u16);
        let mut bgr = input(4, 1, CornerRule::Align, PixelFormat::U8);
        bgr.colour = ColourOrder::Bgr.into();
        assert_eq!(resize(&ramp(), &bgr)[9..], [200, 100, 0]);
    }
}
