//! Puts the layers of configuration on top of each other.

use std::path::{Path, PathBuf};

use figment::{
    Figment, Profile, Provider,
    error::Kind,
    providers::{Format, Serialized, Toml},
    value::{Dict, Map, Value},
};
use serde::{Serialize, de::DeserializeOwned};

use crate::registry::Registry;

/// Why a configuration was refused. Each message names the key and the layer it came from.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file named by the caller is not there.
    #[error("the configuration file {} does not exist", .0.display())]
    MissingFile(PathBuf),
    /// A value, a key or the file's syntax is wrong.
    #[error("{0}")]
    Invalid(String),
    /// A variable with our prefix that sets nothing: most likely a slip.
    #[error("the environment variable {name} sets nothing{hint}")]
    UnknownVariable {
        /// As found.
        name: String,
        /// "; did you mean …?", or empty.
        hint: String,
    },
    /// A `section.key=value` flag without `=`.
    #[error("--set {0}: write it as section.key=value")]
    MalformedFlag(String),
}

/// Where the values above the defaults come from, lowest first.
#[derive(Debug, Default)]
pub struct Layers {
    /// A TOML file.
    pub file: Option<PathBuf>,
    /// The environment; only names with the prefix `SIGHTLINE_` are looked at.
    pub environment: Vec<(String, String)>,
    /// `section.key=value`, as given on the command line.
    pub flags: Vec<String>,
}

/// Variables with our prefix that belong to set-up, tests and the command line as a client, not to the configuration.
const NOT_CONFIGURATION: [&str; 7] = [
    "SIGHTLINE_CACHE",
    "SIGHTLINE_CLIENT_CA",
    "SIGHTLINE_CLIENT_CERT",
    "SIGHTLINE_CLIENT_KEY",
    "SIGHTLINE_CLIENT_SERVER_NAME",
    "SIGHTLINE_CONFIG",
    "SIGHTLINE_TOOLS",
];
/// The same, for every variable that begins so.
const NOT_CONFIGURATION_PREFIX: &str = "SIGHTLINE_TEST_";

/// Reads `C` from the layers over `base`, the defaults of this program or mode.
///
/// # Errors
/// [`ConfigError`]; nothing is half-applied.
pub fn load<C: Serialize + DeserializeOwned>(
    base: &C,
    registry: &Registry,
    layers: &Layers,
) -> Result<C, ConfigError> {
    let mut figment = Figment::from(Serialized::defaults(base));
    if let Some(file) = &layers.file {
        if !Path::new(file).is_file() {
            return Err(ConfigError::MissingFile(file.clone()));
        }
        figment = figment.merge(Toml::file_exact(file));
    }
    figment = figment.merge(environment(registry, &layers.environment)?);
    let variables = registry.variables();
    let mut flags = Keys::new("a --set flag");
    for flag in &layers.flags {
        let (key, value) = flag.split_once('=').ok_or_else(|| ConfigError::MalformedFlag(flag.clone()))?;
        let is_text = variables.iter().any(|variable| variable.key == key && variable.is_text);
        flags.insert(key, value, is_text);
    }
    figment.merge(flags).extract().map_err(|error| ConfigError::Invalid(describe(error)))
}

fn environment(registry: &Registry, environment: &[(String, String)]) -> Result<Keys, ConfigError> {
    let variables = registry.variables();
    let mut keys = Keys::new("the environment");
    for (name, value) in environment {
        let other = NOT_CONFIGURATION.contains(&name.as_str()) || name.starts_with(NOT_CONFIGURATION_PREFIX);
        if other || !name.starts_with("SIGHTLINE_") {
            continue;
        }
        match variables.iter().find(|variable| variable.name == *name) {
            Some(variable) => keys.insert(&variable.key, value, variable.is_text),
            None => {
                let nearest = variables
                    .iter()
                    .map(|variable| (distance(&variable.name, name), &variable.name))
                    .min()
                    .filter(|(distance, _)| *distance <= 4);
                let hint = nearest.map_or(String::new(), |(_, name)| format!("; did you mean {name}?"));
                return Err(ConfigError::UnknownVariable { name: name.clone(), hint });
            }
        }
    }
    Ok(keys)
}

