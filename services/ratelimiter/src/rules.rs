//! The rules: which checks they apply to and how much they allow. Read from TOML, refused by name when wrong.
//!
//! ```toml
//! [[rule]]
//! name = "user-interval"  # in answers, messages and metrics
//! keys = ["user"]         # applies to checks that have a value for every one
//! limit = 1               # hits …
//! per = "5s"              # … per this long …
//! burst = 1               # … of which this many may come at once
//! tenants = ["acme"]      # optional: only for these
//! when_away = "open"      # optional, while shared counters cannot be reached: "open" lets all pass, "closed" none, and
//!                         # "local_share" (the default) what is this replica's part of the limit
//! ```
//!
//! The same file may have [[domain]] tables for gateways: see [`crate::envoy::descriptors`].

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde::Deserialize;
use sightline_config::HumanDuration;
use tracing::warn;

use crate::{
    envoy::descriptors::{Domains, WrittenDomain},
    gcra::{Quota, QuotaError},
};

/// A check walks all rules; and every rule that applies is a counter to keep.
pub const MAX_RULES: usize = 64;
/// Keys of one rule: as many as a check may have.
pub const MAX_KEYS_PER_RULE: usize = crate::service::MAX_KEYS;

const PRODUCTION: &str = include_str!("../rules/production.toml");
const DEV: &str = include_str!("../rules/dev.toml");

/// Why rules were refused.
#[derive(Debug, thiserror::Error)]
pub enum RulesError {
    /// The file cannot be read.
    #[error("the rules file {} cannot be read: {source}; name a file, or the preset \"production\" or \"dev\"", path.display())]
    Read {
        /// As configured.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// It is not TOML, or has a key that is no setting, or a value of the wrong type; the message has line and column.
    #[error("{origin}: {source}")]
    Syntax {
        /// The file or preset.
        origin: String,
        /// The parser's word.
        source: Box<toml::de::Error>,
    },
    /// None, or too many.
    #[error("{origin}: {count} rules; write 1 to {MAX_RULES} [[rule]] tables")]
    Count {
        /// The file or preset.
        origin: String,
        /// As found.
        count: usize,
    },
    /// A rule says something that cannot be.
    #[error("{origin}: rule {rule:?}: `{field}` {problem}")]
    Rule {
        /// The file or preset.
        origin: String,
        /// Its name, or its place (`#2`) when the name is what is wrong.
        rule: String,
        /// The key in the rule.
        field: &'static str,
        /// What it must be.
        problem: String,
    },
    /// A domain of descriptors says something that cannot be.
    #[error("{origin}: {problem}")]
    Domain {
        /// The file or preset.
        origin: String,
        /// With the domain and the descriptor.
        problem: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default, rename = "rule")]
    rules: Vec<Written>,
    #[serde(default, rename = "domain")]
    domains: Vec<WrittenDomain>,
}

/// A rule as written. Numbers are signed so that a negative one is refused by our message, which names the rule.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    name: String,
    keys: Vec<String>,
    limit: i64,
    per: HumanDuration,
    burst: i64,
    tenants: Option<Vec<String>>,
    #[serde(default)]
    when_away: WhenAway,
}

/// What a rule does while the counters that replicas share cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WhenAway {
    /// It lets everything pass.
    Open,
    /// It lets nothing pass.
    Closed,
    /// It counts by itself, up to its limit divided by the number of replicas.
    #[default]
    LocalShare,
}

impl WhenAway {
    /// As in the rules file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Closed => "closed",
            Self::LocalShare => "local_share",
        }
    }
}

/// One rate limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    index: usize,
    name: String,
    keys: Vec<String>,
    quota: Quota,
    tenants: Option<HashSet<String>>,
    when_away: WhenAway,
}

impl Rule {
    /// The limit of a gateway's descriptor; it has no place among the rules.
    pub(crate) fn of_descriptor(name: String, quota: Quota, when_away: WhenAway) -> Self {
        Self { index: usize::MAX, name, keys: Vec::new(), quota, tenants: None, when_away }
    }

    /// Its place in the file, from 0: what tells its counters from another rule's.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Unique among the rules; lower-case letters, digits, `-` and `_`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How much it allows.
    pub fn quota(&self) -> &Quota {
        &self.quota
    }

    /// The names of the values that tell its counters apart.
    pub fn keys(&self) -> &[String] {
        &self.keys
    }

    /// What it does while shared counters cannot be reached.
    pub fn when_away(&self) -> WhenAway {
        self.when_away
    }

    fn values<'a>(&self, tenant: &str, keys: &'a HashMap<String, String>) -> Option<Vec<&'a str>> {
        if self.tenants.as_ref().is_some_and(|tenants| !tenants.contains(tenant)) {
            return None;
        }
        self.keys.iter().map(|key| keys.get(key).map(String::as_str)).collect()
    }
}

