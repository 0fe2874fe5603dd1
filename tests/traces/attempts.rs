//! A message that was sent twice: both attempts are beneath its call, whichever of them was answered.

use serde_json::{Value, json};
use sightline_proto::ingest::{ClassifyRequest, Frame};
use sightline_testkit::{eventually, frames};
use tonic::Request;

use crate::{
    support::{Mesh, USER, watched},
    trace::{ATTEMPT, Span, Trace, traceparent},
};

/// Long enough for a replica to start on a busy machine.
const PATIENT: [&str; 3] = ["mesh.patience=30s", "mesh.failfast_after=60s", "ingest.max_timeout=60s"];
/// One after another, and one that is stopped is not given up while the test runs.
const IN_TURN: [&str; 2] = ["mesh.balance=round_robin", "mesh.keepalive_timeout=60s"];

const INFER: &str = "sightline.classifier.v1.ClassifierService/Infer";

fn request(traceparent: &str, image: u64) -> Request<ClassifyRequest> {
    let frame = Frame { user_id: USER.into(), image: frames::mixed(image, 48).into(), ..Frame::default() };
    let mut request = Request::new(ClassifyRequest { frame: Some(frame) });
    request.metadata_mut().insert("traceparent", traceparent.parse().unwrap());
    request
}

/// The call to the classifier, and the attempts beneath it in the order in which they were sent.
async fn attempts(mesh: &Mesh, trace: &Trace) -> [Value; 3] {
    let call = trace.span("ingest.infer");
    assert_eq!(call.tags(["rpc.grpc.status_code", "rpc.method"]), [json!(0), json!("Infer")]);
    let sent = trace.beneath(call);
    assert!(sent.iter().all(|span| span.name == ATTEMPT), "{sent:?}");
    assert_eq!(sent.len(), 2, "{sent:?}");
    let served = |span: &Span| {
        let port = span.tag("server.port");
        (0..2).find(|replica| port == mesh.port("classifier", *replica)).unwrap()
    };
    let facts = |span: &Span| {
        json!({
            "replica": served(span),
            "previous": span.tag("previous-rpc-attempts"),
            "transparent": span.tag("transparent-retry"),
            "hedged": span.tag("mesh.attempt.hedged"),
            "stalled": span.tag("mesh.attempt.stalled"),
            "outcome": span.tag("mesh.attempt.outcome"),
            "code": span.tag("rpc.grpc.status_code"),
            "error": span.is_error(),
            "why": span.tag("error.type"),
        })
    };
    for span in &sent {
        let method = span.tags(["rpc.system", "rpc.service", "rpc.method", "span.kind"]);
        assert_eq!(json!(method), json!(["grpc", INFER.split_once('/').unwrap().0, "Infer", "client"]));
    }
    // Only the second one's replica did anything.
    let answered: Vec<_> = sent.iter().map(|span| trace.beneath(span).len()).collect();
    assert_eq!(answered, [0, 1]);
    [facts(sent[0]), facts(sent[1]), json!(trace.beneath(sent[1])[0].service)]
}

fn all(settings: &[&str]) -> Vec<String> {
    settings.iter().map(ToString::to_string).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_whose_replica_died_is_sent_again_and_both_attempts_are_in_its_trace() {
    let Some((jaeger, mut mesh)) = watched([1, 2, 1], &all(&PATIENT)) else { return };
    let id = "abf92f3577b34da6a3ce929d0e0e4736";
    // Nobody but the first replica is there, and it has the message when it is killed.
    mesh.member("classifier-1").server.kill();
    eventually!(mesh.ready("classifier") == 1);
    mesh.member("classifier-0").server.pause();
    let mut client = mesh.client().await;
    let answer = tokio::spawn(async move { client.classify(request(&traceparent(id), 1)).await });
    eventually!(mesh.unanswered("classifier") == 1);
    mesh.member("classifier-0").server.kill();
    mesh.member("classifier-1").server.restart().unwrap();
    answer.await.unwrap().unwrap();

    let trace = Trace::wait_for(&jaeger, id, &["ingest.classify", "classifier.infer", "stats.record"]).await;
    let [first, second, service] = attempts(&mesh, &trace).await;
    assert_eq!(
        first,
        json!({
            "replica": 0, "previous": 0, "transparent": false, "hedged": false, "stalled": first["stalled"],
            "outcome": null, "code": 14, "error": true, "why": "SERVICE_UNAVAILABLE",
        })
    );
    assert_eq!(
        second,
        json!({
            "replica": 1, "previous": 1, "transparent": false, "hedged": false, "stalled": false,
            "outcome": null, "code": 0, "error": false, "why": null,
        })
    );
    assert_eq!(service, "sightline-classifier");
    // The stream that broke is an attempt of gRPC's too, and the one that took its place another.
    let of = format!("{{grpc_method=\"{INFER}\",grpc_target=\"classifier\"");
    let broke = format!("grpc_client_attempt_duration_seconds_count{of},grpc_status=\"UNAVAILABLE\"}}");
    assert!(mesh.ingest().metric(&broke) >= 1.0);
    assert!(mesh.ingest().metric(&format!("grpc_client_attempt_started_total{of}}}")) >= 3.0);
    assert!(mesh.ingest().metric("mesh_retries_total{service=\"classifier\"}") >= 1.0);
    let messages =
        mesh.ingest().metric("mesh_message_duration_seconds_count{service=\"classifier\",status=\"OK\"}");
    assert_eq!(messages, 1.0);
    assert_eq!(mesh.ingest().metric("mesh_message_attempts_total{service=\"classifier\"}"), 2.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_stalls_goes_to_a_second_replica_and_the_trace_says_which_answer_counted() {
    let Some((jaeger, mut mesh)) = watched([1, 2, 1], &all(&IN_TURN)) else { return };
    eventually!(mesh.ready("classifier") == 2);
    mesh.member("classifier-0").server.pause();
    // One of two in turn meets the replica that is stopped; the other is answered at once.
    let mut hedged = None;
    for turn in 1..=2 {
        let id = format!("{turn}cf92f3577b34da6a3ce929d0e0e4736");
        mesh.client().await.classify(request(&traceparent(&id), turn)).await.unwrap();
        if mesh.ingest().metric("mesh_hedges_total{service=\"classifier\"}") > 0.0 {
            hedged = Some(id);
            break;
        }
    }
    let id = hedged.unwrap();
    let trace = Trace::wait_for(&jaeger, &id, &["ingest.classify", "classifier.infer", "stats.record"]).await;
    let [first, second, _] = attempts(&mesh, &trace).await;
    assert_eq!(
        first,
        json!({
            "replica": 0, "previous": 0, "transparent": false, "hedged": false, "stalled": true,
            "outcome": "lost", "code": 1, "error": false, "why": null,
        })
    );
    assert_eq!(
        second,
        json!({
            "replica": 1, "previous": 1, "transparent": false, "hedged": true, "stalled": false,
            "outcome": "won", "code": 0, "error": false, "why": null,
        })
    );
    mesh.member("classifier-0").server.resume();
}
