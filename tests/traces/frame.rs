//! One frame, one trace, over three processes.

use std::collections::HashMap;

use serde_json::Value;
use sightline_proto::ingest::{
    ClassifyStreamRequest, Frame, Hello, StreamFrame, classify_stream_request::Message as Say,
};
use sightline_servers::{Jaeger, Postgres, Redis};
use sightline_testkit::{Process, eventually, frames};

use crate::support::{Mesh, USER, there};

/// One sending of a message over a stream; what the server does with it is a part of it.
const ATTEMPT: &str = "stream.attempt";
const SPAN: &str = "00f067aa0ba902b7";

/// A trace as the query API shows it.
struct Trace {
    spans: HashMap<String, Value>,
    /// Spans of [`ATTEMPT`].
    attempts: Vec<Value>,
    services: HashMap<String, String>,
    text: String,
}

impl Trace {
    fn read(jaeger: &Jaeger, id: &str) -> Option<Self> {
        let answer = jaeger.get(&format!("/api/traces/{id}")).unwrap();
        let page: Value = serde_json::from_str(&answer.body).unwrap_or_else(|_| panic!("{answer:?}"));
        let trace = page["data"].get(0)?.clone();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let (attempts, spans): (Vec<Value>, Vec<Value>) = trace["spans"]
            .as_array()
            .unwrap()
            .iter()
            .cloned()
            .partition(|span| span["operationName"] == ATTEMPT);
        let processes = trace["processes"].as_object().unwrap().iter();
        Some(Self {
            attempts,
            spans: spans.into_iter().map(|span| (text(&span["operationName"]), span)).collect(),
            services: processes.map(|(id, of)| (id.clone(), text(&of["serviceName"]))).collect(),
            text: answer.body,
        })
    }

    /// Waits until the trace has this many spans.
    async fn wait(jaeger: &Jaeger, id: &str, spans: usize) -> Self {
        eventually!(
            Self::read(jaeger, id).is_some_and(|trace| trace.spans.len() + trace.attempts.len() >= spans)
        );
        Self::read(jaeger, id).unwrap()
    }

    fn id(&self, name: &str) -> &str {
        self.span(name)["spanID"].as_str().unwrap()
    }

    fn span(&self, name: &str) -> &Value {
        self.spans.get(name).unwrap_or_else(|| panic!("no {name} in {:?}", self.spans.keys()))
    }

    fn service(&self, name: &str) -> &str {
        &self.services[self.span(name)["processID"].as_str().unwrap()]
    }

    fn references(&self, name: &str, kind: &str) -> Vec<&str> {
        let all = self.span(name)["references"].as_array().unwrap().iter();
        all.filter(|one| one["refType"] == kind).map(|one| one["spanID"].as_str().unwrap()).collect()
    }

    fn tag(&self, name: &str, key: &str) -> Value {
        let tags = self.span(name)["tags"].as_array().unwrap();
        tags.iter().find(|tag| tag["key"] == key).map_or(Value::Null, |tag| tag["value"].clone())
    }

    /// Fails unless each span is a part of the one beside it.
    fn assert_parents(&self, parents: &[(&str, &str)]) {
        for (name, parent) in parents {
            let (ancestor, attempts) = self.ancestor(name);
            assert_eq!(ancestor, self.id(parent), "{name} is a part of {parent}");
            let over_a_stream = ["ratelimiter.check", "classifier.infer"].contains(name);
            assert_eq!(attempts, usize::from(over_a_stream), "{name} is behind one attempt");
        }
    }

    /// What a span is a part of, the attempts to send its message left out, and how many these are.
    fn ancestor(&self, name: &str) -> (&str, usize) {
        let mut id = self.references(name, "CHILD_OF")[0];
        let mut attempts = 0;
        while let Some(attempt) = self.attempts.iter().find(|attempt| attempt["spanID"] == id) {
            id = attempt["references"][0]["spanID"].as_str().unwrap();
            attempts += 1;
        }
        (id, attempts)
    }
}

const INSIDE: [(&str, &str); 11] = [
    ("ingest.admit", "ingest.frame"),
    ("ratelimiter.check", "ingest.admit"),
    ("ingest.decode", "ingest.frame"),
    ("ingest.infer", "ingest.frame"),
    ("classifier.infer", "ingest.infer"),
    ("classifier.queue", "classifier.infer"),
    ("classifier.inference", "classifier.infer"),
    ("classifier.batch", "classifier.inference"),
    ("stats.record", "ingest.frame"),
    ("stats.commit", "stats.record"),
    ("sqlite.record", "stats.commit"),
];

fn watched(replicas: usize) -> Option<(Jaeger, Mesh)> {
    let jaeger = there(Jaeger::start())?;
    let endpoint = format!("telemetry.otlp_endpoint={}", jaeger.endpoint());
    let mesh = Mesh::start(replicas, &[endpoint, "telemetry.otlp_sample=0".into()])?;
    Some((jaeger, mesh))
}