/// One rule as it applies to one check: together with the tenant, the identity of a counter.
#[derive(Debug, Clone)]
pub struct Counter<'a> {
    /// The rule.
    pub rule: &'a Rule,
    /// The check's values for the rule's keys, in the rule's order.
    pub values: Vec<&'a str>,
    /// What the check costs this counter; 0 only asks how it stands.
    pub hits: u32,
}

/// All rules, in the order of the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSet {
    rules: Vec<Rule>,
    domains: Arc<Domains>,
}

impl RuleSet {
    /// The preset `production` or `dev`, or else the file at this path.
    ///
    /// # Errors
    /// [`RulesError`].
    pub fn load(spec: &str) -> Result<Self, RulesError> {
        match spec {
            "production" => Self::parse("preset \"production\"", PRODUCTION),
            "dev" => Self::parse("preset \"dev\"", DEV),
            path => {
                let text = fs::read_to_string(path)
                    .map_err(|source| RulesError::Read { path: Path::new(path).to_owned(), source })?;
                Self::parse(path, &text)
            }
        }
    }

    /// Reads and validates rules; `origin` is what errors call the text.
    ///
    /// # Errors
    /// [`RulesError`].
    pub fn parse(origin: &str, text: &str) -> Result<Self, RulesError> {
        let file: File = toml::from_str(text)
            .map_err(|source| RulesError::Syntax { origin: origin.to_owned(), source: Box::new(source) })?;
        let count = file.rules.len();
        if count == 0 || count > MAX_RULES {
            return Err(RulesError::Count { origin: origin.to_owned(), count });
        }
        let mut rules: Vec<Rule> = Vec::with_capacity(count);
        for (index, written) in file.rules.into_iter().enumerate() {
            let name = written.name.clone();
            let known = |name: &str| rules.iter().any(|rule| rule.name == name);
            let rule = check_name(&name, known).and_then(|()| written.validate(index)).map_err(|wrong| {
                let rule = if wrong.field == "name" { format!("#{} {name}", index + 1) } else { name };
                RulesError::Rule {
                    origin: origin.to_owned(),
                    rule,
                    field: wrong.field,
                    problem: wrong.problem,
                }
            })?;
            rules.push(rule);
        }
        let domains = Domains::read(file.domains)
            .map_err(|problem| RulesError::Domain { origin: origin.to_owned(), problem })?;
        Ok(Self { rules, domains: Arc::new(domains) })
    }

    /// What gateways may ask about.
    pub fn domains(&self) -> &Arc<Domains> {
        &self.domains
    }

    /// The rules in the order of the file.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Rule> {
        self.rules.iter()
    }

    /// Logs which rules lose more than a hundredth of their rate in a store that counts in microseconds.
    pub(crate) fn warn_of_rounding(&self) {
        for rule in self.rules.iter().filter(|rule| rule.quota.is_coarse_in_micros()) {
            let interval = rule.quota.in_micros().interval;
            warn!(rule = rule.name, "Redis counts in microseconds: one hit per {interval} µs is let through");
        }
    }

    /// The rules that apply to a check of so many hits, with its values: those for its tenant whose every key has a value.
    pub fn applying<'a>(
        &'a self,
        tenant: &str,
        keys: &'a HashMap<String, String>,
        hits: u32,
    ) -> Vec<Counter<'a>> {
        let counter = |rule: &'a Rule| Some(Counter { rule, values: rule.values(tenant, keys)?, hits });
        self.rules.iter().filter_map(counter).collect()
    }
}

impl Written {
    fn validate(self, index: usize) -> Result<Rule, QuotaError> {
        let positive = |field, value: i64| {
            u64::try_from(value).map_err(|_| wrong(field, format!("is {value}; it must be greater than 0")))
        };
        let (limit, burst) = (positive("limit", self.limit)?, positive("burst", self.burst)?);
        let per: Duration = self.per.0;
        let quota = Quota::new(limit, per, burst)?;
        if self.keys.is_empty() || self.keys.len() > MAX_KEYS_PER_RULE {
            return Err(wrong("keys", format!("must name 1 to {MAX_KEYS_PER_RULE} keys of a check")));
        }
        for (place, key) in self.keys.iter().enumerate() {
            if !crate::service::is_key_name(key) {
                return Err(wrong("keys", format!("has {key:?}; a key has 1 to 64 characters")));
            }
            if self.keys[..place].contains(key) {
                return Err(wrong("keys", format!("names {key:?} twice")));
            }
        }
        if self.tenants.as_ref().is_some_and(Vec::is_empty) {
            return Err(wrong(
                "tenants",
                "is empty, so the rule would never apply; leave it out for all".into(),
            ));
        }
        let tenants = self.tenants.map(HashSet::from_iter);
        let when_away = self.when_away;
        Ok(Rule { index, name: self.name, keys: self.keys, quota, tenants, when_away })
    }
}

fn wrong(field: &'static str, problem: String) -> QuotaError {
    QuotaError { field, problem }
}

