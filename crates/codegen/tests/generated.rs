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

#[test]
fn generated_code_matches_the_protos() {
    let out = tempfile::tempdir().expect("a temporary folder");
    sightline_codegen::generate(out.path()).expect("the protos give code");
    let (generated, checked_in) = (files(out.path()), files(&sightline_codegen::checked_in()));
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(&generated), names(&checked_in), "run `cargo xtask gen`");
    for (name, content) in &generated {
        assert!(checked_in[name] == *content, "{name} is stale: run `cargo xtask gen`");
    }
}
