//! Names of workloads: SPIFFE ids, read from the certificates of peers, and the lists of those who are let in.

use std::{fmt, str::FromStr, sync::Arc};

use x509_cert::{
    Certificate,
    der::Decode,
    ext::pkix::{SubjectAltName, name::GeneralName},
};

/// The longest id, by the SPIFFE-ID specification (2.3).
const MAX_ID_BYTES: usize = 2048;
/// The longest trust domain, by the SPIFFE-ID specification (2.1).
const MAX_TRUST_DOMAIN_BYTES: usize = 255;
const SCHEME: &str = "spiffe://";

/// The name of a workload: `spiffe://trust-domain/path`, as the SPIFFE-ID specification writes it.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId(Arc<str>);

/// Why a text or a certificate names no workload.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpiffeError {
    /// A text that is no id.
    #[error("{text:?} is not a SPIFFE id such as \"spiffe://mesh.example/ns/prod/sa/ingest\": {problem}")]
    Text {
        /// What was given.
        text: String,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// A certificate that cannot be read.
    #[error("the certificate cannot be read: {0}")]
    Certificate(String),
    /// A certificate without exactly one URI, which the X.509-SVID specification (2) asks for.
    #[error("the certificate names {0} URIs; a workload's has exactly one, its SPIFFE id")]
    Uris(usize),
}

impl SpiffeId {
    /// The id in the certificate of a peer. The caller has verified its chain.
    ///
    /// # Errors
    /// [`SpiffeError`], also for a certificate with several URIs: it would be two workloads at once.
    pub fn of_certificate(der: &[u8]) -> Result<Self, SpiffeError> {
        let unreadable = |error: x509_cert::der::Error| SpiffeError::Certificate(error.to_string());
        let certificate = Certificate::from_der(der).map_err(unreadable)?;
        let names = certificate.tbs_certificate.get::<SubjectAltName>().map_err(unreadable)?;
        let names = names.map(|(_, names)| names.0).unwrap_or_default();
        let mut uris = names.iter().filter_map(|name| match name {
            GeneralName::UniformResourceIdentifier(uri) => Some(uri.as_str()),
            _ => None,
        });
        match (uris.next(), uris.count()) {
            (Some(uri), 0) => uri.parse(),
            (first, others) => Err(SpiffeError::Uris(usize::from(first.is_some()) + others)),
        }
    }

    /// The whole id.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The whole id, shared.
    pub fn shared(&self) -> Arc<str> {
        Arc::clone(&self.0)
    }

    /// What is between the scheme and the path.
    pub fn trust_domain(&self) -> &str {
        let rest = &self.0[SCHEME.len()..];
        rest.split('/').next().unwrap_or(rest)
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeError;

    fn from_str(text: &str) -> Result<Self, SpiffeError> {
        match problem_of(text) {
            None => Ok(Self(text.into())),
            Some(problem) => {
                // What a stranger sends is shown, but not all of it.
                let shown: String = text.chars().take(100).collect();
                Err(SpiffeError::Text { text: shown, problem })
            }
        }
    }
}

fn problem_of(text: &str) -> Option<&'static str> {
    if text.len() > MAX_ID_BYTES {
        return Some("it is longer than 2048 bytes");
    }
    let Some(rest) = text.strip_prefix(SCHEME) else { return Some("it does not begin with \"spiffe://\"") };
    let (domain, path) = rest.split_once('/').unwrap_or((rest, ""));
    let in_domain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"-._".contains(&b);
    let in_path = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
    if domain.is_empty() || domain.len() > MAX_TRUST_DOMAIN_BYTES || !domain.bytes().all(in_domain) {
        return Some("its trust domain must be 1 to 255 of a-z, 0-9, '.', '-' and '_'");
    }
    if path.is_empty() {
        return Some("it names a trust domain and no workload in it");
    }
    let segment = |part: &str| !part.is_empty() && part != "." && part != ".." && part.bytes().all(in_path);
    if !path.split('/').all(segment) {
        return Some("each part of its path must be of a-z, A-Z, 0-9, '.', '-' and '_'");
    }
    None
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One entry of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    Exact(SpiffeId),
    /// Everything below, with the slash at its end: `spiffe://mesh.example/ns/prod/`.
    Below(String),
}

impl Pattern {
    fn takes(&self, id: &SpiffeId) -> bool {
        match self {
            Self::Exact(exact) => exact == id,
            Self::Below(prefix) => id.as_str().starts_with(prefix.as_str()),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(id) => id.fmt(f),
            Self::Below(prefix) => write!(f, "{prefix}*"),
        }
    }
}

