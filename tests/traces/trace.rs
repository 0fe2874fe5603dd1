//! A trace as Jaeger's query API shows it.

use std::collections::{HashMap, HashSet};

use serde_json::Value;
use sightline_servers::Jaeger;
use sightline_testkit::eventually;

/// One sending of a message over a stream; what the server does with it is a part of it.
pub const ATTEMPT: &str = "stream.attempt";
/// The caller's own span in [`traceparent`].
pub const SPAN: &str = "00f067aa0ba902b7";

/// A context of W3C Trace Context that asks for the trace to be kept.
pub fn traceparent(trace: &str) -> String {
    format!("00-{trace}-{SPAN}-01")
}

/// One span.
#[derive(Debug)]
pub struct Span {
    pub id: String,
    pub name: String,
    pub service: String,
    pub parents: Vec<String>,
    pub links: Vec<String>,
    start: u64,
    tags: Vec<Value>,
}

impl Span {
    fn read(span: &Value, services: &HashMap<String, String>) -> Self {
        let references = |kind: &str| {
            let all = span["references"].as_array().unwrap().iter();
            all.filter(|one| one["refType"] == kind).map(|one| text(&one["spanID"])).collect()
        };
        Self {
            id: text(&span["spanID"]),
            name: text(&span["operationName"]),
            service: services[span["processID"].as_str().unwrap()].clone(),
            parents: references("CHILD_OF"),
            links: references("FOLLOWS_FROM"),
            start: span["startTime"].as_u64().unwrap(),
            tags: span["tags"].as_array().unwrap().clone(),
        }
    }

    /// The value of a tag; null without one.
    pub fn tag(&self, key: &str) -> Value {
        self.tags.iter().find(|tag| tag["key"] == key).map_or(Value::Null, |tag| tag["value"].clone())
    }

    /// Several tags.
    pub fn tags<const N: usize>(&self, keys: [&str; N]) -> [Value; N] {
        keys.map(|key| self.tag(key))
    }

    /// Whether its status is an error.
    pub fn is_error(&self) -> bool {
        self.tag("otel.status_code") == "ERROR"
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// All spans that Jaeger has of one trace.
pub struct Trace {
    pub spans: Vec<Span>,
    pub text: String,
}

impl Trace {
    /// What is there now.
    pub fn read(jaeger: &Jaeger, id: &str) -> Option<Self> {
        let answer = jaeger.get(&format!("/api/traces/{id}")).unwrap();
        let page: Value = serde_json::from_str(&answer.body).unwrap_or_else(|_| panic!("{answer:?}"));
        let trace = page["data"].get(0)?;
        let processes = trace["processes"].as_object().unwrap().iter();
        let services = processes.map(|(id, of)| (id.clone(), text(&of["serviceName"]))).collect();
        let spans = trace["spans"].as_array().unwrap().iter();
        let mut spans: Vec<Span> = spans.map(|span| Span::read(span, &services)).collect();
        spans.sort_by_key(|span| span.start);
        Some(Self { spans, text: answer.body })
    }

    /// Waits until the trace is as it should be.
    pub async fn wait(jaeger: &Jaeger, id: &str, ready: impl Fn(&Self) -> bool) -> Self {
        eventually!(Self::read(jaeger, id).is_some_and(|trace| ready(&trace)));
        Self::read(jaeger, id).unwrap()
    }

    /// Waits until each of these is in it.
    pub async fn wait_for(jaeger: &Jaeger, id: &str, names: &[&str]) -> Self {
        Self::wait(jaeger, id, |trace| names.iter().all(|name| trace.has(name))).await
    }

    pub fn has(&self, name: &str) -> bool {
        self.spans.iter().any(|span| span.name == name)
    }

    /// All spans of a name, in the order of their beginnings.
    pub fn all(&self, name: &str) -> Vec<&Span> {
        self.spans.iter().filter(|span| span.name == name).collect()
    }

    /// The one span of a name.
    pub fn span(&self, name: &str) -> &Span {
        let all = self.all(name);
        assert_eq!(all.len(), 1, "{name} in {:?}", self.names());
        all[0]
    }

    fn names(&self) -> HashSet<&str> {
        self.spans.iter().map(|span| span.name.as_str()).collect()
    }

    /// What is directly beneath a span, in the order of their beginnings.
    pub fn beneath(&self, span: &Span) -> Vec<&Span> {
        self.spans.iter().filter(|other| other.parents.contains(&span.id)).collect()
    }

    /// The one span of a name directly beneath another.
    pub fn within(&self, span: &Span, name: &str) -> &Span {
        let found: Vec<_> = self.beneath(span).into_iter().filter(|span| span.name == name).collect();
        assert_eq!(found.len(), 1, "{name} in {}: {:?}", span.name, self.beneath(span));
        found[0]
    }

    /// What a span is a part of, the attempts to send its message left out, and how many these are.
    pub fn ancestor(&self, span: &Span) -> (&str, usize) {
        let id = &self.spans.iter().find(|other| other.id == span.id).unwrap().parents[0];
        let mut at = (id.as_str(), 0);
        while let Some(attempt) = self.spans.iter().find(|other| other.id == at.0 && other.name == ATTEMPT) {
            at = (attempt.parents[0].as_str(), at.1 + 1);
        }
        at
    }

    /// Fails unless each span is a part of the one beside it; those that go over a stream by way of one attempt.
    pub fn assert_parents(&self, parents: &[(&str, &str)]) {
        for (name, parent) in parents {
            let (ancestor, attempts) = self.ancestor(self.span(name));
            assert_eq!(ancestor, self.span(parent).id, "{name} is a part of {parent}");
            let over_a_stream = ["ratelimiter.check", "classifier.infer"].contains(name);
            assert_eq!(attempts, usize::from(over_a_stream), "{name} is behind one attempt");
        }
    }
}
