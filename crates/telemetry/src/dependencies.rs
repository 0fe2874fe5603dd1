//! What a process depends on and how each of it is: healthy, degraded (and why), or down (F10).
//!
//! A role registers what it calls or stores in and reports changes; `/healthz` shows all of it, and the gauge
//! `dependency_up` is 1, 0.5 or 0. Every gRPC port answers `grpc.health.v1` for the service `dependency.NAME`: `SERVING` when
//! it is healthy or degraded, `NOT_SERVING` when it is down. Reporting the same again costs a lock and a comparison.

use std::{collections::BTreeMap, sync::Arc};

use serde::Serialize;
use tokio::sync::watch;
use tracing::{info, warn};

/// How a dependency is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "status", content = "why", rename_all = "lowercase")]
pub enum Condition {
    /// It does its work.
    Healthy,
    /// The process goes on, with less; why, for operators: no addresses with passwords, no user's values.
    Degraded(String),
    /// What needs it fails; why.
    Down(String),
}

/// Every dependency by its name.
pub type Conditions = BTreeMap<&'static str, Condition>;

/// All dependencies of a process. Cheap to clone; all clones are one list.
#[derive(Debug, Clone, Default)]
pub struct Dependencies {
    conditions: Arc<watch::Sender<Conditions>>,
}

/// One dependency, to report on.
#[derive(Debug, Clone)]
pub struct Dependency {
    name: &'static str,
    of: Dependencies,
}

impl Dependencies {
    /// Adds a dependency, healthy until it is reported otherwise. A name taken already is the same dependency.
    pub fn register(&self, name: &'static str) -> Dependency {
        self.conditions.send_if_modified(|conditions| {
            let new = !conditions.contains_key(name);
            conditions.entry(name).or_insert(Condition::Healthy);
            new
        });
        metrics::gauge!("dependency_up", "dependency" => name).set(1.0);
        Dependency { name, of: self.clone() }
    }

    /// Every dependency by its name.
    pub fn all(&self) -> Conditions {
        self.conditions.borrow().clone()
    }

    /// Tells of every change.
    pub fn subscribe(&self) -> watch::Receiver<Conditions> {
        self.conditions.subscribe()
    }

    /// The worst: `healthy`, `degraded` or `down`.
    pub fn overall(&self) -> &'static str {
        let conditions = self.conditions.borrow();
        let any = |wanted: fn(&Condition) -> bool| conditions.values().any(wanted);
        match () {
            () if any(|condition| matches!(condition, Condition::Down(_))) => "down",
            () if any(|condition| matches!(condition, Condition::Degraded(_))) => "degraded",
            () => "healthy",
        }
    }

    /// As JSON: `{"status":"degraded","dependencies":{"redis":{"status":"degraded","why":"…"}}}`.
    pub fn json(&self) -> String {
        serde_json::json!({ "status": self.overall(), "dependencies": self.all() }).to_string()
    }
}

impl Dependency {
    /// Says how it is now. A change is logged and counted once.
    pub fn report(&self, condition: Condition) {
        let changed = self.of.conditions.send_if_modified(|conditions| {
            conditions.insert(self.name, condition.clone()).as_ref() != Some(&condition)
        });
        if !changed {
            return;
        }
        let up = match &condition {
            Condition::Healthy => 1.0,
            Condition::Degraded(_) => 0.5,
            Condition::Down(_) => 0.0,
        };
        metrics::gauge!("dependency_up", "dependency" => self.name).set(up);
        match condition {
            Condition::Healthy => info!(dependency = self.name, "healthy"),
            Condition::Degraded(why) => warn!(dependency = self.name, "degraded: {why}"),
            Condition::Down(why) => warn!(dependency = self.name, "down: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_dependency_is_the_overall_status() {
        let all = Dependencies::default();
        let (redis, postgres) = (all.register("redis"), all.register("postgres"));
        assert_eq!(all.overall(), "healthy");
        redis.report(Condition::Degraded("answers take 500 ms".into()));
        assert_eq!(all.overall(), "degraded");
        postgres.report(Condition::Down("connection refused".into()));
        assert_eq!(
            all.json(),
            r#"{"dependencies":{"postgres":{"status":"down","why":"connection refused"},"redis":{"status":"degraded","why":"answers take 500 ms"}},"status":"down"}"#
        );
        redis.report(Condition::Healthy);
        postgres.report(Condition::Healthy);
        assert_eq!(all.overall(), "healthy");
        assert_eq!(all.register("redis").of.all().len(), 2, "registered again it is the same");
    }
}
