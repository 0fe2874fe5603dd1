//! What is generated and checked in is as it would be generated now.

use std::{env, fs, path::Path};

use crate::support::{PROFILES, chart, render};

/// Compares a file with what it should hold, or writes it under `SIGHTLINE_TEST_UPDATE`.
pub fn assert_fresh(file: &Path, wanted: &str) {
    if env::var_os("SIGHTLINE_TEST_UPDATE").is_some() {
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, wanted).unwrap();
        return;
    }
    let have = fs::read_to_string(file).unwrap_or_default();
    let first = have.lines().zip(wanted.lines()).position(|(have, wanted)| have != wanted);
    let first = first.unwrap_or(have.lines().count().min(wanted.lines().count()));
    let line = |text: &str| text.lines().nth(first).unwrap_or("(the end)").to_owned();
    assert!(
        have == wanted,
        "{} is not fresh: write it by SIGHTLINE_TEST_UPDATE=1 cargo test -p sightline-tests --test helm\n\
         line {}: {:?}, wanted {:?}",
        file.display(),
        first + 1,
        line(&have),
        line(wanted)
    );
}

#[test]
fn the_examples_show_what_is_rendered() {
    for profile in &PROFILES {
        let Some(text) = render(&profile.arguments()) else { return };
        // Lines of blanks are what templates leave where a part is off.
        let lines = text.lines().map(str::trim_end).filter(|line| !line.is_empty());
        let text: String = lines.flat_map(|line| [line, "\n"]).collect();
        assert_fresh(&chart().join(format!("examples/{}.yaml", profile.name)), &text);
    }
}
