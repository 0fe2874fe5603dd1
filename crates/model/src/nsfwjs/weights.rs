//! The weights of a tfjs model: named tensors in a row of bytes, each value a byte that stands for `q * scale + min`.

use std::collections::HashMap;

use serde::Deserialize;

use super::ConvertError;

/// One group of `weightsManifest`.
#[derive(Debug, Deserialize)]
pub(super) struct Group {
    /// The shards that hold the group's bytes, in order.
    pub paths: Vec<String>,
    /// The tensors, in the order of their bytes.
    pub weights: Vec<Entry>,
}

/// One tensor's description.
#[derive(Debug, Deserialize)]
pub(super) struct Entry {
    name: String,
    shape: Vec<usize>,
    dtype: String,
    quantization: Option<Quantization>,
}

#[derive(Debug, Deserialize)]
struct Quantization {
    #[serde(default)]
    min: f64,
    #[serde(default = "one")]
    scale: f64,
    dtype: String,
}

fn one() -> f64 {
    1.0
}

/// A tensor as read: row-major, in TensorFlow's axis order.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tensor {
    pub shape: Vec<usize>,
    pub values: Vec<f32>,
}

/// Tensors by name.
#[derive(Debug, Default)]
pub(super) struct Weights {
    tensors: HashMap<String, Tensor>,
}

impl Weights {
    /// Decodes one group's bytes.
    pub fn add(&mut self, group: &Group, bytes: &[u8]) -> Result<(), ConvertError> {
        let mut rest = bytes;
        for entry in &group.weights {
            let (tensor, after) = entry.decode(rest)?;
            rest = after;
            self.tensors.insert(entry.name.clone(), tensor);
        }
        if !rest.is_empty() {
            let problem = format!("{} bytes are left over after the last tensor", rest.len());
            return Err(ConvertError::Weights { tensor: group.paths.join(", "), problem });
        }
        Ok(())
    }

    /// A tensor that must have `rank` axes.
    pub fn get(&self, name: &str, rank: usize) -> Result<&Tensor, ConvertError> {
        let fail = |problem: String| ConvertError::Weights { tensor: name.to_owned(), problem };
        let tensor = self.tensors.get(name).ok_or_else(|| fail("is missing".to_owned()))?;
        if tensor.shape.len() != rank {
            return Err(fail(format!("has shape {:?} where {rank} axes are expected", tensor.shape)));
        }
        Ok(tensor)
    }

    /// A vector of `length` values.
    pub fn vector(&self, name: &str, length: usize) -> Result<&[f32], ConvertError> {
        let tensor = self.get(name, 1)?;
        if tensor.values.len() != length {
            let problem = format!("has {} values where {length} are expected", tensor.values.len());
            return Err(ConvertError::Weights { tensor: name.to_owned(), problem });
        }
        Ok(&tensor.values)
    }

    /// Adds a tensor, for tests.
    #[cfg(test)]
    pub fn insert(&mut self, name: &str, shape: &[usize], values: Vec<f32>) {
        self.tensors.insert(name.to_owned(), Tensor { shape: shape.to_vec(), values });
    }
}

impl Entry {
    fn decode<'a>(&self, bytes: &'a [u8]) -> Result<(Tensor, &'a [u8]), ConvertError> {
        let fail = |problem: String| ConvertError::Weights { tensor: self.name.clone(), problem };
        if self.dtype != "float32" {
            return Err(fail(format!("has type {}; float32 is understood", self.dtype)));
        }
        let count = self.shape.iter().try_fold(1_usize, |all, axis| all.checked_mul(*axis));
        let count = count.ok_or_else(|| fail("is too large".to_owned()))?;
        let width = match &self.quantization {
            None => 4,
            Some(q) if q.dtype == "uint8" => 1,
            Some(q) if q.dtype == "uint16" => 2,
            Some(q) => {
                return Err(fail(format!("is quantised to {}; uint8 and uint16 are understood", q.dtype)));
            }
        };
        let length = count.checked_mul(width).ok_or_else(|| fail("is too large".to_owned()))?;
        if bytes.len() < length {
            return Err(fail(format!("needs {length} bytes, {} are left", bytes.len())));
        }
        let (mine, rest) = bytes.split_at(length);
        let values = match &self.quantization {
            None => mine.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            // In double precision and then rounded, as JavaScript does it.
            Some(q) if width == 1 => mine.iter().map(|b| q.value(f64::from(*b))).collect(),
            Some(q) => {
                mine.chunks_exact(2).map(|b| q.value(f64::from(u16::from_le_bytes([b[0], b[1]])))).collect()
            }
        };
        Ok((Tensor { shape: self.shape.clone(), values }, rest))
    }
}

impl Quantization {
    fn value(&self, level: f64) -> f32 {
        (level * self.scale + self.min) as f32
    }
}