/// Dotted keys with string values, as a layer.
struct Keys {
    name: &'static str,
    dict: Dict,
}

impl Keys {
    fn new(name: &'static str) -> Self {
        Self { name, dict: Dict::new() }
    }

    fn insert(&mut self, key: &str, value: &str, is_text: bool) {
        // Figment reads numbers, booleans and lists out of the text; anything else is a string. A version "2" stays one.
        let value: Value = match is_text {
            true => Value::from(unquoted(value)),
            false => value.parse().expect("parsing a figment value cannot fail"),
        };
        let mut path: Vec<&str> = key.split('.').collect();
        let last = path.pop().expect("splitting gives at least one part");
        let mut dict = &mut self.dict;
        for part in path {
            let entry = dict.entry(part.to_owned()).or_insert_with(|| Value::from(Dict::new()));
            if !matches!(entry, Value::Dict(..)) {
                *entry = Value::from(Dict::new());
            }
            let Value::Dict(_, inner) = entry else { unreachable!("made a dict just above") };
            dict = inner;
        }
        dict.insert(last.to_owned(), value);
    }
}

/// A text setting may be written as in the file, in quotes, or without.
fn unquoted(value: &str) -> &str {
    let inner = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    inner.filter(|inner| !inner.contains(['"', '\\'])).unwrap_or(value)
}

impl Provider for Keys {
    fn metadata(&self) -> figment::Metadata {
        figment::Metadata::named(self.name)
    }

    fn data(&self) -> Result<Map<Profile, Dict>, figment::Error> {
        Ok(Map::from([(Profile::Default, self.dict.clone())]))
    }
}

fn describe(error: figment::Error) -> String {
    let mut lines = Vec::new();
    for error in error {
        let place =
            error.metadata.as_ref().map_or("the configuration".to_owned(), |metadata| {
                match metadata.source.as_ref().and_then(|source| source.file_path()) {
                    Some(path) => path.display().to_string(),
                    None => metadata.name.to_string(),
                }
            });
        let key = error.path.join(".");
        lines.push(match &error.kind {
            Kind::UnknownField(field, known) => {
                let nearest = known.iter().min_by_key(|name| distance(name, field));
                let hint = nearest
                    .filter(|name| distance(name, field) <= 4)
                    .map_or(String::new(), |name| format!("; did you mean `{name}`?"));
                let parent = error.path.iter().filter(|part| part.as_str() != field).cloned();
                let key = parent.chain([field.clone()]).collect::<Vec<_>>().join(".");
                format!("{place}: `{key}` is not a setting{hint}")
            }
            _ if key.is_empty() => format!("{place}: {}", error.kind),
            _ => format!("{place}: `{key}`: {}", error.kind),
        });
    }
    lines.join("\n")
}

