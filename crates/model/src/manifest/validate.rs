//! The rules a manifest's fields keep, each with a message that names the field.

use std::collections::HashSet;
use std::path::{Component, Path};

use super::{Input, Manifest, ManifestError, SCHEMA};

/// No classifier looks at more pixels a side; a typing error does.
const MAX_SIDE: u32 = 4096;
/// Keeps replies bounded.
const MAX_CLASSES: usize = 1000;
const MAX_NAME: usize = 64;

impl Manifest {
    /// Checks every field.
    ///
    /// # Errors
    /// [`ManifestError::Field`] for the first field that breaks a rule.
    pub fn validate(&self) -> Result<(), ManifestError> {
        require(self.schema == SCHEMA, "schema", || {
            format!("is {}, this program reads {SCHEMA}", self.schema)
        })?;
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        let named = !self.name.is_empty() && self.name.len() <= MAX_NAME && self.name.chars().all(plain);
        require(named, "name", || format!("is `{}`, not 1 to {MAX_NAME} of a-z, 0-9 and -", self.name))?;
        let version = !self.version.is_empty() && self.version.len() <= MAX_NAME;
        let graphic = self.version.chars().all(|c| c.is_ascii_graphic());
        require(version && graphic, "version", || {
            format!("is empty, longer than {MAX_NAME} or not printable ASCII")
        })?;
        require(inside(&self.file), "file", || outside(&self.file))?;
        let tolerance = self.tolerance > 0.0 && self.tolerance < 1.0;
        require(tolerance, "tolerance", || format!("is {}, not between 0 and 1", self.tolerance))?;
        require(!self.license.trim().is_empty(), "license", || "is empty".to_owned())?;
        require(!self.source.trim().is_empty(), "source", || "is empty".to_owned())?;
        self.validate_classes()?;
        self.input.validate()?;
        let mut devices = HashSet::new();
        for (at, variant) in self.variants.iter().enumerate() {
            require(inside(&variant.file), &format!("variants[{at}].file"), || outside(&variant.file))?;
            let first = devices.insert(variant.device);
            require(first, &format!("variants[{at}].device"), || "has a variant already".to_owned())?;
        }
        Ok(())
    }

    fn validate_classes(&self) -> Result<(), ManifestError> {
        let count = self.classes.len();
        require((2..=MAX_CLASSES).contains(&count), "classes", || {
            format!("has {count} entries, not 2 to {MAX_CLASSES}")
        })?;
        let mut names = HashSet::new();
        for (at, class) in self.classes.iter().enumerate() {
            let field = format!("classes[{at}].name");
            let fits = !class.name.is_empty()
                && class.name.len() <= MAX_NAME
                && !class.name.contains(char::is_control);
            require(fits, &field, || {
                format!("is empty, longer than {MAX_NAME} bytes or has control characters")
            })?;
            require(names.insert(&class.name), &field, || format!("`{}` occurs twice", class.name))?;
        }
        Ok(())
    }
}

impl Input {
    fn validate(&self) -> Result<(), ManifestError> {
        for (field, side) in [("input.width", self.width), ("input.height", self.height)] {
            require((1..=MAX_SIDE).contains(&side), field, || format!("is {side}, not 1 to {MAX_SIDE}"))?;
        }
        let channels = 3;
        require(self.channels == channels, "input.channels", || {
            format!("is {}, but colours have {channels}", self.channels)
        })?;
        let scale = self.scale.is_finite() && self.scale > 0.0;
        require(scale, "input.scale", || format!("is {}, not a positive number", self.scale))?;
        for (field, values) in [("input.mean", &self.mean), ("input.std", &self.std)] {
            let count = values.len();
            require(count == channels as usize, field, || {
                format!("has {count} values for {channels} channels")
            })?;
            for (at, value) in values.iter().enumerate() {
                require(value.is_finite(), &format!("{field}[{at}]"), || format!("is {value}"))?;
            }
        }
        for (at, value) in self.std.iter().enumerate() {
            require(*value > 0.0, &format!("input.std[{at}]"), || format!("is {value}, not positive"))?;
        }
        Ok(())
    }
}

fn require(holds: bool, field: &str, problem: impl FnOnce() -> String) -> Result<(), ManifestError> {
    if holds { Ok(()) } else { Err(ManifestError::Field { field: field.to_owned(), problem: problem() }) }
}

/// Whether a path stays in the manifest's folder.
fn inside(path: &Path) -> bool {
    path.components().count() > 0 && path.components().all(|part| matches!(part, Component::Normal(_)))
}

