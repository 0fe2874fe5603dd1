//! The checked-in code is what the protos give.

use std::{collections::BTreeMap, fs, path::Path};

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    fs::read_dir(folder)
        .expect("the folder can be read")
        .map(|entry| entry.expect("a folder entry"))
        .map(|entry| {
            (entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path()).expect("a file"))
        })
        .collect()
}

fn assert_fresh(generated: &Path, checked_in: &Path) {
    let (generated, mut checked_in) = (files(generated), files(checked_in));
    checked_in.retain(|name, _| !name.ends_with(".proto"));
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&generated), names(&checked_in), "run `cargo xtask gen`");
    for (name, content) in &generated {
        assert!(checked_in[name] == *content, "{name} is stale: run `cargo xtask gen`");
    }
}

#[test]
fn generated_code_matches_the_protos() {
    let out = tempfile::tempdir().expect("a temporary folder");
    sightline_codegen::generate(out.path()).expect("the protos give code");
    assert_fresh(out.path(), &sightline_codegen::checked_in());
}

#[test]
fn the_mesh_layers_messages_match_their_protos() {
    let out = tempfile::tempdir().expect("a temporary folder");
    sightline_codegen::generate_wire(out.path()).expect("the protos give code");
    assert_fresh(out.path(), &sightline_codegen::wire());
}

#[test]
fn the_example_of_the_mesh_layer_matches_its_proto() {
    let out = tempfile::tempdir().expect("a temporary folder");
    sightline_codegen::generate_example(out.path()).expect("the proto gives code");
    assert_fresh(out.path(), &sightline_codegen::example().join("gen"));
}
