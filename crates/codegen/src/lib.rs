//! Writes the Rust code of `crates/wire` and `crates/proto` from the `.proto` files, without protoc.
//!
//! It is a crate of its own so that it still builds when the generated code does not.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use prost::Message;

/// The workspace's folder of `.proto` files.
pub fn proto_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../proto")
}

/// The packages that the mesh layer itself speaks, and the module of `crates/wire` that each is.
const WIRE: [(&str, &str); 2] = [("sightline.status.v1", "status"), ("sightline.stream.v1", "stream")];

/// The folder in which the services' generated code is checked in.
pub fn checked_in() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/src/gen")
}

/// The folder in which the generated code of the mesh layer's own messages is checked in.
pub fn wire() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../wire/src/gen")
}

/// Compiles the messages of the mesh layer and writes one Rust file per package into `out`.
pub fn generate_wire(out: &Path) -> Result<()> {
    let root = proto_root();
    let mut sources = Vec::new();
    for (package, _) in WIRE {
        collect(&root.join(package.replace('.', "/")), &mut sources)?;
    }
    sources.sort();
    let descriptors = protox::compile(&sources, [&root]).context("the mesh layer's protos do not compile")?;
    fs::create_dir_all(out)?;
    tonic_prost_build::configure()
        .out_dir(out)
        .compile_fds(descriptors)
        .context("no code could be generated for the mesh layer")
}

/// Compiles every proto under [`proto_root`] and writes `descriptors.bin` and one Rust file per package, but for those of
/// the mesh layer, into `out`.
pub fn generate(out: &Path) -> Result<()> {
    let root = proto_root();
    let mut sources = Vec::new();
    collect(&root, &mut sources)?;
    sources.sort();

    let descriptors = protox::compile(&sources, [&root]).context("the protos do not compile")?;
    fs::create_dir_all(out)?;
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    let mut configured = tonic_prost_build::configure();
    for (package, module) in WIRE {
        configured = configured.extern_path(format!(".{package}"), format!("::sightline_wire::{module}"));
    }
    configured
        .bytes(".sightline.ingest.v1.Frame.image")
        .bytes(".sightline.classifier.v1.Tensor.pixels")
        // Their Debug is written by hand in `crates/proto`: pixels stay out of logs (P6).
        .skip_debug([".sightline.ingest.v1.Frame", ".sightline.classifier.v1.Tensor"])
        .out_dir(out)
        .compile_fds(descriptors)
        .context("no code could be generated")
}

/// The folder with the proto of the service that the mesh layer's example serves; its code is in `gen` there.
pub fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../mesh/examples/greeter")
}

/// Writes the code of [`example`] into `out`.
pub fn generate_example(out: &Path) -> Result<()> {
    let descriptors =
        protox::compile(["greeter.proto"], [example()]).context("the example does not compile")?;
    fs::create_dir_all(out)?;
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    tonic_prost_build::configure()
        .bytes(".greeter.v1.HelloRequest.gift")
        .out_dir(out)
        .compile_fds(descriptors)
        .context("no code could be generated for the example")
}

fn collect(folder: &Path, found: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            found.push(path);
        }
    }
    Ok(())
}
