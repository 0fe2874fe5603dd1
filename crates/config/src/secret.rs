//! Values that nobody may read by accident.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The URL of a server, perhaps with a password. Printed, logged and shown by `config print` with `***` for it.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ServerUrl(String);

impl ServerUrl {
    /// Takes it as it is; whoever connects checks it.
    pub fn new(url: impl Into<String>) -> Self {
        Self(url.into())
    }

    /// As written, password and all: only for connecting.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// With `***` for the password of `scheme://user:password@host`.
    pub fn masked(&self) -> String {
        mask(&self.0)
    }
}

impl fmt::Display for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.masked())
    }
}

impl fmt::Debug for ServerUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.masked())
    }
}

/// Puts `***` for the password of a URL; any other text comes back as it is.
pub fn mask(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let authority = &rest[..rest.find(['/', '?', '#']).unwrap_or(rest.len())];
    // The last @ ends it: a password may hold others that nobody escaped.
    let Some(at) = authority.rfind('@') else { return url.to_owned() };
    let Some((user, _)) = authority[..at].split_once(':') else { return url.to_owned() };
    format!("{scheme}://{user}:***{}", &rest[at..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_masked_and_nothing_else() {
        for (url, shown) in [
            ("redis://127.0.0.1:6379/", "redis://127.0.0.1:6379/"),
            ("redis://:secret@host/0", "redis://:***@host/0"),
            (
                "postgresql://me:s@cret@db:5432/x?sslmode=require",
                "postgresql://me:***@db:5432/x?sslmode=require",
            ),
            ("postgresql://me@db/x?a=b@c", "postgresql://me@db/x?a=b@c"),
            ("redis+cluster://u:p@a:1,b:2", "redis+cluster://u:***@a:1,b:2"),
            ("not a url: p@ss", "not a url: p@ss"),
        ] {
            assert_eq!(mask(url), shown);
            assert_eq!(format!("{:?}", ServerUrl::new(url)), format!("{shown:?}"));
        }
    }
}