fn outside(path: &Path) -> String {
    format!("is `{}`, not a path below the manifest's folder", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
schema = 1
name = "nsfwjs-mobilenet-v2"
version = "4.4.0"
file = "model.pt"
digest = "sha256:0000000000000000000000000000000000000000000000000000000000000001"
output = "probabilities"
tolerance = 1e-4
license = "MIT"
source = "npm nsfwjs 4.4.0"
[[classes]]
name = "Drawing"
role = "safe"
[[classes]]
name = "Porn"
role = "explicit"
[input]
width = 224
height = 224
channels = 3
colour = "rgb"
layout = "nchw"
scale = 0.00392156862745098
mean = [0.0, 0.0, 0.0]
std = [1.0, 1.0, 1.0]
resize = "bilinear"
corners = "align"
antialias = false
fit = "stretch"
transport = "u16"
[[variants]]
file = "model-cpu.pt"
digest = "sha256:0000000000000000000000000000000000000000000000000000000000000002"
device = "cpu"
"#;

    fn parse(text: &str) -> Result<Manifest, ManifestError> {
        Manifest::parse(text, Path::new("model.toml"))
    }

    #[test]
    fn a_good_manifest_survives_being_written_and_read() {
        let manifest = parse(GOOD).unwrap();
        let again = parse(&toml::to_string(&manifest).unwrap()).unwrap();
        assert_eq!(manifest, again);
    }

    #[test]
    fn every_bad_field_is_named() {
        let table = [
            ("schema = 1", "schema = 2", "`schema` is 2"),
            ("name = \"nsfwjs-mobilenet-v2\"", "name = \"NSFW\"", "`name` is `NSFW`"),
            ("version = \"4.4.0\"", "version = \"4 4\"", "`version`"),
            ("file = \"model.pt\"", "file = \"../model.pt\"", "`file` is `../model.pt`"),
            ("file = \"model.pt\"", "file = \"/etc/passwd\"", "`file` is `/etc/passwd`"),
            ("sha256:0", "sha1:0", "64 hexadecimal digits"),
            ("000001\"", "00000g\"", "64 hexadecimal digits"),
            ("probabilities", "odds", "unknown variant `odds`"),
            ("tolerance = 1e-4", "tolerance = 0.0", "`tolerance` is 0"),
            ("license = \"MIT\"", "license = \"\"", "`license` is empty"),
            ("source = \"npm nsfwjs 4.4.0\"", "source = \" \"", "`source` is empty"),
            ("name = \"Porn\"", "name = \"Drawing\"", "`classes[1].name` `Drawing` occurs twice"),
            ("name = \"Porn\"", "name = \"\"", "`classes[1].name` is empty"),
            ("role = \"explicit\"", "role = \"bad\"", "unknown variant `bad`"),
            ("width = 224", "width = 0", "`input.width` is 0"),
            ("height = 224", "height = 9999", "`input.height` is 9999"),
            ("channels = 3", "channels = 1", "`input.channels` is 1"),
            ("colour = \"rgb\"", "colour = \"grey\"", "unknown variant `grey`"),
            ("scale = 0.00392156862745098", "scale = nan", "`input.scale` is NaN"),
            ("mean = [0.0, 0.0, 0.0]", "mean = [0.0]", "`input.mean` has 1 values for 3 channels"),
            ("std = [1.0, 1.0, 1.0]", "std = [1.0, 0.0, 1.0]", "`input.std[1]` is 0"),
            ("mean = [0.0, 0.0, 0.0]", "mean = [0.0, 0.0, inf]", "`input.mean[2]` is inf"),
            ("antialias = false", "", "missing field `antialias`"),
            ("antialias = false", "antialias = false\nblur = 1", "unknown field `blur`"),
            ("file = \"model-cpu.pt\"", "file = \"\"", "`variants[0].file`"),
            (
                "[[variants]]",
                "[[variants]]\nfile = \"b.pt\"\ndigest = \"sha256:0000000000000000000000000000000000000000000000000000000000000002\"\ndevice = \"cpu\"\n[[variants]]",
                "`variants[1].device` has a variant already",
            ),
        ];
        for (from, to, message) in table {
            assert!(GOOD.contains(from), "{from}");
            let error = parse(&GOOD.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(error.contains(message), "{to}: {error}");
        }
    }

    #[test]
    fn a_manifest_needs_two_classes() {
        let one = GOOD.replace("[[classes]]\nname = \"Porn\"\nrole = \"explicit\"\n", "");
        assert!(parse(&one).unwrap_err().to_string().contains("`classes` has 1 entries"));
    }
}