/// Levenshtein's edit distance, for "did you mean".
fn distance(a: &str, b: &str) -> usize {
    let b: Vec<char> = b.chars().collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != *y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;
    use crate::HumanDuration;

    mod sightline_config {
        pub use crate::*;
    }

    crate::settings! {
        /// A part.
        pub struct Part in "part" {
            /// A size.
            pub size: usize = 3,
            /// A time.
            pub wait: HumanDuration = HumanDuration::from_secs(5),
            /// A list.
            pub names: Vec<String> = vec![],
            /// A text.
            pub version: Option<String> = None,
            /// An address.
            pub listen: crate::Listen = crate::Listen::OFF,
        }
    }

    #[derive(Debug, Default, Serialize, Deserialize)]
    #[serde(default, deny_unknown_fields)]
    struct Whole {
        part: Part,
    }

    fn read(file: &str, environment: &[(&str, &str)], flags: &[&str]) -> Result<Part, String> {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("sightline.toml");
        std::fs::write(&path, file).expect("written");
        let layers = Layers {
            file: Some(path),
            environment: environment.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            flags: flags.iter().map(|flag| (*flag).to_owned()).collect(),
        };
        let registry = Registry::default().with::<Part>();
        load(&Whole::default(), &registry, &layers)
            .map(|whole| whole.part)
            .map_err(|error| error.to_string().replace(folder.path().to_str().unwrap(), ""))
    }

    #[test]
    fn each_layer_wins_over_the_one_below() {
        assert_eq!(read("", &[], &[]).unwrap().size, 3);
        assert_eq!(read("[part]\nsize = 4", &[], &[]).unwrap().size, 4);
        let environment = [("SIGHTLINE_PART_SIZE", "5")];
        assert_eq!(read("[part]\nsize = 4", &environment, &[]).unwrap().size, 5);
        assert_eq!(read("[part]\nsize = 4", &environment, &["part.size=6"]).unwrap().size, 6);
        assert_eq!(read("", &[("SIGHTLINE_PART_NAMES", "[a, b]")], &[]).unwrap().names, ["a", "b"]);
    }

    #[test]
    fn a_text_that_looks_like_a_number_stays_a_text() {
        let version = |value| read("", &[("SIGHTLINE_PART_VERSION", value)], &[]).unwrap().version;
        for (value, expected) in
            [("2", "2"), ("true", "true"), ("[a]", "[a]"), ("\"2\"", "2"), ("a b", "a b")]
        {
            assert_eq!(version(value).as_deref(), Some(expected));
        }
        assert_eq!(read("", &[], &["part.version=7"]).unwrap().version.as_deref(), Some("7"));
    }

    #[test]
    fn an_address_can_be_turned_off_in_every_layer() {
        let on = "[part]\nlisten = \"127.0.0.1:7400\"";
        assert_eq!(read(on, &[], &[]).unwrap().listen.to_string(), "127.0.0.1:7400");
        assert_eq!(read(on, &[("SIGHTLINE_PART_LISTEN", "off")], &[]).unwrap().listen, crate::Listen::OFF);
        let message = read(on, &[], &["part.listen=7400"]).unwrap_err();
        assert!(message.contains("`part.listen`: 7400 is neither an address"), "{message}");
    }

    #[test]
    fn a_variable_that_only_begins_like_one_of_ours_is_refused() {
        for name in ["SIGHTLINE_CACHE_TTL", "SIGHTLINE_CONFIG_FILE", "SIGHTLINE_CLIENT_CERTS"] {
            assert!(read("", &[(name, "x")], &[]).unwrap_err().contains("sets nothing"), "{name}");
        }
        assert!(read("", &[("SIGHTLINE_CACHE", "/tmp")], &[]).is_ok());
    }

    #[test]
    fn mistakes_are_refused_by_name() {
        /// File, environment, flags, and what is said of them.
        type Case =
            (&'static str, &'static [(&'static str, &'static str)], &'static [&'static str], &'static str);
        let cases: [Case; 6] = [
            (
                "[part]\nsice = 4",
                &[],
                &[],
                "/sightline.toml: `part.sice` is not a setting; did you mean `size`?",
            ),
            (
                "[part]\nsize = \"x\"",
                &[],
                &[],
                "/sightline.toml: `part.size`: invalid type: found string \"x\", expected usize",
            ),
            (
                "",
                &[("SIGHTLINE_PART_SIZ", "4")],
                &[],
                "the environment variable SIGHTLINE_PART_SIZ sets nothing; did you mean SIGHTLINE_PART_SIZE?",
            ),
            (
                "",
                &[("SIGHTLINE_PART_WAIT", "soon")],
                &[],
                "the environment: `part.wait`: \"soon\" is not a duration such as \"5s\" or \"1m 30s\"",
            ),
            ("", &[], &["part.size"], "--set part.size: write it as section.key=value"),
            ("", &[], &["part.seze=1"], "a --set flag: `part.seze` is not a setting; did you mean `size`?"),
        ];
        for (file, environment, flags, expected) in cases {
            assert_eq!(read(file, environment, flags).unwrap_err(), expected);
        }
        assert!(read("[part", &[], &[]).unwrap_err().contains("sightline.toml"));
    }

    #[test]
    fn rendered_configuration_reads_back() {
        let registry = Registry::default().with::<Part>();
        let text = registry.render(&toml::Table::try_from(Whole::default()).unwrap());
        assert!(text.contains("# A time.\nwait = \"5s\"\n"), "{text}");
        assert_eq!(read(&text, &[], &[]).unwrap(), Part::default());
        assert!(registry.markdown().contains("| `size` | `SIGHTLINE_PART_SIZE` | `3` | A size. |"));
    }
}
