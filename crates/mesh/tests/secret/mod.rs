//! Folders that change as Kubernetes changes them.

use std::{
    fs,
    path::{Path, PathBuf},
};

use sightline_mesh::identity::TlsFiles;
use tempfile::TempDir;

use crate::certs::Authority;

/// A folder as Kubernetes mounts a secret: the files are links into `..data`, a link to the folder that holds them, which
/// is exchanged at once.
pub struct Secret {
    folder: TempDir,
    generation: usize,
}

impl Secret {
    /// Of a certificate, its key and the authorities.
    pub fn new((cert, key): (String, String), authorities: &[&Authority]) -> Self {
        let mut secret = Self { folder: tempfile::tempdir().unwrap(), generation: 0 };
        secret.replace((cert, key), authorities);
        for name in ["tls.crt", "tls.key", "ca.crt"] {
            std::os::unix::fs::symlink(Path::new("..data").join(name), secret.path(name)).unwrap();
        }
        secret
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn files(&self) -> TlsFiles {
        let path = |name| self.path(name);
        TlsFiles {
            setting: "tls.cert_file",
            cert: path("tls.crt"),
            key: path("tls.key"),
            ca: Some(path("ca.crt")),
        }
    }

    /// Everything anew, in one step.
    pub fn replace(&mut self, (cert, key): (String, String), authorities: &[&Authority]) {
        self.generation += 1;
        let name = format!("..generation-{}", self.generation);
        let folder = self.path(&name);
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("tls.crt"), cert).unwrap();
        fs::write(folder.join("tls.key"), key).unwrap();
        let bundle: String = authorities.iter().map(|authority| authority.pem()).collect();
        fs::write(folder.join("ca.crt"), bundle).unwrap();
        let fresh = self.path("..data_tmp");
        std::os::unix::fs::symlink(name, &fresh).unwrap();
        fs::rename(fresh, self.path("..data")).unwrap();
    }
}
