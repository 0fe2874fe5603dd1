//! Lets the binaries that hold libtorch find its libraries when they run.
//!
//! torch-sys tells where libtorch lies (`DEP_TCH_LIBTORCH_LIB`). From that this script makes
//!
//! 1. a link to that folder inside `OUT_DIR`, named as a link-search path: cargo puts search paths that
//!    lie under `target/` into `LD_LIBRARY_PATH` for everything started by `cargo run` and `cargo test`,
//!    so the tests of every crate above this one start without further settings;
//! 2. an rpath for this crate's own tests and benches;
//! 3. `DEP_SIGHTLINE_TORCH_LIBTORCH_LIB` for the build script of a crate with a binary, which emits the
//!    same rpath so that the binary also starts outside cargo.

use std::path::PathBuf;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    let (Some(lib), Some(out)) = (env::var_os("DEP_TCH_LIBTORCH_LIB"), env::var_os("OUT_DIR")) else {
        return Ok(());
    };
    let lib = PathBuf::from(lib);
    println!("cargo::metadata=libtorch_lib={}", lib.display());
    println!("cargo::rustc-link-arg=-Wl,-rpath,{}", lib.display());

    #[cfg(unix)]
    {
        let link = PathBuf::from(out).join("libtorch");
        match fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => std::os::unix::fs::symlink(&lib, &link)?,
        }
        println!("cargo::rustc-link-search=native={}", link.display());
    }
    Ok(())
}
