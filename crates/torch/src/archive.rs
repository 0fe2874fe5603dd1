//! The check of a module file that libtorch leaves out.

use std::fs::File;
use std::io;

use zip::ZipArchive;

/// Reads every member of a module file (a zip) and compares its checksum.
///
/// libtorch's reader is built with its own check turned off: it takes damaged weights as they are, and
/// gives damaged structure to a parser that was not made for it.
///
/// # Errors
///
/// What is wrong, in one line.
pub(crate) fn verify(file: File) -> Result<(), String> {
    let mut archive = ZipArchive::new(file).map_err(|error| one_line(&error.to_string()))?;
    for index in 0..archive.len() {
        let mut member = archive.by_index(index).map_err(|error| one_line(&error.to_string()))?;
        let name = member.name().map_or_else(|_| format!("member {index}"), |name| one_line(&name));
        io::copy(&mut member, &mut io::sink()).map_err(|error| format!("{name} is damaged: {error}"))?;
    }
    Ok(())
}

/// A damaged file puts any bytes into a name.
fn one_line(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}
