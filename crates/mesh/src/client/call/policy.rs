//! What may be done with a call, by its gRPC path: one table per service.

use std::{collections::HashMap, time::Duration};

use prost::Message;
use prost_types::{FileDescriptorSet, method_options::IdempotencyLevel};
use tonic::Code;

/// A set of gRPC codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Codes(u32);

impl Codes {
    /// `UNAVAILABLE`: the one code that by its definition asks for another try.
    pub const UNAVAILABLE: Self = Self(1 << Code::Unavailable as u32);

    /// These and no others.
    pub fn of(codes: &[Code]) -> Self {
        Self(codes.iter().fold(0, |set, code| set | 1 << *code as u32))
    }

    /// Whether `code` is one of them.
    pub fn contains(self, code: Code) -> bool {
        self.0 & (1 << code as u32) != 0
    }
}

/// What may be done with calls of one method.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MethodPolicy {
    /// A second run changes nothing that the first did not (safe, or idempotent by an id in the message). Without it a
    /// call is repeated only when it is certain that no server has seen it.
    pub idempotent: bool,
    /// How often a call may be sent at most, the first time and hedges included. Attempts that certainly reached nobody
    /// are not counted.
    pub max_attempts: u32,
    /// The codes after which an idempotent call is tried again.
    pub retry_on: Codes,
    /// The deadline of a call whose caller gave none. `None`: as long as it takes, which is for streams that live as long
    /// as their caller.
    pub timeout: Option<Duration>,
    /// How long one attempt may take to the head of its answer; then it is given up and counts as failed.
    pub attempt_timeout: Option<Duration>,
    /// When an idempotent call has no answer for so long it is sent once more, to another replica; the first answer wins.
    /// A value near the 95th percentile costs about 5 % more calls, which the retry budget bounds in any case.
    pub hedge_after: Option<Duration>,
    /// How much of a request is kept for another attempt. A longer one is sent once.
    pub replay_bytes: usize,
}

impl MethodPolicy {
    /// See [`MethodPolicy::replay_bytes`]: one ordinary message, tonic's limit being 4 MiB and most far below.
    pub const REPLAY_BYTES: usize = 256 << 10;
    /// See [`MethodPolicy::max_attempts`]: with three replicas each may be tried once.
    pub const MAX_ATTEMPTS: u32 = 3;

    /// For a method that may run twice.
    pub const fn idempotent() -> Self {
        Self { idempotent: true, max_attempts: Self::MAX_ATTEMPTS, ..Self::once() }
    }

    /// For a method of which nothing is known: never repeated once a server may have seen it.
    pub const fn once() -> Self {
        Self {
            idempotent: false,
            max_attempts: 1,
            retry_on: Codes::UNAVAILABLE,
            timeout: None,
            attempt_timeout: None,
            hedge_after: None,
            replay_bytes: Self::REPLAY_BYTES,
        }
    }

    /// With a deadline for callers that give none.
    #[must_use]
    pub const fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// With a bound for each attempt.
    #[must_use]
    pub const fn attempt_timeout(mut self, timeout: Duration) -> Self {
        self.attempt_timeout = Some(timeout);
        self
    }

    /// With a hedge when the answer takes so long.
    #[must_use]
    pub const fn hedge_after(mut self, delay: Duration) -> Self {
        self.hedge_after = Some(delay);
        self
    }

    /// With another number of attempts.
    #[must_use]
    pub const fn max_attempts(mut self, attempts: u32) -> Self {
        self.max_attempts = attempts;
        self
    }

    /// With other codes after which a call is tried again. `RESOURCE_EXHAUSTED` of a server that sheds makes sense where
    /// replicas are loaded unevenly; the pause is then at least what the server asks for.
    #[must_use]
    pub const fn retry_on(mut self, codes: Codes) -> Self {
        self.retry_on = codes;
        self
    }

    /// Extra attempts that a call may take by this policy.
    pub(crate) fn extra(&self) -> u32 {
        if self.idempotent { self.max_attempts.saturating_sub(1) } else { 0 }
    }
}

