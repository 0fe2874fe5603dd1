//! Descriptors: which limit a path of keys and values means. They stand in the rules file, beside the rules:
//!
//! ```toml
//! [[domain]]
//! name = "edge"
//!
//! [[domain.descriptors]]          # every address: 100 a second …
//! key = "remote_address"
//! rate_limit = { unit = "second", requests_per_unit = 100 }
//!
//!     [[domain.descriptors.descriptors]]   # … and 5 a minute of that for the path /login
//!     key = "path"
//!     value = "/login"
//!     rate_limit = { unit = "minute", requests_per_unit = 5, burst = 2, name = "login" }
//!     when_away = "closed"        # optional, as in a [[rule]]
//! ```
//!
//! A request's descriptor is walked entry by entry. At each level a configured key with this value is taken before the
//! key without a value, which is the default for all values, each counted by itself. The limit is the one of the last
//! entry: a descriptor that ends earlier or goes deeper than the configuration has none. `unlimited = true` in place of a
//! number lets everything pass; 0 lets nothing pass.

use std::{borrow::Cow, collections::HashMap, time::Duration};

use serde::Deserialize;
use sightline_proto::envoy::{
    extensions::common::ratelimit::v3::rate_limit_descriptor::Entry,
    service::ratelimit::v3::rate_limit_response::rate_limit, r#type::v3::RateLimitUnit,
};

use super::{MAX_CHARS, MAX_ENTRIES};
use crate::{
    gcra::Quota,
    rules::{Rule, WhenAway},
    service::longer_than,
};

/// Configured descriptors of all domains: each is looked up by a hash, so they cost only memory.
pub const MAX_CONFIGURED: usize = 100_000;

/// The length of a limit's window.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unit {
    /// 1 s.
    Second,
    /// 60 s.
    Minute,
    /// 60 minutes.
    Hour,
    /// 24 hours.
    Day,
    /// 7 days.
    Week,
    /// 30 days.
    Month,
    /// 365 days.
    Year,
}

impl Unit {
    /// As time.
    pub fn length(self) -> Duration {
        const DAY: u64 = 24 * 3600;
        Duration::from_secs(match self {
            Self::Second => 1,
            Self::Minute => 60,
            Self::Hour => 3600,
            Self::Day => DAY,
            Self::Week => 7 * DAY,
            Self::Month => 30 * DAY,
            Self::Year => 365 * DAY,
        })
    }

    /// Of a limit that a gateway brings along.
    pub(super) fn from_override(unit: i32) -> Result<Self, String> {
        match RateLimitUnit::try_from(unit) {
            Ok(RateLimitUnit::Second) => Ok(Self::Second),
            Ok(RateLimitUnit::Minute) => Ok(Self::Minute),
            Ok(RateLimitUnit::Hour) => Ok(Self::Hour),
            Ok(RateLimitUnit::Day) => Ok(Self::Day),
            Ok(RateLimitUnit::Month) => Ok(Self::Month),
            Ok(RateLimitUnit::Year) => Ok(Self::Year),
            Ok(RateLimitUnit::Unknown) | Err(_) => Err(format!("has the unit {unit}, which is none")),
        }
    }
}

impl From<Unit> for rate_limit::Unit {
    fn from(unit: Unit) -> Self {
        match unit {
            Unit::Second => Self::Second,
            Unit::Minute => Self::Minute,
            Unit::Hour => Self::Hour,
            Unit::Day => Self::Day,
            Unit::Week => Self::Week,
            Unit::Month => Self::Month,
            Unit::Year => Self::Year,
        }
    }
}

/// `[[domain]]` as written.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct WrittenDomain {
    name: String,
    #[serde(default)]
    descriptors: Vec<WrittenDescriptor>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenDescriptor {
    key: String,
    #[serde(default)]
    value: String,
    rate_limit: Option<WrittenLimit>,
    #[serde(default)]
    when_away: WhenAway,
    #[serde(default)]
    descriptors: Vec<WrittenDescriptor>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenLimit {
    unit: Option<Unit>,
    requests_per_unit: Option<u32>,
    burst: Option<u32>,
    #[serde(default)]
    unlimited: bool,
    #[serde(default)]
    name: String,
}

/// A configured limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    name: String,
    requests_per_unit: u32,
    unit: Unit,
    kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Counted(Rule),
    Unlimited,
    Blocked,
}

impl Limit {
    /// As in its `name`, or empty.
    pub fn shown_name(&self) -> &str {
        &self.name
    }

    /// As written.
    pub fn requests_per_unit(&self) -> u32 {
        self.requests_per_unit
    }

    /// As written.
    pub fn unit(&self) -> Unit {
        self.unit
    }

    /// What is counted, when anything is.
    pub(super) fn rule(&self) -> Option<&Rule> {
        match &self.kind {
            Kind::Counted(rule) => Some(rule),
            Kind::Unlimited | Kind::Blocked => None,
        }
    }

    pub(super) fn is_unlimited(&self) -> bool {
        self.kind == Kind::Unlimited
    }

    /// One that a gateway brings along.
    pub(super) fn brought_along(requests_per_unit: u32, unit: Unit) -> Result<Self, String> {
        let path = format!("override {requests_per_unit} per {unit:?}");
        Self::counted(&path, requests_per_unit, unit, None, WhenAway::default())
    }

