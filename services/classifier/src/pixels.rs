//! From pixels as they travel to the numbers a model takes.

use sightline_model::manifest::{Input, Transport};
use sightline_proto::classifier::PixelFormat;

/// How one byte or two become a value: `value × factor[c] + offset[c]`.
#[derive(Debug, Clone)]
pub(crate) struct Scaling {
    format: PixelFormat,
    channels: usize,
    factor: Vec<f32>,
    offset: Vec<f32>,
    values: usize,
}

impl Scaling {
    /// The manifest's `(pixel × scale − mean[c]) ÷ std[c]`, where a `u16` pixel is the `u8` one times 257.
    pub(crate) fn new(input: &Input) -> Self {
        let (format, unit) = match input.transport {
            Transport::U8 => (PixelFormat::U8, 1.0),
            Transport::U16 => (PixelFormat::U16, 257.0),
            Transport::F32 => (PixelFormat::F32, 1.0),
        };
        let channels = input.channels as usize;
        let factor = |c: usize| (input.scale / unit / input.std[c]) as f32;
        let offset = |c: usize| (-input.mean[c] / input.std[c]) as f32;
        Self {
            format,
            channels,
            factor: (0..channels).map(factor).collect(),
            offset: (0..channels).map(offset).collect(),
            values: input.width as usize * input.height as usize * channels,
        }
    }

    /// The encoding this model's pixels travel in.
    pub(crate) fn format(&self) -> PixelFormat {
        self.format
    }

    /// Numbers in one image.
    pub(crate) fn values(&self) -> usize {
        self.values
    }

    /// Bytes of one image.
    pub(crate) fn bytes(&self) -> usize {
        let width = match self.format {
            PixelFormat::F32 => 4,
            PixelFormat::U16 => 2,
            _ => 1,
        };
        self.values * width
    }

    /// Writes one image's numbers; `pixels` has [`Scaling::bytes`] bytes and `out` takes [`Scaling::values`] numbers.
    pub(crate) fn write(&self, pixels: &[u8], out: &mut [f32]) {
        let uniform =
            self.factor.windows(2).all(|w| w[0] == w[1]) && self.offset.windows(2).all(|w| w[0] == w[1]);
        let (factor, offset) = (self.factor[0], self.offset[0]);
        match (self.format, uniform) {
            (PixelFormat::U16, true) => {
                for (value, two) in out.iter_mut().zip(pixels.as_chunks::<2>().0) {
                    *value = f32::from(u16::from_le_bytes(*two)) * factor + offset;
                }
            }
            (PixelFormat::U16, false) => {
                for (at, (value, two)) in out.iter_mut().zip(pixels.as_chunks::<2>().0).enumerate() {
                    *value = self.scale(at, f32::from(u16::from_le_bytes(*two)));
                }
            }
            (PixelFormat::F32, _) => {
                for (at, (value, four)) in out.iter_mut().zip(pixels.as_chunks::<4>().0).enumerate() {
                    *value = self.scale(at, f32::from_le_bytes(*four));
                }
            }
            (_, true) => {
                for (value, byte) in out.iter_mut().zip(pixels) {
                    *value = f32::from(*byte) * factor + offset;
                }
            }
            (_, false) => {
                for (at, (value, byte)) in out.iter_mut().zip(pixels).enumerate() {
                    *value = self.scale(at, f32::from(*byte));
                }
            }
        }
    }

    /// Whether every pixel of one image is a number from 0 to 255. Bytes and pairs of them cannot be anything else.
    pub(crate) fn in_range(&self, pixels: &[u8]) -> bool {
        let value = |four: &[u8; 4]| f32::from_le_bytes(*four);
        self.format != PixelFormat::F32
            || pixels.as_chunks::<4>().0.iter().all(|four| (0.0..=255.0).contains(&value(four)))
    }

    fn scale(&self, at: usize, value: f32) -> f32 {
        value * self.factor[at % self.channels] + self.offset[at % self.channels]
    }
}

/// Turns each row of logits into probabilities that sum to 1.
pub(crate) fn softmax(rows: &mut [f32], classes: usize) {
    for row in rows.chunks_exact_mut(classes) {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        row.iter_mut().for_each(|value| *value = (*value - largest).exp());
        let sum: f32 = row.iter().sum();
        row.iter_mut().for_each(|value| *value /= sum);
    }
}
