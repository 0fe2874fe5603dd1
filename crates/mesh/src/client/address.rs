//! Where a replica is, and which of its lives is meant.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// A replica as discovery found it. Two answers with equal addresses mean the same replica: its connection stays.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct Address {
    /// `host:port`; an IPv6 host stands in brackets.
    pub authority: String,
    /// Where it runs (an availability zone, a rack), if discovery knows.
    pub zone: Option<String>,
    /// Its share of calls next to others; 1 where nothing else is said, and never 0.
    pub weight: u32,
}

impl Address {
    /// An address of weight 1 in no zone. `http://` or `https://` before it is dropped: how a connection is made is the
    /// connector's affair.
    ///
    /// # Errors
    /// [`EndpointError`] when it is not `host:port`.
    pub fn new(uri: &str) -> Result<Self, EndpointError> {
        let fail = |problem: &str| EndpointError { uri: uri.to_owned(), problem: problem.to_owned() };
        let authority = uri.split_once("://").map_or(uri, |(_, rest)| rest).trim_end_matches('/');
        let parsed: http::uri::Authority =
            authority.parse().map_err(|error: http::uri::InvalidUri| fail(&error.to_string()))?;
        if parsed.port_u16().is_none() {
            return Err(fail("the port is missing"));
        }
        Ok(Self { authority: authority.to_owned(), zone: None, weight: 1 })
    }

    /// The host without brackets, and the port.
    pub(super) fn host_and_port(&self) -> (&str, u16) {
        let (host, port) = self.authority.rsplit_once(':').unwrap_or((&self.authority, ""));
        (host.trim_matches(['[', ']']), port.parse().unwrap_or_default())
    }

    /// The same in a zone.
    #[must_use]
    pub fn in_zone(mut self, zone: impl Into<String>) -> Self {
        self.zone = Some(zone.into());
        self
    }

    /// The same with a weight; 0 counts as 1.
    #[must_use]
    pub fn weighing(mut self, weight: u32) -> Self {
        self.weight = weight.max(1);
        self
    }
}

/// An address that is no address.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{uri:?} is not an address such as \"http://127.0.0.1:7401\": {problem}")]
pub struct EndpointError {
    pub(super) uri: String,
    pub(super) problem: String,
}

/// One endpoint's life in this process: an address that went away and came back is another endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
pub struct EndpointId(u64);

impl EndpointId {
    /// The next one.
    pub(super) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_hosts_with_a_port() {
        for (text, expected) in [
            ("127.0.0.1:7401", Some("127.0.0.1:7401")),
            ("http://classifier-0.classifier:7401/", Some("classifier-0.classifier:7401")),
            ("https://[::1]:7401", Some("[::1]:7401")),
            ("classifier", None),
            ("", None),
            ("http://a b:1", None),
        ] {
            let found = Address::new(text).ok();
            assert_eq!(found.as_ref().map(|address| address.authority.as_str()), expected, "{text}");
        }
        let parts = |text| Address::new(text).unwrap().host_and_port().0.to_owned();
        assert_eq!((parts("[::1]:7401").as_str(), parts("a:1").as_str()), ("::1", "a"));
        assert_eq!(Address::new("[::1]:7401").unwrap().host_and_port().1, 7401);
    }
}
