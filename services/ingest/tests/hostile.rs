//! Images made to be large only once they are unpacked, or to look whole. In a process of its own, because its peak of memory is looked at.

#![allow(clippy::unwrap_used)] // helpers of tests: a panic is a failed test

use std::io::Cursor;

use image::{ImageEncoder, codecs::png::PngEncoder};
use sightline_ingest::{
    IngestError,
    picture::{Limits, decode},
};

/// As the settings have it when nobody changes them.
const LIMITS: Limits = Limits { max_pixels: 40_000_000, max_side: 16_384 };

/// One at a time: they share the process's peak.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// The most memory that was resident since `work` began, beyond what was before.
fn peak(work: impl FnOnce()) -> u64 {
    let resident = |name: &str| -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    };
    // Linux, proc(5): 5 resets the peak to what is resident now.
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    let before = resident("VmRSS:");
    work();
    resident("VmHWM:").saturating_sub(before)
}

#[test]
fn a_colour_profile_is_not_unpacked_beyond_the_work_space() {
    let _alone = ALONE.lock();
    let mut png = Cursor::new(Vec::new());
    let mut encoder = PngEncoder::new(&mut png);
    encoder.set_icc_profile(vec![0; 600 << 20]).unwrap();
    encoder.write_image(&[7; 3], 1, 1, image::ExtendedColorType::Rgb8).unwrap();
    let png = png.into_inner();
    assert!(png.len() < 5 << 20, "{} bytes", png.len());
    let grown = peak(|| drop(decode(&png, LIMITS)));
    assert!(grown < 150 << 20, "{} MiB for an image of one pixel", grown >> 20);
}

#[test]
fn a_picture_with_a_usual_profile_is_decoded() {
    let _alone = ALONE.lock();
    let mut png = Cursor::new(Vec::new());
    let mut encoder = PngEncoder::new(&mut png);
    encoder
        .set_icc_profile((0..2 << 20).map(|n: u32| n.wrapping_mul(2_654_435_761) as u8).collect())
        .unwrap();
    encoder.write_image(&[7; 300], 10, 10, image::ExtendedColorType::Rgb8).unwrap();
    assert_eq!(decode(&png.into_inner(), LIMITS).unwrap().rgb, [7; 300]);
}

fn chunk(name: &[u8; 4], body: &[u8]) -> Vec<u8> {
    let size = u32::try_from(body.len()).unwrap().to_le_bytes();
    [&name[..], &size, body, &[0][..body.len() % 2]].concat()
}

/// A WebP whose canvas is one pixel.
fn webp(flags: u8, chunks: &[Vec<u8>]) -> Vec<u8> {
    let canvas = chunk(b"VP8X", &[flags, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let body = [b"WEBP".to_vec(), canvas, chunks.concat()].concat();
    chunk(b"RIFF", &body)
}

#[test]
fn a_frame_larger_than_its_canvas_is_refused_before_it_is_decoded() {
    let _alone = ALONE.lock();
    const ANIMATED: u8 = 2;
    // A key frame of 16,383 × 16,383 pixels, and data that never ends early: zeros are valid.
    let mut frame = vec![0x10, 0, 0, 0x9d, 0x01, 0x2a, 0xff, 0x3f, 0xff, 0x3f];
    frame.resize(100_000, 0);
    let lossy = chunk(b"VP8 ", &frame);
    let shown = |inside: &[u8]| chunk(b"ANMF", &[&[0; 16][..], inside].concat());
    let alpha = [chunk(b"ALPH", &[0, 0]), lossy.clone()].concat();
    for (kind, image) in [
        ("still", webp(0, std::slice::from_ref(&lossy))),
        ("animated", webp(ANIMATED, &[chunk(b"ANIM", &[0; 6]), shown(&lossy)])),
        ("animated with alpha", webp(ANIMATED, &[chunk(b"ANIM", &[0; 6]), shown(&alpha)])),
    ] {
        let grown = peak(|| {
            let refused = decode(&image, LIMITS).unwrap_err();
            let named = matches!(refused, IngestError::ImageDimensions { width: 16_383, height: 16_383, .. });
            assert!(named, "{kind}: {refused}");
        });
        assert!(grown < 50 << 20, "{kind}: {} MiB", grown >> 20);
    }
}

#[test]
fn a_cut_off_photograph_is_not_taken_for_whole_because_of_its_thumbnail() {
    let jpeg = |side: u32| {
        let picture = image::RgbImage::from_fn(side, side, |x, y| image::Rgb([x as u8, y as u8, 7]));
        let mut bytes = Cursor::new(Vec::new());
        picture.write_to(&mut bytes, image::ImageFormat::Jpeg).unwrap();
        bytes.into_inner()
    };
    let (picture, thumbnail) = (jpeg(200), jpeg(16));
    let length = u16::try_from(thumbnail.len() + 2).unwrap().to_be_bytes();
    let photograph = [&picture[..2], &[0xff, 0xe1], &length, &thumbnail, &picture[2..]].concat();
    assert_eq!(decode(&photograph, LIMITS).unwrap().width, 200);
    let appended = [&photograph[..], b"made by a camera"].concat();
    assert_eq!(decode(&appended, LIMITS).unwrap().width, 200);
    for end in [photograph.len() / 2, photograph.len() - 2] {
        let refused = decode(&photograph[..end], LIMITS);
        assert!(matches!(refused, Err(IngestError::ImageTruncated("JPEG"))), "{refused:?}");
    }
}
