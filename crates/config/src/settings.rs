//! One declaration per section: the struct, its defaults and its documentation cannot drift apart.

/// A documented key of a section.
#[derive(Debug, Clone)]
pub struct Field {
    /// The key in the file.
    pub name: &'static str,
    /// The docstring's lines.
    pub doc: Vec<&'static str>,
    /// The Rust type as written.
    pub type_name: &'static str,
}

impl Field {
    /// Whether any text is a value: then what the environment says is not read as a number, a boolean or a list.
    pub fn is_text(&self) -> bool {
        let bare: String = self.type_name.split_whitespace().collect();
        let inner = bare.strip_prefix("Option<").and_then(|rest| rest.strip_suffix('>')).unwrap_or(&bare);
        matches!(inner.rsplit("::").next(), Some("String" | "PathBuf" | "ServerUrl"))
    }
}

/// A documented section: one table of the file.
#[derive(Debug, Clone)]
pub struct SectionDoc {
    /// The table's name.
    pub name: &'static str,
    /// The docstring's lines.
    pub doc: Vec<&'static str>,
    /// The keys in the order of the struct.
    pub fields: Vec<Field>,
    /// Every key's default.
    pub defaults: toml::Table,
}

/// What [`settings!`](crate::settings) implements.
pub trait Section: serde::Serialize + Default {
    /// The section's name, keys and defaults.
    fn section() -> SectionDoc;
}

/// Declares a section of the configuration.
///
/// ```
/// sightline_config::settings! {
///     /// How the example behaves.
///     pub struct Example in "example" {
///         /// How many at once.
///         pub max_in_flight: usize = 64,
///         /// Unset: none. Optional keys start unset.
///         pub token: Option<String> = None,
///     }
/// }
/// assert_eq!(Example::default().max_in_flight, 64);
/// ```
#[macro_export]
macro_rules! settings {
    (
        $(#[doc = $doc:literal])+
        pub struct $name:ident in $section:literal {
            $( $(#[doc = $field_doc:literal])+ pub $field:ident : $type:ty = $default:expr ),* $(,)?
        }
    ) => {
        $(#[doc = $doc])+
        #[derive(Debug, Clone, PartialEq, $crate::serde::Serialize, $crate::serde::Deserialize)]
        #[serde(default, deny_unknown_fields, crate = "sightline_config::serde")]
        pub struct $name {
            $( $(#[doc = $field_doc])+ pub $field: $type, )*
        }

        impl Default for $name {
            fn default() -> Self {
                Self { $( $field: $default, )* }
            }
        }

        impl $crate::Section for $name {
            fn section() -> $crate::SectionDoc {
                $crate::SectionDoc::new::<Self>(
                    $section,
                    vec![$($doc),+],
                    vec![ $( $crate::Field {
                            name: stringify!($field),
                            doc: vec![$($field_doc),+],
                            type_name: stringify!($type),
                        }, )* ],
                )
            }
        }
    };
}

impl SectionDoc {
    /// Joins documentation with the defaults of `S`. Called by [`settings!`](crate::settings).
    ///
    /// # Panics
    /// When the defaults cannot be written as TOML, which a test of the registry finds.
    pub fn new<S: Section>(name: &'static str, doc: Vec<&'static str>, fields: Vec<Field>) -> Self {
        let defaults = toml::Table::try_from(S::default()).expect("defaults are plain TOML values");
        Self { name, doc, fields, defaults }
    }
}
