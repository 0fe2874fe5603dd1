//! Every key there is, from one place: environment variables, `config print` and the documentation.

use crate::{
    secret::mask,
    settings::{Section, SectionDoc},
};

/// An environment variable and the key it sets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Variable {
    /// `SIGHTLINE_<SECTION>_<KEY>`.
    pub name: String,
    /// `section.key`.
    pub key: String,
    /// One line of documentation.
    pub doc: String,
    /// The default as TOML; `None` when the key starts unset.
    pub default: Option<String>,
    /// Whether any text is a value.
    pub is_text: bool,
}

/// All sections of one program.
#[derive(Debug, Clone, Default)]
pub struct Registry {
    sections: Vec<SectionDoc>,
}

impl Registry {
    /// Adds the section `S`.
    #[must_use]
    pub fn with<S: Section>(mut self) -> Self {
        self.sections.push(S::section());
        self
    }

    /// Every variable, in the order of the sections and keys.
    pub fn variables(&self) -> Vec<Variable> {
        let mut variables = Vec::new();
        for section in &self.sections {
            for field in &section.fields {
                variables.push(Variable {
                    name: format!("SIGHTLINE_{}_{}", section.name, field.name).to_ascii_uppercase(),
                    key: format!("{}.{}", section.name, field.name),
                    doc: join(&field.doc),
                    default: section.defaults.get(field.name).map(toml::Value::to_string),
                    is_text: field.is_text(),
                });
            }
        }
        variables
    }

    /// The whole configuration as a commented TOML file, with the values of `values`
    /// (the serialised configuration); an unset key is shown commented out, the password of a URL as `***`.
    pub fn render(&self, values: &toml::Table) -> String {
        let mut text = String::new();
        for section in &self.sections {
            push_comment(&mut text, &section.doc);
            text += &format!("[{}]\n", section.name);
            let table = values.get(section.name).and_then(toml::Value::as_table);
            for field in &section.fields {
                push_comment(&mut text, &field.doc);
                match table.and_then(|table| table.get(field.name)) {
                    Some(value) => text += &format!("{} = {}\n", field.name, shown(value)),
                    None => text += &format!("# {} = \n", field.name),
                }
            }
            text.push('\n');
        }
        text
    }

    /// The reference page: a table of keys, variables and defaults per section.
    pub fn markdown(&self) -> String {
        let variables = self.variables();
        let mut text = String::new();
        for section in &self.sections {
            text += &format!("\n## `[{}]`\n\n{}\n\n", section.name, join(&section.doc));
            text += "| key | environment variable | default | what it is |\n|---|---|---|---|\n";
            let prefix = format!("{}.", section.name);
            for variable in variables.iter().filter(|variable| variable.key.starts_with(&prefix)) {
                text += &format!(
                    "| `{}` | `{}` | {} | {} |\n",
                    variable.key.trim_start_matches(&prefix),
                    variable.name,
                    variable.default.as_ref().map_or("unset".to_owned(), |value| format!("`{value}`")),
                    variable.doc
                );
            }
        }
        text
    }
}

/// A value as TOML; a URL without its password.
fn shown(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => toml::Value::String(mask(text)).to_string(),
        other => other.to_string(),
    }
}

fn join(doc: &[&str]) -> String {
    doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ")
}

fn push_comment(text: &mut String, doc: &[&str]) {
    for line in doc {
        *text += &format!("# {}\n", line.trim());
    }
}
