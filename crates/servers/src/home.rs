//! Where a server keeps its files and its log.

use std::{
    fs,
    path::{Path, PathBuf},
};

use tempfile::TempDir;

use crate::{Result, io};

/// A folder, and the file for what the server prints.
#[derive(Debug)]
pub struct Home {
    folder: PathBuf,
    log: PathBuf,
    /// Goes with the server.
    _temporary: Option<TempDir>,
}

impl Home {
    /// A folder that is removed with the server; the log lies in it.
    ///
    /// # Errors
    /// When the system gives none.
    pub fn temporary(name: &str) -> Result<Self> {
        let folder = tempfile::tempdir().map_err(io("making a folder"))?;
        let path = folder.path().to_owned();
        Ok(Self { log: path.join(format!("{name}.log")), folder: path, _temporary: Some(folder) })
    }

    /// `BASE/data/NAME`, with the log at `BASE/logs/NAME.log`: both stay.
    ///
    /// # Errors
    /// When they cannot be made.
    pub fn under(base: &Path, name: &str) -> Result<Self> {
        let (folder, logs) = (base.join("data").join(name), base.join("logs"));
        for path in [&folder, &logs] {
            fs::create_dir_all(path).map_err(io(format!("making {}", path.display())))?;
        }
        Ok(Self { folder, log: logs.join(format!("{name}.log")), _temporary: None })
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What the server printed.
    pub fn log(&self) -> &Path {
        &self.log
    }
}
