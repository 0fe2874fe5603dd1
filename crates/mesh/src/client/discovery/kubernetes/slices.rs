//! What EndpointSlices say (`discovery.k8s.io/v1`), merged into one set of addresses. No clock and no network.
//!
//! A Service has several slices: more than 100 endpoints, both address families, or a change under way, during which an
//! endpoint may be in two of them. All of that is for the reader to put together.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    net::IpAddr,
};

use serde::Deserialize;

use crate::client::{
    Address,
    discovery::{
        dns::{Family, address},
        target::PortRef,
    },
};

#[derive(Debug, Deserialize)]
pub(super) struct List {
    pub(super) metadata: ListMetadata,
    #[serde(default)]
    pub(super) items: Vec<Slice>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ListMetadata {
    pub(super) resource_version: String,
    /// What to ask for the next page with.
    #[serde(rename = "continue")]
    pub(super) next: Option<String>,
}

/// One event of a watch.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", content = "object", rename_all = "UPPERCASE")]
pub(super) enum Event {
    Added(Slice),
    Modified(Slice),
    Deleted(Slice),
    /// No change: so far has the watch come.
    Bookmark(Bookmark),
    Error(Status),
}

impl Event {
    /// Whether the set may be another one after it.
    pub(super) fn changes(&self) -> bool {
        !matches!(self, Self::Bookmark(_))
    }
}

#[derive(Debug, Deserialize)]
pub(super) struct Bookmark {
    metadata: Metadata,
}

/// Kubernetes' form of an error.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    pub(super) code: u16,
    pub(super) reason: String,
    pub(super) message: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Metadata {
    #[serde(default)]
    name: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    resource_version: String,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Slice {
    metadata: Metadata,
    address_type: String,
    endpoints: Option<Vec<Endpoint>>,
    ports: Option<Vec<Port>>,
}

#[derive(Debug, Deserialize)]
struct Endpoint {
    addresses: Vec<String>,
    #[serde(default)]
    conditions: Conditions,
    zone: Option<String>,
    hints: Option<Hints>,
}

#[derive(Debug, Default, Deserialize)]
struct Conditions {
    ready: Option<bool>,
    serving: Option<bool>,
    terminating: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct Hints {
    #[serde(rename = "forZones")]
    for_zones: Option<Vec<ForZone>>,
}

#[derive(Debug, Deserialize)]
struct ForZone {
    name: String,
}

#[derive(Debug, Deserialize)]
struct Port {
    name: Option<String>,
    port: Option<u16>,
    protocol: Option<String>,
}

/// The label of a headless Service's slices.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// How good an endpoint is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Use {
    /// It takes calls. The API says that an unknown condition means yes.
    Ready,
    /// It is being stopped and still serves: better than nothing, and used only then.
    LastResort,
}

impl Endpoint {
    fn usable(&self) -> Option<Use> {
        let Conditions { ready, serving, terminating } = self.conditions;
        if ready.unwrap_or(true) {
            return Some(Use::Ready);
        }
        (serving.unwrap_or(false) && terminating.unwrap_or(false)).then_some(Use::LastResort)
    }

    /// Where it runs; a hint stands in for it when it says one zone only.
    fn zone(&self) -> Option<&str> {
        let hinted = || match self.hints.as_ref()?.for_zones.as_deref()? {
            [only] => Some(only.name.as_str()),
            _ => None,
        };
        self.zone.as_deref().filter(|zone| !zone.is_empty()).or_else(hinted)
    }
}

impl Slice {
    /// The ports of its endpoints that `wanted` means.
    fn ports(&self, wanted: &PortRef) -> impl Iterator<Item = u16> {
        let tcp = |port: &&Port| port.protocol.as_deref().unwrap_or("TCP") == "TCP";
        let means = move |port: &&Port| match wanted {
            PortRef::Name(name) => port.name.as_deref() == Some(name),
            PortRef::Number(number) => port.port == Some(*number),
        };
        self.ports.iter().flatten().filter(tcp).filter(means).filter_map(|port| port.port)
    }
}

/// The slices of one Service as far as a list and a watch have told.
#[derive(Debug, Default)]
pub(super) struct Slices {
    by_name: BTreeMap<String, Slice>,
    version: Option<String>,
}

impl Slices {
    /// From where a watch goes on; `None` when a list must come first.
    pub(super) fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// What is known is too old to go on from; it stays in use until a list has come.
    pub(super) fn expire(&mut self) {
        self.version = None;
    }

    /// A list came, page after page.
    pub(super) fn replace(&mut self, slices: Vec<Slice>, version: String) {
        let named = |slice: Slice| (slice.metadata.name.clone(), slice);
        self.by_name = slices.into_iter().map(named).collect();
        self.version = Some(version);
    }

    /// A watch told a change.
    ///
    /// # Errors
    /// The status that it told instead; what is known stays.
    pub(super) fn apply(&mut self, event: Event) -> Result<(), Status> {
        let version = match event {
            Event::Error(status) => return Err(status),
            Event::Bookmark(bookmark) => bookmark.metadata.resource_version,
            Event::Deleted(slice) => {
                self.by_name.remove(&slice.metadata.name);
                slice.metadata.resource_version
            }
            Event::Added(slice) | Event::Modified(slice) => {
                let version = slice.metadata.resource_version.clone();
                self.by_name.insert(slice.metadata.name.clone(), slice);
                version
            }
        };
        self.version = Some(version);
        Ok(())
    }

    /// Whether DNS has a record for each of its endpoints. A Service with an address of its own has one for that alone.
    /// `None` while no slice is known.
    pub(super) fn headless(&self) -> Option<bool> {
        let slice = self.by_name.values().next()?;
        Some(slice.metadata.labels.contains_key(HEADLESS))
    }

    /// The endpoints to call, on the port `wanted`.
    ///
    /// # Errors
    /// Why there are none, in words.
    pub(super) fn addresses(&self, wanted: &PortRef, family: Family) -> Result<Vec<Address>, String> {
        for wanted_use in [Use::Ready, Use::LastResort] {
            for v4 in family.order() {
                let found = self.of_kind(wanted, *v4, wanted_use);
                if !found.is_empty() {
                    return Ok(found);
                }
            }
        }
        Err(self.why_none(wanted, family))
    }

    fn of_kind(&self, wanted: &PortRef, v4: bool, wanted_use: Use) -> Vec<Address> {
        let kind = kind(v4);
        let mut found = BTreeMap::<(IpAddr, u16), Option<&str>>::new();
        for slice in self.by_name.values().filter(|slice| slice.address_type == kind) {
            for endpoint in slice.endpoints.iter().flatten() {
                // What a second address of an endpoint means is not defined; the API asks to take the first.
                let ip = endpoint.addresses.first().and_then(|ip| ip.parse().ok());
                let Some(ip) = ip.filter(|_| endpoint.usable() == Some(wanted_use)) else { continue };
                for port in slice.ports(wanted) {
                    let zone = found.entry((ip, port)).or_default();
                    *zone = zone.or(endpoint.zone());
                }
            }
        }
        let named = |((ip, port), zone): ((IpAddr, u16), Option<&str>)| Address {
            zone: zone.map(str::to_owned),
            ..address(ip, port, 1)
        };
        found.into_iter().map(named).collect()
    }

    fn why_none(&self, wanted: &PortRef, family: Family) -> String {
        if self.by_name.is_empty() {
            return "there is no EndpointSlice of this Service: is it there, and does it select pods?".into();
        }
        let endpoints: usize =
            self.by_name.values().map(|slice| slice.endpoints.iter().flatten().count()).sum();
        let allowed = family.order().iter().map(|v4| kind(*v4));
        let allowed: Vec<&str> = allowed.collect();
        let kinds: BTreeSet<&str> = self.by_name.values().map(|slice| slice.address_type.as_str()).collect();
        if endpoints > 0 && kinds.iter().all(|kind| !allowed.contains(kind)) {
            let (has, wants) = (Vec::from_iter(kinds).join(" and "), allowed.join(" and "));
            return format!("its endpoints are {has}, and `discovery.family` takes only {wants}");
        }
        let matched = self.by_name.values().any(|slice| slice.ports(wanted).next().is_some());
        if endpoints == 0 || matched {
            return format!("none of its {endpoints} endpoints is ready");
        }
        let ports = self.by_name.values().flat_map(|slice| slice.ports.iter().flatten());
        let ports: BTreeSet<_> = ports.map(|port| (port.name.as_deref().unwrap_or(""), port.port)).collect();
        let mut text = format!("its endpoints have no TCP port {wanted}, only");
        for (name, number) in ports {
            let number = number.map_or("any".into(), |number| number.to_string());
            write!(text, " {name}={number}").expect("a String takes everything");
        }
        text
    }
}

/// As the API names address types.
fn kind(v4: bool) -> &'static str {
    if v4 { "IPv4" } else { "IPv6" }
}

#[cfg(test)]
#[path = "slices_tests.rs"]
mod tests;