/// Who is let in, or who must answer. Each entry is an exact id, or an id whose last part is `*`: all ids below it,
/// at any depth. `spiffe://mesh.example/*` is everybody in the trust domain; no entry spans trust domains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowList {
    /// The setting it stands in, for messages.
    setting: String,
    patterns: Vec<Pattern>,
}

impl AllowList {
    /// Reads a list; `setting` is the key that errors and refusals name.
    ///
    /// # Errors
    /// A text naming the setting and the entry, also for an empty list: it would refuse everybody.
    pub fn new<T: AsRef<str>>(setting: &str, entries: &[T]) -> Result<Self, String> {
        if entries.is_empty() {
            return Err(format!(
                "`{setting}` is empty and would refuse everybody: list SPIFFE ids, or \"spiffe://TRUST-DOMAIN/*\""
            ));
        }
        let read = |entry: &T| pattern(entry.as_ref()).map_err(|error| format!("`{setting}`: {error}"));
        let patterns = entries.iter().map(read).collect::<Result<_, _>>()?;
        Ok(Self { setting: setting.to_owned(), patterns })
    }

    /// Whether this id is on the list.
    pub fn takes(&self, id: &SpiffeId) -> bool {
        self.patterns.iter().any(|pattern| pattern.takes(id))
    }

    /// The setting that holds it.
    pub fn setting(&self) -> &str {
        &self.setting
    }
}

impl fmt::Display for AllowList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}` [", self.setting)?;
        for (index, pattern) in self.patterns.iter().enumerate() {
            write!(f, "{}{pattern}", if index == 0 { "" } else { ", " })?;
        }
        f.write_str("]")
    }
}

fn pattern(text: &str) -> Result<Pattern, SpiffeError> {
    let Some(above) = text.strip_suffix("/*") else { return text.parse().map(Pattern::Exact) };
    // A trust domain alone is no workload, but may be a prefix.
    let probe = format!("{above}/any");
    match problem_of(&probe) {
        None => Ok(Pattern::Below(format!("{above}/"))),
        Some(problem) => Err(SpiffeError::Text { text: text.to_owned(), problem }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_as_the_specification_says() {
        let id: SpiffeId = "spiffe://mesh.example/ns/prod/sa/ingest".parse().unwrap();
        assert_eq!(id.trust_domain(), "mesh.example");
        for bad in [
            "",
            "https://mesh.example/ns/prod",
            "spiffe://",
            "spiffe:///ns/prod",
            "spiffe://mesh.example",
            "spiffe://mesh.example/",
            "spiffe://mesh.example/ns/",
            "spiffe://mesh.example//ns",
            "spiffe://mesh.example/ns/../sa",
            "spiffe://mesh.example/ns/%41",
            "spiffe://mesh.example/ns?x=1",
            "spiffe://Mesh.example/ns",
            "spiffe://mesh.example:1/ns",
            "spiffe://user@mesh.example/ns",
            "spiffe://mesh.example/*",
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad:?}");
        }
        assert!(format!("spiffe://a/{}", "x".repeat(2048)).parse::<SpiffeId>().is_err());
    }

    #[test]
    fn a_list_takes_exact_ids_and_what_is_below_a_star() {
        let list =
            AllowList::new("tls.callers.a", &["spiffe://one/ns/a/sa/x", "spiffe://two/ns/b/*"]).unwrap();
        let takes = |id: &str| list.takes(&id.parse().unwrap());
        assert!(takes("spiffe://one/ns/a/sa/x") && takes("spiffe://two/ns/b/sa/y"));
        for other in [
            "spiffe://one/ns/a/sa/xy",
            "spiffe://one/ns/a/sa/x/y",
            "spiffe://two/ns/b",
            "spiffe://two/ns/bc/sa/y",
            "spiffe://three/ns/b/sa/y",
        ] {
            assert!(!takes(other), "{other}");
        }
        assert_eq!(list.to_string(), "`tls.callers.a` [spiffe://one/ns/a/sa/x, spiffe://two/ns/b/*]");
    }

    #[test]
    fn entries_that_cannot_be_are_named() {
        let refused = |entries: &[&str]| AllowList::new("tls.callers.a", entries).unwrap_err();
        assert!(refused(&[]).starts_with("`tls.callers.a` is empty"));
        for bad in ["spiffe://*", "*", "/*", "spiffe://a/ns/*/sa/x", "spiffe://a/ns/x*", "ingest"] {
            let said = refused(&["spiffe://a/b", bad]);
            assert!(said.starts_with("`tls.callers.a`: ") && said.contains(bad), "{said}");
        }
    }
}
