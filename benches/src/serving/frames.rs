//! Frames: photographs turned, cut, relit and grained differently each time, as JPEG of 512 pixels.

use std::{
    io::Cursor,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use image::RgbImage;
use jpeg_encoder::{ColorType, Encoder, SamplingFactor};

/// Width and height of a frame.
pub(crate) const SIDE: usize = 512;
/// The quality that phones and browsers save screenshots and photographs with.
const QUALITY: u8 = 85;
/// Photographs of scikit-image with colours and enough pixels.
const PHOTOS: [&str; 8] =
    ["astronaut", "chelsea", "coffee", "rocket", "motorcycle_left", "ihc", "hubble_deep_field", "retina"];

/// Makes `count` frames, no two alike, on all cores. The same every time.
pub(crate) fn make(samples: &Path, count: usize) -> Result<Vec<Bytes>> {
    let photos = PHOTOS.iter().map(|name| open(samples, name)).collect::<Result<Vec<_>>>()?;
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut made = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= count {
                return Ok(made);
            }
            let pixels = cut(&photos[seed % photos.len()], seed as u64);
            let mut jpeg = Vec::new();
            let mut encoder = Encoder::new(&mut jpeg, QUALITY);
            encoder.set_sampling_factor(SamplingFactor::F_2_2);
            encoder.encode(&pixels, SIDE as u16, SIDE as u16, ColorType::Rgb)?;
            made.push((seed, Bytes::from(jpeg)));
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let made: Result<Vec<_>> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().map(|worker| worker.join().expect("a frame maker does not panic")).collect()
    });
    let mut frames: Vec<(usize, Bytes)> = made?.into_iter().flatten().collect();
    frames.sort_unstable_by_key(|(seed, _)| *seed);
    Ok(frames.into_iter().map(|(_, frame)| frame).collect())
}

/// A few frames without loss, for which every decoder gives the same pixels.
pub(crate) fn lossless(samples: &Path) -> Result<Vec<Bytes>> {
    let frame = |(at, name): (usize, &&str)| {
        let mut png = Cursor::new(Vec::new());
        let pixels = cut(&open(samples, name)?, at as u64);
        image::write_buffer_with_format(
            &mut png,
            &pixels,
            SIDE as u32,
            SIDE as u32,
            image::ExtendedColorType::Rgb8,
            image::ImageFormat::Png,
        )?;
        Ok(png.into_inner().into())
    };
    PHOTOS.iter().enumerate().map(frame).collect()
}

fn open(folder: &Path, name: &str) -> Result<RgbImage> {
    let files = ["png", "jpg"].map(|extension| folder.join(name).with_extension(extension));
    let Some(file) = files.iter().find(|file| file.is_file()) else {
        bail!("{} has no photograph named {name}", folder.display());
    };
    Ok(image::open(file).with_context(|| file.display().to_string())?.into_rgb8())
}

/// A cut of the photograph: turned by up to 8 degrees, perhaps mirrored, lighter or darker, with grain.
fn cut(photo: &RgbImage, seed: u64) -> Vec<u8> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let (width, height) = (photo.width() as f32, photo.height() as f32);
    let side = width.min(height) * random.between(0.5, 0.8);
    let centre =
        (random.between(side * 0.6, width - side * 0.6), random.between(side * 0.6, height - side * 0.6));
    let angle = random.between(-0.14, 0.14);
    let step = side / SIDE as f32 * if random.between(0.0, 1.0) < 0.5 { -1.0 } else { 1.0 };
    let (gain, offset, grain) =
        (random.between(0.8, 1.15), random.between(-15.0, 15.0), random.between(1.0, 8.0));
    let (sine, cosine) = angle.sin_cos();
    let mut pixels = Vec::with_capacity(SIDE * SIDE * 3);
    for y in 0..SIDE {
        let down = (y as f32 - SIDE as f32 / 2.0) * side / SIDE as f32;
        for x in 0..SIDE {
            let across = (x as f32 - SIDE as f32 / 2.0) * step;
            let from = (centre.0 + across * cosine - down * sine, centre.1 + across * sine + down * cosine);
            let noise = random.between(-grain, grain);
            pixels.extend(
                sample(photo, from).map(|value| (value * gain + offset + noise).clamp(0.0, 255.0) as u8),
            );
        }
    }
    pixels
}

/// Between four pixels, those beyond the edge repeated.
fn sample(photo: &RgbImage, (x, y): (f32, f32)) -> [f32; 3] {
    let (x, y) = (x.clamp(0.0, photo.width() as f32 - 1.001), y.clamp(0.0, photo.height() as f32 - 1.001));
    let (left, top) = (x as usize, y as usize);
    let (right, bottom) = (x - left as f32, y - top as f32);
    let at = (top * photo.width() as usize + left) * 3;
    let below = at + photo.width() as usize * 3;
    let raw = photo.as_raw();
    std::array::from_fn(|c| {
        let line = |at: usize| f32::from(raw[at + c]) * (1.0 - right) + f32::from(raw[at + 3 + c]) * right;
        line(at) * (1.0 - bottom) + line(below) * bottom
    })
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn between(&mut self, low: f32, high: f32) -> f32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 40;
        low + (high - low) * bits as f32 / (1u64 << 24) as f32
    }
}