/// A path and a policy that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the policy of {path:?}: {problem}")]
pub struct PolicyError {
    path: String,
    problem: &'static str,
}

/// The policies of a service's methods; the one place that says which calls may be repeated.
///
/// ```
/// # use {std::time::Duration, sightline_mesh::client::{MethodPolicies, MethodPolicy}};
/// let policies = MethodPolicies::default()
///     .method("/shop.v1.Shop/GetItem", MethodPolicy::idempotent().timeout(Duration::from_secs(1)))?
///     .method("/shop.v1.Shop/Buy", MethodPolicy::once().timeout(Duration::from_secs(5)))?;
/// # Ok::<(), sightline_mesh::client::PolicyError>(())
/// ```
#[derive(Debug, Clone)]
pub struct MethodPolicies {
    methods: HashMap<String, MethodPolicy>,
    /// For every other method.
    fallback: MethodPolicy,
}

impl Default for MethodPolicies {
    /// No method is known: none is repeated once sent.
    fn default() -> Self {
        Self { methods: HashMap::new(), fallback: MethodPolicy::once() }
    }
}

impl MethodPolicies {
    /// One method more, by its path `/package.Service/Method`. The table also is the list of names that metrics may
    /// have as labels: methods that it lacks are counted as `other`.
    ///
    /// # Errors
    /// [`PolicyError`] for what is no path, and for a policy that contradicts itself.
    pub fn method(mut self, path: &str, policy: MethodPolicy) -> Result<Self, PolicyError> {
        let problem = if split(path).is_none() {
            Some("a path is /package.Service/Method")
        } else {
            problem_of(&policy)
        };
        if let Some(problem) = problem {
            return Err(PolicyError { path: path.to_owned(), problem });
        }
        self.methods.insert(path.to_owned(), policy);
        Ok(self)
    }

    /// Every method of the services that `descriptors` describe, a serialized `FileDescriptorSet`: what a service's owner
    /// says in its proto is the table. A method with `option idempotency_level = NO_SIDE_EFFECTS` or `IDEMPOTENT` may run
    /// twice; of one without it nothing is known.
    ///
    /// # Errors
    /// [`PolicyError`] for bytes that are no descriptors.
    pub fn from_protos(descriptors: &[u8]) -> Result<Self, PolicyError> {
        let set = FileDescriptorSet::decode(descriptors).map_err(|_| PolicyError {
            path: String::new(),
            problem: "these are no descriptors of protos",
        })?;
        let mut policies = Self::default();
        for file in &set.file {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    let level =
                        method.options.as_ref().map_or_else(Default::default, |of| of.idempotency_level());
                    let policy = match level {
                        IdempotencyLevel::NoSideEffects | IdempotencyLevel::Idempotent => {
                            MethodPolicy::idempotent()
                        }
                        IdempotencyLevel::IdempotencyUnknown => MethodPolicy::once(),
                    };
                    policies = policies.method(&path, policy)?;
                }
            }
        }
        Ok(policies)
    }

    /// What holds for every method that the table lacks, a default timeout for instance. It stays unsafe to repeat
    /// whatever is said here: nobody has looked at the method.
    #[must_use]
    pub fn others(mut self, policy: MethodPolicy) -> Self {
        self.fallback = MethodPolicy { idempotent: false, max_attempts: 1, hedge_after: None, ..policy };
        self
    }

    /// What holds for the method at `path`.
    pub fn get(&self, path: &str) -> &MethodPolicy {
        self.methods.get(path).unwrap_or(&self.fallback)
    }

    /// Every method with a policy of its own.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &MethodPolicy)> {
        self.methods.iter().map(|(path, policy)| (path.as_str(), policy))
    }
}

