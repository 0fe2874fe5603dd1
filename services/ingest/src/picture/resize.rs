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
    let mut put = |line: &mut [f32]| {
        if swap {
            line.as_chunks_mut::<3>().0.iter_mut().for_each(|pixel| pixel.swap(0, 2));
        }
        encode(line, input.format(), &mut out);
    };
    let shrinks = picture.width > input.width || picture.height > input.height;
    match (input.resize(), input.antialias && shrinks) {
        (ResizeFilter::Nearest, _) => nearest(picture, input, &mut put),
        (_, false) => bilinear(picture, input, &mut put),
        (_, true) => antialiased(picture, input, &mut put),
    }
    Bytes::from(out)
}

/// Appends values of 0 to 255, rounded. Loops over whole lines of one format: the compiler makes vectors of them.
fn encode(line: &[f32], format: PixelFormat, out: &mut Vec<u8>) {
    /// 2²³: added to a smaller number it leaves the nearest integer in the low bits, five times as fast as a cast,
    /// which would have to mind numbers out of range.
    const ROUND: f32 = 8_388_608.0;
    let from = out.len();
    match format {
        PixelFormat::U16 => {
            out.resize(from + line.len() * 2, 0);
            for (two, value) in out[from..].as_chunks_mut::<2>().0.iter_mut().zip(line) {
                *two = ((value * 257.0 + ROUND).to_bits() as u16).to_le_bytes();
            }
        }
        PixelFormat::F32 => out.extend(line.iter().flat_map(|value| value.to_le_bytes())),
        _ => out.extend(line.iter().map(|value| (value + ROUND).to_bits() as u8)),
    }
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

/// First between the two lines, for all columns that are needed at once, then between columns.
fn bilinear(picture: &Picture, input: &InputSpec, put: &mut impl FnMut(&mut [f32])) {
    let mut columns = taps(picture.width, input.width, input.corners());
    let stride = picture.width as usize * 3;
    // Of a wide picture most columns fall between the taps: the others are gathered first.
    let wide = picture.width > 2 * input.width;
    let gathered: Vec<usize> =
        if wide { columns.iter().flat_map(|tap| [tap.first, tap.second]).collect() } else { Vec::new() };
    if wide {
        for (at, tap) in columns.iter_mut().enumerate() {
            (tap.first, tap.second) = (2 * at, 2 * at + 1);
        }
    }
    let (mut upper, mut lower) = (Vec::new(), Vec::new());
    let mut blend = Vec::with_capacity(stride);
    let mut line = vec![0.0; input.width as usize * 3];
    for row in taps(picture.height, input.height, input.corners()) {
        let (mut top, mut bottom) =
            (&picture.rgb[row.first * stride..][..stride], &picture.rgb[row.second * stride..][..stride]);
        if wide {
            gather(top, &gathered, &mut upper);
            gather(bottom, &gathered, &mut lower);
            (top, bottom) = (&upper, &lower);
        }
        blend.clear();
        blend.extend(top.iter().zip(bottom).map(|(top, bottom)| {
            let (top, bottom) = (f32::from(*top), f32::from(*bottom));
            top + (bottom - top) * row.weight
        }));
        for (column, pixel) in columns.iter().zip(line.as_chunks_mut::<3>().0) {
            let (left, right) = (&blend[column.first * 3..][..3], &blend[column.second * 3..][..3]);
            for c in 0..3 {
                pixel[c] = left[c] + (right[c] - left[c]) * column.weight;
            }
        }
        put(&mut line);
    }
}

/// The pixels in these columns of a line.
fn gather(line: &[u8], columns: &[usize], into: &mut Vec<u8>) {
    into.clear();
    into.extend(columns.iter().flat_map(|column| *line[column * 3..].first_chunk::<3>().unwrap_or(&[0; 3])));
}

fn nearest(picture: &Picture, input: &InputSpec, put: &mut impl FnMut(&mut [f32])) {
    let columns = taps(picture.width, input.width, input.corners());
    let mut line = vec![0.0; input.width as usize * 3];
    for row in taps(picture.height, input.height, input.corners()) {
        let y = if row.weight < 0.5 { row.first } else { row.second };
        for (column, pixel) in columns.iter().zip(line.as_chunks_mut::<3>().0) {
            let x = if column.weight < 0.5 { column.first } else { column.second };
            let at = (y * picture.width as usize + x) * 3;
            *pixel = std::array::from_fn(|c| f32::from(picture.rgb[at + c]));
        }
        put(&mut line);
    }
}

/// A triangle as wide as the shrinking asks, half-pixel centres: what PIL and PyTorch call antialiased bilinear.
fn antialiased(picture: &Picture, input: &InputSpec, put: &mut impl FnMut(&mut [f32])) {
    let view = image::ImageBuffer::<image::Rgb<u8>, &[u8]>::from_raw(
        picture.width,
        picture.height,
        &picture.rgb[..],
    )
    .expect("a picture has width × height × 3 bytes");
    let small: RgbImage = imageops::resize(&view, input.width, input.height, imageops::FilterType::Triangle);
    for row in small.as_raw().chunks_exact(input.width as usize * 3) {
        put(&mut row.iter().map(|value| f32::from(*value)).collect::<Vec<_>>());
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

    #[test]
    fn wide_and_narrow_pictures_follow_the_same_formula() {
        for (width, height) in [(9, 7), (40, 3), (101, 50)] {
            let rgb = (0..width * height * 3).map(|at| (at * 7919 % 251) as u8).collect();
            let picture = Picture { width, height, rgb };
            for corners in [CornerRule::Align, CornerRule::HalfPixel] {
                let spec = input(8, 6, corners, PixelFormat::F32);
                let out = resize(&picture, &spec);
                let (rows, columns) = (taps(height, 6, corners), taps(width, 8, corners));
                for (at, four) in out.as_chunks::<4>().0.iter().enumerate() {
                    let (row, column, c) = (rows[at / 24], columns[at / 3 % 8], at % 3);
                    let pixel = |y: usize, x: usize| f32::from(picture.rgb[(y * width as usize + x) * 3 + c]);
                    let mix = |y| {
                        pixel(y, column.first) * (1.0 - column.weight)
                            + pixel(y, column.second) * column.weight
                    };
                    let expected = mix(row.first) * (1.0 - row.weight) + mix(row.second) * row.weight;
                    assert!(
                        (f32::from_le_bytes(*four) - expected).abs() < 1e-3,
                        "{width}×{height} {corners:?} {at}"
                    );
                }
            }
        }
    }
}