#[tokio::test(flavor = "multi_thread")]
async fn one_frame_is_one_trace_over_three_processes() {
    let Some((jaeger, mesh)) = watched(1) else { return };
    let id = "4bf92f3577b34da6a3ce929d0e0e4736";
    let frame = mesh.classify(frames::mixed(1, 48), &format!("00-{id}-{SPAN}-01")).await.unwrap();

    let trace = Trace::wait(&jaeger, id, INSIDE.len() + 4).await;
    trace.assert_parents(&INSIDE);
    trace.assert_parents(&[("ingest.frame", "ingest.classify")]);
    assert_eq!(trace.references("ingest.classify", "CHILD_OF"), [SPAN], "the caller's own span");
    assert_eq!(
        trace.references("classifier.batch", "FOLLOWS_FROM"),
        [trace.id("classifier.infer")],
        "a link"
    );
    let services = ["ingest.classify", "classifier.batch", "ratelimiter.check", "stats.commit"]
        .map(|name| trace.service(name));
    let together = "sightline-ratelimiter-stats";
    assert_eq!(services, ["sightline-ingest", "sightline-classifier", together, together]);
    assert_eq!(trace.tag("ingest.frame", "sightline.frame_id"), frame.as_str());
    assert_eq!(trace.tag("ingest.classify", "rpc.method"), "Classify");
    assert_eq!(trace.tag("ingest.classify", "rpc.grpc.status_code"), 0);
    assert_eq!(trace.tag("ratelimiter.check", "span.kind"), "server");
    assert_eq!(trace.tag("ingest.admit", "span.kind"), "client");
    assert!(!trace.text.contains(USER), "{}", trace.text);
    for member in &mesh.members {
        assert!(!member.page("/metrics").contains(USER));
        assert!(!member.log().contains(USER));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_frame_of_a_stream_has_the_trace_that_its_message_names() {
    let Some((jaeger, mesh)) = watched(1) else { return };
    let ids = ["0af7651916cd43dd8448eb211c80319c", "0af7651916cd43dd8448eb211c80319d"];
    let hello = Say::Hello(Hello { user_id: USER.into(), ..Hello::default() });
    let frame = |index: usize| StreamFrame {
        id: index as u64,
        frame: Some(Frame { image: frames::mixed(index as u64, 48).into(), ..Frame::default() }),
        traceparent: format!("00-{}-{SPAN}-01", ids[index]),
    };
    let said = [hello, Say::Frame(frame(0)), Say::Frame(frame(1))];
    let said = said.map(|message| ClassifyStreamRequest { message: Some(message) });
    let answers = mesh.client().await.classify_stream(tokio_stream::iter(said)).await.unwrap();
    let mut answers = answers.into_inner();
    while answers.message().await.unwrap().is_some() {}

    for id in ids {
        // A batch that both frames were in, or a commit, is a part of one of the two traces and linked to the other.
        let trace = Trace::wait(&jaeger, id, INSIDE.len()).await;
        let own: Vec<_> = INSIDE.into_iter().filter(|(name, _)| trace.spans.contains_key(*name)).collect();
        trace.assert_parents(&own);
        assert_eq!(trace.references("ingest.frame", "CHILD_OF"), [SPAN]);
        assert_eq!(trace.tag("ingest.frame", "rpc.method"), "ClassifyStream");
        for name in ["ratelimiter.check", "classifier.inference", "stats.record"] {
            trace.span(name);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_to_be_kept_is_not_kept() {
    let Some((jaeger, mesh)) = watched(1) else { return };
    let id = "5bf92f3577b34da6a3ce929d0e0e4736";
    mesh.classify(frames::mixed(1, 48), &format!("00-{id}-{SPAN}-00")).await.unwrap();
    mesh.classify(frames::mixed(2, 48), "").await.unwrap();
    mesh.classify(frames::mixed(3, 48), "no traceparent at all").await.unwrap();
    let kept = "6bf92f3577b34da6a3ce929d0e0e4736";
    mesh.classify(frames::mixed(4, 48), &format!("00-{kept}-{SPAN}-01")).await.unwrap();
    Trace::wait(&jaeger, kept, INSIDE.len() + 4).await;
    assert!(Trace::read(&jaeger, id).is_none());
    let all = jaeger.get("/api/traces?service=sightline-ingest&limit=100").unwrap();
    let all: Value = serde_json::from_str(&all.body).unwrap();
    assert_eq!(all["data"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_frame_says_why_in_its_trace() {
    let Some((jaeger, mesh)) = watched(1) else { return };
    let id = "7bf92f3577b34da6a3ce929d0e0e4736";
    mesh.classify(b"no image".to_vec(), &format!("00-{id}-{SPAN}-01")).await.unwrap_err();
    let trace = Trace::wait(&jaeger, id, 2).await;
    assert_eq!(trace.tag("ingest.classify", "rpc.grpc.status_code"), 3);
    assert_ne!(trace.tag("ingest.frame", "error.type"), Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_of_real_stores_are_in_the_trace() {
    let Some(jaeger) = there(Jaeger::start()) else { return };
    let Some(redis) = there(Redis::start(&[])) else { return };
    let Some(postgres) = there(Postgres::start(&[])) else { return };
    let Some(mut migrate) = Process::command() else { return };
    let database = format!("stats.postgres_url={}", postgres.url());
    assert!(migrate.args(["migrate", "--set", &database]).status().unwrap().success());
    let settings = [
        format!("telemetry.otlp_endpoint={}", jaeger.endpoint()),
        database,
        format!("ratelimiter.redis_url={}", redis.url()),
        format!("ingest.cache_redis_url={}", redis.url()),
    ];
    let Some(mesh) = Mesh::start(1, &settings) else { return };
    let id = "8bf92f3577b34da6a3ce929d0e0e4736";
    mesh.classify(frames::mixed(1, 48), &format!("00-{id}-{SPAN}-01")).await.unwrap();
    let stores = [
        ("redis.eval", "ratelimiter.check"),
        ("redis.lease", "ingest.frame"),
        ("postgres.record", "stats.commit"),
    ];
    let trace = Trace::wait(&jaeger, id, INSIDE.len() + 4).await;
    trace.assert_parents(&INSIDE[..10]);
    trace.assert_parents(&stores);
    assert_eq!(stores.map(|(name, _)| trace.tag(name, "db.system")), ["redis", "redis", "postgresql"]);
    assert!(!trace.text.contains(USER) && !trace.text.contains(&postgres.url()), "{}", trace.text);
}