/// A name is also a metric's label: short, plain and unique.
fn check_name(name: &str, known: impl Fn(&str) -> bool) -> Result<(), QuotaError> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    if name.is_empty() || name.len() > 64 || !name.chars().all(plain) {
        return Err(wrong("name", "must be 1 to 64 lower-case letters, digits, `-` or `_`".into()));
    }
    if known(name) {
        return Err(wrong("name", "is taken by an earlier rule".into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "[[rule]]\nname = \"a\"\nkeys = [\"user\"]\nlimit = 1\nper = \"5s\"\nburst = 1\n";

    fn keys(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn names(counters: &[Counter<'_>]) -> Vec<String> {
        counters.iter().map(|counter| counter.rule.name().to_owned()).collect()
    }

    #[test]
    fn both_presets_are_valid() {
        let production = RuleSet::load("production").unwrap();
        assert_eq!(
            production.iter().map(Rule::name).collect::<Vec<_>>(),
            ["user-interval", "user-minute", "user-hour", "ip-second"]
        );
        let interval = production.iter().next().unwrap();
        assert_eq!(*interval.quota(), Quota::new(1, Duration::from_secs(5), 1).unwrap());
        assert_eq!(RuleSet::load("dev").unwrap().iter().len(), 2);
    }

    #[test]
    fn a_rule_applies_to_its_tenants_when_every_key_has_a_value() {
        let text = "[[rule]]\nname = \"pair\"\nkeys = [\"user\", \"ip\"]\nlimit = 1\nper = \"1s\"\nburst = 1\n\
                    [[rule]]\nname = \"acme\"\nkeys = [\"user\"]\nlimit = 1\nper = \"1s\"\nburst = 1\ntenants = [\"acme\"]";
        let rules = RuleSet::parse("test", text).unwrap();
        let both = keys(&[("ip", "::1"), ("user", "u"), ("device", "d")]);
        assert_eq!(names(&rules.applying("", &both, 1)), ["pair"]);
        assert_eq!(names(&rules.applying("acme", &both, 1)), ["pair", "acme"]);
        assert_eq!(rules.applying("", &both, 1)[0].values, ["u", "::1"]);
        assert_eq!(names(&rules.applying("acme", &keys(&[("user", "u")]), 1)), ["acme"]);
        assert!(rules.applying("", &keys(&[("ip", "::1")]), 1).is_empty());
    }

    #[test]
    fn mistakes_are_refused_by_rule_and_field() {
        let many =
            "[[rule]]\nname = \"a\"\nkeys = [\"user\"]\nlimit = 1\nper = \"5s\"\nburst = 1\n".repeat(65);
        for (text, expected) in [
            (GOOD.replace("\"a\"", "\"A b\""), "rule \"#1 A b\": `name` must be 1 to 64 lower-case letters"),
            (format!("{GOOD}{GOOD}"), "rule \"#2 a\": `name` is taken by an earlier rule"),
            (GOOD.replace("limit = 1", "limit = 0"), "rule \"a\": `limit` must be greater than 0"),
            (GOOD.replace("limit = 1", "limit = -3"), "rule \"a\": `limit` is -3; it must be greater than 0"),
            (GOOD.replace("5s", "0s"), "rule \"a\": `per` must be longer than 0s"),
            (GOOD.replace("burst = 1", "burst = 0"), "rule \"a\": `burst` must be at least 1"),
            (GOOD.replace("[\"user\"]", "[]"), "rule \"a\": `keys` must name 1 to 16 keys"),
            (
                GOOD.replace("[\"user\"]", "[\"\"]"),
                "rule \"a\": `keys` has \"\"; a key has 1 to 64 characters",
            ),
            (GOOD.replace("[\"user\"]", "[\"ip\", \"ip\"]"), "rule \"a\": `keys` names \"ip\" twice"),
            (format!("{GOOD}tenants = []"), "rule \"a\": `tenants` is empty"),
            (format!("{GOOD}brust = 2"), "unknown field `brust`"),
            (GOOD.replace("burst = 1\n", ""), "missing field `burst`"),
            (GOOD.replace("5s", "soon"), "\"soon\" is not a duration"),
            (GOOD.replace("[[rule]]", "[[rules]]"), "unknown field `rules`"),
            (String::new(), "0 rules; write 1 to 64 [[rule]] tables"),
            (many, "65 rules; write 1 to 64 [[rule]] tables"),
        ] {
            let message = RuleSet::parse("limits.toml", &text).unwrap_err().to_string();
            assert!(message.starts_with("limits.toml: ") && message.contains(expected), "{message}");
        }
    }

    #[test]
    fn a_file_is_read_and_a_missing_one_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("limits.toml");
        fs::write(&path, GOOD).unwrap();
        assert_eq!(RuleSet::load(path.to_str().unwrap()).unwrap().iter().len(), 1);
        let message = RuleSet::load("/nowhere/limits.toml").unwrap_err().to_string();
        assert!(message.contains("/nowhere/limits.toml") && message.contains("preset"), "{message}");
    }
}
