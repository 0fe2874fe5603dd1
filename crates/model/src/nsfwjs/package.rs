//! The npm tarball: which one, and the files of it that matter.

use std::collections::HashMap;
use std::io::Read;
use std::path::Path;

use flate2::read::GzDecoder;
use sha2::{Digest as _, Sha256};

use super::ConvertError;

/// The file `npm pack nsfwjs@4.4.0` leaves behind.
pub const PACKAGE_FILE: &str = "nsfwjs-4.4.0.tgz";

/// Its SHA-256, in hexadecimal.
pub const PACKAGE_SHA256: &str = "585cd178f3b994337c4d10a87b080d342fc52f8b9bf0085c4d1f345a3a1c5382";

/// Its SHA-512 as npm's lock files write it.
pub const NPM_INTEGRITY: &str =
    "sha512-krC1fgeTLXtZwgdpKJ0jm7hqv0gTSRQQRL+FhOaxaJ9Wj92t42BO3csO2odwgTAgZgf2RvkwPtp0R8Aa7dc+MA==";

/// Only files below this are read.
const MODELS: &str = "package/dist/models/";

/// The largest file of the package has 5.6 MB; more is not an nsfwjs model.
const MAX_FILE: u64 = 16 << 20;

/// All models together have 47 MB.
const MAX_TOTAL: u64 = 128 << 20;

/// The model files of an npm tarball, in memory.
#[derive(Debug)]
pub struct Package {
    files: HashMap<String, String>,
}

impl Package {
    /// Reads the tarball at `path` and checks that it is the pinned one.
    ///
    /// # Errors
    /// [`ConvertError::Digest`] for another archive, [`ConvertError::Read`] for none.
    pub fn open(path: &Path) -> Result<Self, ConvertError> {
        let bytes = std::fs::read(path)?;
        let found = crate::manifest::hex(&Sha256::digest(&bytes));
        if found != PACKAGE_SHA256 {
            return Err(ConvertError::Digest { expected: PACKAGE_SHA256.to_owned(), found });
        }
        Self::parse(&bytes)
    }

    /// Reads a gzipped tar without checking its digest.
    ///
    /// # Errors
    /// [`ConvertError::Read`] for a broken archive, [`ConvertError::TooLarge`] for files no model has.
    pub fn parse(bytes: &[u8]) -> Result<Self, ConvertError> {
        let mut files = HashMap::new();
        let mut total = 0;
        let mut archive = tar::Archive::new(GzDecoder::new(bytes));
        for entry in archive.entries()? {
            let mut entry = entry?;
            let path = entry.path()?.to_string_lossy().into_owned();
            let Some(name) = path.strip_prefix(MODELS) else { continue };
            total += entry.size();
            if entry.size() > MAX_FILE || total > MAX_TOTAL {
                return Err(ConvertError::TooLarge(path));
            }
            let mut text = String::new();
            entry.read_to_string(&mut text)?;
            files.insert(name.to_owned(), text);
        }
        Ok(Self { files })
    }

    pub(super) fn text(&self, name: &str) -> Result<&str, ConvertError> {
        self.files
            .get(name)
            .map(String::as_str)
            .ok_or_else(|| ConvertError::Missing(format!("{MODELS}{name}")))
    }
}
