//! What several benchmarks have in common.
//!
//! - [`cpu`]: CPU time of processes, from /proc.
//! - [`product`]: `sightline dev` as a child process, and frames sent to it.

pub mod cpu;
pub mod product;

/// The middle one, or the mean of the two in the middle; `None` of nothing.
pub fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        length if length % 2 == 1 => Some(values[middle]),
        _ => Some((values[middle - 1] + values[middle]) / 2.0),
    }
}
