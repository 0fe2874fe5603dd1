//! One frame, one trace, over three processes.

use std::collections::HashSet;

use serde_json::Value;
use sightline_proto::ingest::{
    ClassifyBatchRequest, ClassifyStreamRequest, Frame, Hello, StreamFrame,
    classify_stream_request::Message as Say,
};
use sightline_servers::{Jaeger, Postgres, Redis};
use sightline_testkit::{Process, eventually, frames};
use tonic::Request;

use crate::{
    support::{Mesh, USER, there, watched},
    trace::{ATTEMPT, SPAN, Span, Trace, traceparent},
};

/// What one frame makes, and what it is a part of.
const INSIDE: [(&str, &str); 12] = [
    ("ingest.admit", "ingest.frame"),
    ("ratelimiter.check", "ingest.admit"),
    ("ingest.decode", "ingest.frame"),
    ("ingest.infer", "ingest.frame"),
    ("classifier.infer", "ingest.infer"),
    ("classifier.queue", "classifier.infer"),
    ("classifier.inference", "classifier.infer"),
    ("classifier.batch", "classifier.inference"),
    ("ingest.record", "ingest.frame"),
    ("stats.record", "ingest.frame"),
    ("stats.commit", "stats.record"),
    ("sqlite.record", "stats.commit"),
];

/// The names in [`INSIDE`].
fn inside() -> Vec<&'static str> {
    INSIDE.iter().map(|(name, _)| *name).chain(["ingest.frame", ATTEMPT]).collect()
}