fn problem_of(policy: &MethodPolicy) -> Option<&'static str> {
    let zero = |time: Option<Duration>| time.is_some_and(|time| time.is_zero());
    if policy.max_attempts == 0 {
        return Some("max_attempts is 0, so no call would ever be sent: 1 sends each once");
    }
    if policy.hedge_after.is_some() && !policy.idempotent {
        return Some("hedge_after sends a call twice, which only an idempotent method bears");
    }
    if zero(policy.timeout) || zero(policy.attempt_timeout) {
        return Some("a timeout of 0 fails every call: leave it out for none");
    }
    policy.retry_on.contains(Code::Ok).then_some("retry_on names OK, which is no failure")
}

/// `/package.Service/Method` as service and method.
pub(crate) fn split(path: &str) -> Option<(&str, &str)> {
    let (service, method) = path.strip_prefix('/')?.split_once('/')?;
    (!service.is_empty() && !method.is_empty() && !method.contains('/')).then_some((service, method))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_method_is_never_repeated() {
        let policies = MethodPolicies::default()
            .others(MethodPolicy::idempotent().hedge_after(Duration::from_millis(1)))
            .method("/a.B/Get", MethodPolicy::idempotent())
            .unwrap();
        assert_eq!(policies.get("/a.B/Get").extra(), 2);
        let other = policies.get("/a.B/Put");
        assert!(!other.idempotent && other.max_attempts == 1 && other.hedge_after.is_none());
    }

    #[test]
    fn protos_say_which_methods_may_run_twice() {
        use prost_types::{
            FileDescriptorProto, MethodDescriptorProto, MethodOptions, ServiceDescriptorProto,
        };
        let method = |name: &str, level: Option<IdempotencyLevel>| MethodDescriptorProto {
            name: Some(name.into()),
            options: level.map(|level| MethodOptions {
                idempotency_level: Some(level.into()),
                ..MethodOptions::default()
            }),
            ..MethodDescriptorProto::default()
        };
        let method = vec![
            method("Get", Some(IdempotencyLevel::NoSideEffects)),
            method("Put", Some(IdempotencyLevel::Idempotent)),
            method("Buy", None),
        ];
        let service =
            vec![ServiceDescriptorProto { name: Some("Shop".into()), method, ..Default::default() }];
        let package = Some("shop.v1".into());
        let file = vec![FileDescriptorProto { package, service, ..Default::default() }];
        let policies = MethodPolicies::from_protos(&FileDescriptorSet { file }.encode_to_vec()).unwrap();
        let extra = ["Get", "Put", "Buy"].map(|name| policies.get(&format!("/shop.v1.Shop/{name}")).extra());
        assert_eq!((extra, policies.iter().count()), ([2, 2, 0], 3));
        assert!(MethodPolicies::from_protos(b"\xffno").unwrap_err().to_string().contains("no descriptors"));
    }

    #[test]
    fn contradictions_are_refused_with_the_way_out() {
        let table = || MethodPolicies::default();
        for (path, policy, part) in [
            ("a.B/Get", MethodPolicy::once(), "/package.Service/Method"),
            ("/a.B", MethodPolicy::once(), "/package.Service/Method"),
            ("/a.B/", MethodPolicy::once(), "/package.Service/Method"),
            ("/a.B/Get", MethodPolicy::once().max_attempts(0), "max_attempts is 0"),
            ("/a.B/Get", MethodPolicy::once().hedge_after(Duration::from_millis(1)), "hedge_after"),
            ("/a.B/Get", MethodPolicy::once().timeout(Duration::ZERO), "timeout of 0"),
            ("/a.B/Get", MethodPolicy::once().retry_on(Codes::of(&[Code::Ok])), "OK"),
        ] {
            let error = table().method(path, policy).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn a_set_of_codes_holds_what_it_was_made_of() {
        let codes = Codes::of(&[Code::Unavailable, Code::Aborted]);
        assert!(codes.contains(Code::Unavailable) && codes.contains(Code::Aborted));
        assert!(!codes.contains(Code::Internal) && !Codes::default().contains(Code::Unavailable));
        assert_eq!(Codes::of(&[Code::Unavailable]), Codes::UNAVAILABLE);
    }
}
