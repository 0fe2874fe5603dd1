//! Errors, and how libtorch's messages are cut down to size.

use std::path::PathBuf;

use tch::TchError;

use crate::{Device, InputShape};

/// Why a model was not loaded or gave no answer. Each displays as one line; what else libtorch wrote (its C++
/// and TorchScript back traces) is in `detail`, for a debug log.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TorchError {
    /// The file is not there, or cannot be read.
    #[error("cannot read the model file {}: {source}", path.display())]
    MissingFile {
        /// As it was given.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is there but no TorchScript module: cut short, damaged, or something else.
    #[error("{} is not a TorchScript module that can be loaded: {message}", path.display())]
    CorruptModule {
        /// As it was given.
        path: PathBuf,
        /// libtorch's reason, one line.
        message: String,
        /// The rest of what libtorch wrote.
        detail: String,
    },
    /// The model's device is not there.
    #[error("device {device} is not available: {reason}")]
    DeviceUnavailable {
        /// As it was asked for.
        device: Device,
        /// What is missing.
        reason: String,
    },
    /// The input has a side of 0, is too large to count, or has another length than its shape says.
    #[error("an input of {got} values was given for {shape}")]
    Input {
        /// What the caller said.
        shape: InputShape,
        /// How many values came.
        got: usize,
    },
    /// The device has not enough memory for this batch; a smaller one may fit.
    #[error("out of memory: {message}")]
    OutOfMemory {
        /// libtorch's reason, one line.
        message: String,
        /// The rest of what libtorch wrote.
        detail: String,
    },
    /// The module's `forward` raised.
    #[error("the model failed: {message}")]
    Forward {
        /// The reason, one line.
        message: String,
        /// The rest of what libtorch wrote.
        detail: String,
    },
    /// The module's `forward` returned a tuple, a list or something else that is not one tensor.
    #[error("the model returned something other than one tensor")]
    NonTensorOutput,
    /// The module returned a tensor whose elements are not real floating-point numbers.
    #[error("the model returned elements of type {got}, expected floating point")]
    OutputKind {
        /// The element type, in libtorch's words.
        got: String,
    },
    /// The module returned a tensor of another shape than one row for each image.
    #[error("the model returned a tensor of shape {got:?}, expected [{expected}, columns]")]
    OutputShape {
        /// The batch size.
        expected: usize,
        /// The shape that came.
        got: Vec<i64>,
    },
}

impl TorchError {
    /// What else libtorch wrote about it: back traces, several lines. Empty for errors found on this side.
    pub fn detail(&self) -> &str {
        match self {
            Self::CorruptModule { detail, .. }
            | Self::OutOfMemory { detail, .. }
            | Self::Forward { detail, .. } => detail,
            _ => "",
        }
    }

    /// Sorts what came out of a run of the module.
    pub(crate) fn from_forward(error: &TchError) -> Self {
        let text = text_of(error);
        // The words of tch's C++ side, when the returned value is no tensor.
        if text == "forward did not return a tensor" {
            return Self::NonTensorOutput;
        }
        let (message, detail) = split(&text);
        let lower = message.to_ascii_lowercase();
        if lower.contains("out of memory")
            || lower.contains("not enough memory")
            || lower.contains("can't allocate memory")
        {
            Self::OutOfMemory { message, detail }
        } else {
            Self::Forward { message, detail }
        }
    }

    pub(crate) fn from_load(path: PathBuf, error: TchError) -> Self {
        match error {
            TchError::Io(source) => Self::MissingFile { path, source },
            other => {
                let (message, detail) = split(&text_of(&other));
                Self::CorruptModule { path, message, detail }
            }
        }
    }
}

fn text_of(error: &TchError) -> String {
    match error {
        TchError::Torch(text) => text.clone(), // without tch's prefix
        other => other.to_string(),
    }
}

/// Longer than any message seen; a module can raise a text of any length.
const LONGEST_MESSAGE: usize = 300;

/// Takes the line that says what happened out of a libtorch exception; the second part is the whole text.
///
/// Two forms exist. Plain: the message, then `Exception raised from …` and the frames. From the TorchScript
/// interpreter: a heading, the script's trace, and last the line with the error, `RuntimeError: …`.
fn split(text: &str) -> (String, String) {
    let plain =
        text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("libtorch gave no reason");
    let line = match raised_by_script(text) {
        Some(line) if plain.contains("TorchScript interpreter") => line,
        _ => plain,
    };
    let mut message: String = line.chars().filter(|c| !c.is_control()).take(LONGEST_MESSAGE).collect();
    if line.chars().nth(LONGEST_MESSAGE).is_some() {
        message.push('…');
    }
    (message, text.to_owned())
}

/// The text behind the last `SomethingError: ` that begins a line.
fn raised_by_script(text: &str) -> Option<&str> {
    text.lines().rev().map(str::trim).find_map(|line| {
        let (kind, message) = line.split_once(": ")?;
        let is_kind = kind.ends_with("Error") || kind.ends_with("Exception");
        let is_name = kind.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'.' || byte == b'_');
        (is_kind && is_name && !message.is_empty()).then_some(message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_exception_keeps_its_first_line() {
        let text = "PytorchStreamReader failed\nException raised from valid at x.cc:1 (most recent call first):\nframe #0: c10::Error";
        let (message, detail) = split(text);
        assert_eq!(message, "PytorchStreamReader failed");
        assert_eq!(detail, text);
    }

    #[test]
    fn a_script_exception_keeps_the_line_that_raised() {
        let text = "The following operation failed in the TorchScript interpreter.\n\
                    Traceback of TorchScript (most recent call last):\n  File \"code/m.py\", line 7, in forward\n\
                    RuntimeError: mat1 and mat2 shapes cannot be multiplied (1x4 and 3x2)\n";
        assert_eq!(split(text).0, "mat1 and mat2 shapes cannot be multiplied (1x4 and 3x2)");
    }

    #[test]
    fn no_text_at_all_is_still_a_message() {
        assert_eq!(split("\n \n").0, "libtorch gave no reason");
    }

    #[test]
    fn a_text_of_any_length_makes_a_bounded_line_without_control_characters() {
        let (message, _) = split(&"é\u{7}".repeat(10_000));
        assert_eq!(message.chars().count(), LONGEST_MESSAGE + 1);
        assert!(!message.contains('\u{7}'));
    }

    #[test]
    fn a_lack_of_memory_is_told_from_other_failures() {
        let of = |text: &str| TorchError::from_forward(&TchError::Torch(text.to_owned()));
        assert!(matches!(of("CUDA out of memory. Tried to allocate 2 GiB"), TorchError::OutOfMemory { .. }));
        assert!(matches!(
            of("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"),
            TorchError::OutOfMemory { .. }
        ));
        assert!(matches!(of("shapes differ"), TorchError::Forward { .. }));
        assert!(matches!(of("forward did not return a tensor"), TorchError::NonTensorOutput));
    }
}