/// Fails unless a call over a stream went well, in one attempt; gives what the server made of it.
fn sent_once<'a>(trace: &'a Trace, call: &Span) -> Vec<&'a Span> {
    assert_eq!(call.tags(["span.kind", "rpc.grpc.status_code"]), [Value::from("client"), 0.into()]);
    let attempt = trace.within(call, ATTEMPT);
    let same = ["rpc.system", "rpc.service", "rpc.method", "rpc.grpc.status_code", "span.kind"];
    assert_eq!(attempt.tags(same), call.tags(same), "{}", call.name);
    assert_eq!(attempt.tag("previous-rpc-attempts"), 0);
    assert_eq!(attempt.tag("mesh.attempt.hedged"), false);
    assert_eq!(attempt.tag("server.address"), "127.0.0.1");
    assert!(attempt.tag("server.port").as_u64().is_some_and(|port| port > 0));
    trace.beneath(attempt)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_frame_is_one_trace_over_three_processes() {
    let Some((jaeger, mesh)) = watched([1; 3], &[]) else { return };
    let id = "4bf92f3577b34da6a3ce929d0e0e4736";
    let frame = mesh.classify(frames::mixed(1, 48), &traceparent(id)).await.unwrap();

    let trace = Trace::wait_for(&jaeger, id, &[&inside()[..], &["ingest.classify"]].concat()).await;
    trace.assert_parents(&INSIDE);
    trace.assert_parents(&[("ingest.frame", "ingest.classify")]);
    assert_eq!(trace.span("ingest.classify").parents, [SPAN], "the caller's own span");
    assert_eq!(trace.span("classifier.batch").links, [trace.span("classifier.infer").id.as_str()], "a link");
    for (call, answer) in
        [("ingest.admit", "ratelimiter.check"), ("ingest.infer", "classifier.infer"), ("ingest.record", "")]
    {
        let answered: Vec<_> =
            sent_once(&trace, trace.span(call)).iter().map(|span| span.name.as_str()).collect();
        assert_eq!(answered, Vec::from_iter(Some(answer).filter(|name| !name.is_empty())), "{call}");
    }
    let services = ["ingest.classify", "classifier.batch", "ratelimiter.check", "stats.commit"]
        .map(|name| trace.span(name).service.as_str());
    let together = "sightline-ratelimiter-stats";
    assert_eq!(services, ["sightline-ingest", "sightline-classifier", together, together]);
    assert_eq!(trace.span("ingest.frame").tag("sightline.frame_id"), frame.as_str());
    assert_eq!(trace.span("ingest.classify").tag("rpc.method"), "Classify");
    assert_eq!(trace.span("ingest.classify").tag("rpc.grpc.status_code"), 0);
    assert_eq!(trace.span("ratelimiter.check").tag("span.kind"), "server");
    assert_eq!(trace.span("ingest.admit").tag("span.kind"), "client");
    assert!(!trace.text.contains(USER), "{}", trace.text);
    for member in &mesh.members {
        assert!(!member.page("/metrics").contains(USER));
        assert!(!member.log().contains(USER));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_frame_of_a_stream_has_the_trace_that_its_message_names() {
    let Some((jaeger, mesh)) = watched([1; 3], &[]) else { return };
    let ids = ["0af7651916cd43dd8448eb211c80319c", "0af7651916cd43dd8448eb211c80319d"];
    let hello = Say::Hello(Hello { user_id: USER.into(), ..Hello::default() });
    let frame = |index: usize| StreamFrame {
        id: index as u64,
        frame: Some(Frame { image: frames::mixed(index as u64, 48).into(), ..Frame::default() }),
        traceparent: traceparent(ids[index]),
    };
    let said = [hello, Say::Frame(frame(0)), Say::Frame(frame(1))];
    let said = said.map(|message| ClassifyStreamRequest { message: Some(message) });
    let answers = mesh.client().await.classify_stream(tokio_stream::iter(said)).await.unwrap();
    let mut answers = answers.into_inner();
    while answers.message().await.unwrap().is_some() {}

    for id in ids {
        // A batch that both frames were in, or a commit, is a part of one of the two traces and linked to the other.
        let names = ["ingest.frame", "ratelimiter.check", "classifier.inference", "stats.record"];
        let trace = Trace::wait(&jaeger, id, |trace| {
            names.iter().all(|name| trace.has(name)) && trace.has("ingest.infer")
        })
        .await;
        let own: Vec<_> = INSIDE.into_iter().filter(|(name, _)| trace.has(name)).collect();
        trace.assert_parents(&own);
        assert_eq!(trace.span("ingest.frame").parents, [SPAN]);
        assert_eq!(trace.span("ingest.frame").tag("rpc.method"), "ClassifyStream");
        for name in names {
            trace.span(name);
        }
        for call in ["ingest.admit", "ingest.infer"] {
            assert_eq!(sent_once(&trace, trace.span(call)).len(), 1, "{call}");
        }
    }
}

/// As many as one batch call works on at once.
const FRAMES: usize = 16;

#[tokio::test(flavor = "multi_thread")]
async fn each_frame_of_a_batch_has_its_whole_way_in_the_trace_and_runs_are_linked_to_their_frames() {
    // The classifier is stopped for a moment, and not given up.
    let held = ["classifier.executors=1", "mesh.keepalive_timeout=60s"].map(String::from);
    let Some((jaeger, mut mesh)) = watched([1; 3], &held) else { return };
    let id = "9bf92f3577b34da6a3ce929d0e0e4736";
    let frame = |index: u64| Frame {
        user_id: USER.into(),
        image: frames::mixed(index, 48).into(),
        ..Frame::default()
    };
    let mut request = Request::new(ClassifyBatchRequest { frames: (0..FRAMES as u64).map(frame).collect() });
    request.metadata_mut().insert("traceparent", traceparent(id).parse().unwrap());
    // All of them are to wait for the one executor at the same time.
    mesh.member("classifier").server.pause();
    let mut client = mesh.client().await;
    let answers = tokio::spawn(async move {
        let mut answers = client.classify_batch(request).await.unwrap().into_inner();
        let mut count = 0;
        while answers.message().await.unwrap().is_some() {
            count += 1;
        }
        count
    });
    eventually!(mesh.unanswered("classifier") == FRAMES as u64);
    mesh.member("classifier").server.resume();
    assert_eq!(answers.await.unwrap(), FRAMES);

    let complete = |trace: &Trace| {
        let links = |name: &str| trace.all(name).iter().map(|span| span.links.len()).sum::<usize>();
        let each = [
            "ingest.frame",
            "ratelimiter.check",
            "classifier.infer",
            "classifier.queue",
            "classifier.inference",
            "stats.record",
        ];
        links("classifier.batch") == FRAMES
            && links("ingest.record") + trace.all("ingest.record").len() == FRAMES
            && each.iter().all(|name| trace.all(name).len() == FRAMES)
            && trace.has("ingest.classify_batch")
    };
    let trace = Trace::wait(&jaeger, id, complete).await;
    let call = trace.span("ingest.classify_batch");
    assert_eq!(call.parents, [SPAN]);
    let mut inferred = HashSet::new();
    for frame in trace.all("ingest.frame") {
        assert_eq!(frame.parents, [call.id.as_str()]);
        let checked = sent_once(&trace, trace.within(frame, "ingest.admit"));
        assert_eq!(checked[0].name, "ratelimiter.check");
        let infer = sent_once(&trace, trace.within(frame, "ingest.infer"))[0];
        trace.within(infer, "classifier.queue");
        trace.within(infer, "classifier.inference");
        trace.within(frame, "stats.record");
        inferred.insert(infer.id.as_str());
    }
    runs_are_linked(&trace, &inferred);
    // Events go to the statistics together: each frame is what their message is a part of, or linked to.
    let recorded: HashSet<&str> = trace
        .all("ingest.record")
        .iter()
        .flat_map(|span| span.parents.iter().chain(&span.links))
        .map(String::as_str)
        .collect();
    assert_eq!(recorded, trace.all("ingest.frame").iter().map(|frame| frame.id.as_str()).collect());
    for message in trace.all("ingest.record") {
        sent_once(&trace, message);
    }
}

/// Fails unless each of these spans is linked to by exactly one run of the model, and is told of it.
fn runs_are_linked(trace: &Trace, inferred: &HashSet<&str>) {
    let runs = trace.all("classifier.batch");
    assert!(runs.len() < FRAMES, "some were run together");
    let linked: Vec<&str> = runs.iter().flat_map(|run| &run.links).map(String::as_str).collect();
    assert_eq!((linked.len(), linked.into_iter().collect::<HashSet<_>>()), (FRAMES, inferred.clone()));
    for run in runs {
        assert_eq!(run.tag("sightline.batch_size"), run.links.len());
        for infer in &run.links {
            let infer = trace.spans.iter().find(|span| span.id == *infer).unwrap();
            let inference = trace.within(infer, "classifier.inference");
            let told = run.parents.contains(&inference.id) || inference.links.contains(&run.id);
            assert!(told, "an inference names its run");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_to_be_kept_is_not_kept() {
    let Some((jaeger, mesh)) = watched([1; 3], &[]) else { return };
    let id = "5bf92f3577b34da6a3ce929d0e0e4736";
    mesh.classify(frames::mixed(1, 48), &format!("00-{id}-{SPAN}-00")).await.unwrap();
    mesh.classify(frames::mixed(2, 48), "").await.unwrap();
    mesh.classify(frames::mixed(3, 48), "no traceparent at all").await.unwrap();
    let kept = "6bf92f3577b34da6a3ce929d0e0e4736";
    mesh.classify(frames::mixed(4, 48), &traceparent(kept)).await.unwrap();
    Trace::wait_for(&jaeger, kept, &inside()).await;
    assert!(Trace::read(&jaeger, id).is_none());
    let all = jaeger.get("/api/traces?service=sightline-ingest&limit=100").unwrap();
    let all: Value = serde_json::from_str(&all.body).unwrap();
    assert_eq!(all["data"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_frame_says_why_in_its_trace() {
    let Some((jaeger, mesh)) = watched([1; 3], &[]) else { return };
    let id = "7bf92f3577b34da6a3ce929d0e0e4736";
    mesh.classify(b"no image".to_vec(), &traceparent(id)).await.unwrap_err();
    let trace = Trace::wait_for(&jaeger, id, &["ingest.classify", "ingest.frame"]).await;
    assert_eq!(trace.span("ingest.classify").tag("rpc.grpc.status_code"), 3);
    assert_ne!(trace.span("ingest.frame").tag("error.type"), Value::Null);
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
    mesh.classify(frames::mixed(1, 48), &traceparent(id)).await.unwrap();
    let stores = [
        ("redis.eval", "ratelimiter.check"),
        ("redis.lease", "ingest.frame"),
        ("postgres.record", "stats.commit"),
    ];
    let inside: Vec<_> = INSIDE.into_iter().filter(|(name, _)| *name != "sqlite.record").collect();
    let names: Vec<_> = inside.iter().chain(&stores).map(|(name, _)| *name).collect();
    let trace = Trace::wait_for(&jaeger, id, &[&names[..], &["ingest.frame"]].concat()).await;
    trace.assert_parents(&inside);
    trace.assert_parents(&stores);
    assert_eq!(stores.map(|(name, _)| trace.span(name).tag("db.system")), ["redis", "redis", "postgresql"]);
    assert!(!trace.text.contains(USER) && !trace.text.contains(&postgres.url()), "{}", trace.text);
}