    fn counted(
        path: &str,
        requests_per_unit: u32,
        unit: Unit,
        burst: Option<u32>,
        when_away: WhenAway,
    ) -> Result<Self, String> {
        let kind = match requests_per_unit {
            0 => Kind::Blocked,
            requests => {
                let burst = burst.unwrap_or(requests);
                let quota = Quota::new(requests.into(), unit.length(), burst.into());
                let quota = quota.map_err(|error| format!("cannot be counted: {error}"))?;
                // No [[rule]] may have such a name: its counters are others.
                Kind::Counted(Rule::of_descriptor(format!("envoy:{path}"), quota, when_away))
            }
        };
        Ok(Self { name: String::new(), requests_per_unit, unit, kind })
    }
}

impl WrittenLimit {
    fn read(self, path: &str, when_away: WhenAway) -> Result<Limit, String> {
        if self.unlimited {
            if self.requests_per_unit.is_some() || self.unit.is_some() || self.burst.is_some() {
                return Err("`rate_limit` is unlimited and has numbers: leave one of both out".into());
            }
            let (requests_per_unit, unit) = (0, Unit::Second);
            return Ok(Limit { name: self.name, requests_per_unit, unit, kind: Kind::Unlimited });
        }
        let (Some(unit), Some(requests)) = (self.unit, self.requests_per_unit) else {
            return Err("`rate_limit` needs `unit` and `requests_per_unit`, or `unlimited = true`".into());
        };
        let limit = Limit::counted(path, requests, unit, self.burst, when_away)
            .map_err(|problem| format!("`rate_limit` {problem}"))?;
        Ok(Limit { name: self.name, ..limit })
    }
}

/// A level of a domain's tree.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Level {
    /// By key; then by value, the empty one standing for all others.
    keys: HashMap<String, HashMap<String, Node>>,
}

#[derive(Debug, PartialEq, Eq)]
struct Node {
    limit: Option<Limit>,
    below: Level,
}

/// The limit that a descriptor means, and what tells its counters apart.
#[derive(Debug)]
pub(super) struct Found<'a> {
    pub(super) limit: Cow<'a, Limit>,
    pub(super) entries: &'a [Entry],
}

impl Level {
    pub(super) fn find<'a>(&'a self, entries: &'a [Entry]) -> Option<Found<'a>> {
        let (mut level, mut found) = (self, None);
        for entry in entries {
            let values = level.keys.get(&entry.key)?;
            let node = values.get(&entry.value).or_else(|| values.get(""))?;
            found = node.limit.as_ref();
            level = &node.below;
        }
        found.map(|limit| Found { limit: Cow::Borrowed(limit), entries })
    }

    fn read(
        written: Vec<WrittenDescriptor>,
        above: &str,
        depth: usize,
        left: &mut usize,
    ) -> Result<Self, String> {
        let mut level = Self::default();
        for descriptor in written {
            let WrittenDescriptor { key, value, rate_limit, when_away, descriptors } = descriptor;
            let path = match value.as_str() {
                "" => format!("{above}/{key}"),
                value => format!("{above}/{key}={value}"),
            };
            let wrong = |problem: String| format!("descriptor {path:?}: {problem}");
            if key.is_empty() || longer_than(&key, MAX_CHARS) || longer_than(&value, MAX_CHARS) {
                return Err(wrong(format!(
                    "`key` needs 1 to {MAX_CHARS} characters, `value` at most as many"
                )));
            }
            if depth == MAX_ENTRIES {
                return Err(wrong(format!("is deeper than {MAX_ENTRIES}")));
            }
            *left = left.checked_sub(1).ok_or_else(|| wrong(format!("is one more than {MAX_CONFIGURED}")))?;
            let limit = rate_limit.map(|limit| limit.read(&path, when_away)).transpose().map_err(wrong)?;
            let below = Self::read(descriptors, &path, depth + 1, left)?;
            let taken = level.keys.entry(key).or_default().insert(value, Node { limit, below });
            if taken.is_some() {
                return Err(format!("descriptor {path:?}: is there twice"));
            }
        }
        Ok(level)
    }
}

/// All domains.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Domains {
    domains: HashMap<String, Level>,
}

impl Domains {
    pub(crate) fn read(written: Vec<WrittenDomain>) -> Result<Self, String> {
        let mut domains = HashMap::new();
        let mut left = MAX_CONFIGURED;
        for WrittenDomain { name, descriptors } in written {
            if name.is_empty() || longer_than(&name, MAX_CHARS) {
                return Err(format!("a [[domain]] needs a `name` of 1 to {MAX_CHARS} characters"));
            }
            let level = Level::read(descriptors, "", 0, &mut left)
                .map_err(|problem| format!("domain {name:?}: {problem}"))?;
            if domains.insert(name.clone(), level).is_some() {
                return Err(format!("domain {name:?} is there twice"));
            }
        }
        Ok(Self { domains })
    }

    pub(super) fn get(&self, domain: &str) -> Option<&Level> {
        self.domains.get(domain)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.domains.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.domains.is_empty()
    }
}
