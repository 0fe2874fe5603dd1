//! The rate limiter as its callers see it: a real server on loopback and the generated client.
#![allow(clippy::unwrap_used)] // clippy.toml allows it in tests, but does not see the helpers of one as such

use std::{collections::HashMap, io::Write, time::Duration};

use sightline_mesh::{
    RpcError,
    auth::Guard,
    server::{Lifecycle, Server},
};
use sightline_proto::ratelimiter::{
    CheckRequest, CheckResponse, CheckStreamRequest, check_stream_response::Result as Answer,
    rate_limiter_service_client::RateLimiterServiceClient,
};
use sightline_ratelimiter::{Deps, RateLimiter, RateLimiterConfig, build};
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::{Code, service::Routes, transport::Channel};

const RULES: &str = r#"
[[rule]]
name = "user-interval"
keys = ["user"]
limit = 1
per = "1h"
burst = 1

[[rule]]
name = "ip-hour"
keys = ["ip"]
limit = 5000
per = "1h"
burst = 5000
"#;

/// No test waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(30);

struct Running {
    client: RateLimiterServiceClient<Channel>,
    lifecycle: Lifecycle,
    server: JoinHandle<Result<(), sightline_mesh::server::ServeError>>,
}

/// Starts the rate limiter as the node does.
async fn start() -> Running {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(RULES.as_bytes()).unwrap();
    let config =
        RateLimiterConfig { rules: file.path().to_str().unwrap().into(), ..RateLimiterConfig::default() };
    let lifecycle = Lifecycle::default();
    let limiter = build(&config, Deps { lifecycle: lifecycle.clone(), ..Deps::default() }).unwrap();
    let listener = sightline_mesh::server::bind("ratelimiter.listen", "127.0.0.1:0".parse().unwrap());
    let listener = listener.await.unwrap();
    let address = listener.local_addr().unwrap();
    let guarded = Guard::new(None, "service").protect(limiter.into_service());
    let server = Server {
        name: "ratelimiter",
        listener,
        routes: Routes::new(guarded),
        service_names: vec![RateLimiter::SERVICE_NAME],
        web: None,
        drain_timeout: config.drain_timeout.0,
    };
    let server = tokio::spawn(server.run(lifecycle.clone()));
    let client = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    let client = RateLimiterServiceClient::new(client);
    Running { client, lifecycle, server }
}

fn check(keys: &[(&str, &str)]) -> CheckRequest {
    let keys = keys.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    CheckRequest { tenant: String::new(), keys: keys.collect(), hits: 0 }
}

fn seconds(duration: Option<prost_types::Duration>) -> f64 {
    Duration::try_from(duration.expect("set")).unwrap().as_secs_f64()
}

#[tokio::test]
async fn a_check_is_answered_with_every_rule_and_when_to_come_back() {
    let mut running = start().await;
    let both = check(&[("user", "u"), ("ip", "::1")]);
    let first = running.client.check(both.clone()).await.unwrap().into_inner();
    assert!(first.allowed && first.refused_by.is_empty() && first.retry_after.is_none());
    let rules: Vec<_> =
        first.rules.iter().map(|rule| (rule.rule.as_str(), rule.limit, rule.remaining)).collect();
    assert_eq!(rules, [("user-interval", 1, 0), ("ip-hour", 5000, 4999)]);

    let second = running.client.check(both).await.unwrap().into_inner();
    assert!(!second.allowed);
    assert_eq!(second.refused_by, "user-interval");
    assert_eq!(second.rules[1].remaining, 4999, "a refused check charges nothing");
    assert_eq!(
        second.retry_after, second.rules[0].reset_after,
        "with a burst of 1 they are the same point in time"
    );
    let waited = 3600.0 - seconds(second.retry_after);
    assert!((0.0..30.0).contains(&waited), "{waited}");

    let unlimited = running.client.check(check(&[("device", "d")])).await.unwrap().into_inner();
    assert_eq!(unlimited, CheckResponse { allowed: true, ..CheckResponse::default() });
}

#[tokio::test]
async fn ten_thousand_pipelined_checks_are_answered_in_order_and_exactly() {
    let mut running = start().await;
    let questions = (0..10_000).map(|id| CheckStreamRequest {
        id,
        check: Some(check(&[("ip", "::1")])),
        ..CheckStreamRequest::default()
    });
    let answers = running.client.check_stream(tokio_stream::iter(questions)).await.unwrap().into_inner();
    let answers: Vec<_> =
        tokio::time::timeout(PATIENCE, answers.collect::<Result<_, _>>()).await.unwrap().unwrap();
    assert!(answers.iter().map(|answer| answer.id).eq(0..10_000), "10,000 answers in order");
    let allowed =
        |answer: &Option<Answer>| matches!(answer, Some(Answer::Response(response)) if response.allowed);
    let count = answers.iter().filter(|answer| allowed(&answer.result)).count();
    // One more comes every 0.72 s while the test runs.
    assert!((5000..5060).contains(&count), "{count} of a burst of 5,000");
}

#[tokio::test]
async fn a_bad_item_gets_an_error_and_the_stream_goes_on() {
    let mut running = start().await;
    let good = || Some(check(&[("ip", "::1")]));
    let questions = [
        CheckStreamRequest { id: 7, check: None, ..CheckStreamRequest::default() },
        CheckStreamRequest { id: 8, check: Some(check(&[("user", "")])), ..CheckStreamRequest::default() },
        CheckStreamRequest { id: 9, check: good(), ..CheckStreamRequest::default() },
    ];
    let answers = running.client.check_stream(tokio_stream::iter(questions)).await.unwrap().into_inner();
    let answers: Vec<_> = answers
        .map(|answer| answer.map(|answer| (answer.id, answer.result.unwrap())))
        .collect::<Result<_, _>>()
        .await
        .unwrap();
    let reason = |answer: &Answer| match answer {
        Answer::Error(error) => (error.code, error.reason.clone()),
        Answer::Response(response) => (0, response.allowed.to_string()),
        other => panic!("nobody said hello: {other:?}"),
    };
    let reasons: Vec<_> = answers.iter().map(|(id, answer)| (*id, reason(answer))).collect();
    let invalid = Code::InvalidArgument as i32;
    assert_eq!(
        reasons,
        [
            (7, (invalid, "CHECK_MISSING".to_owned())),
            (8, (invalid, "KEY_VALUE_EMPTY".to_owned())),
            (9, (0, "true".to_owned())),
        ]
    );
}

#[tokio::test]
async fn bad_checks_are_refused_by_field() {
    let mut running = start().await;
    let many: HashMap<_, _> = (0..17).map(|key| (key.to_string(), "v".to_owned())).collect();
    let long = |length: usize| "é".repeat(length);
    let cases = [
        (
            CheckRequest { tenant: long(129), ..check(&[]) },
            "TENANT_TOO_LONG",
            "`tenant` has more than 128 characters",
        ),
        (CheckRequest { keys: many, ..check(&[]) }, "TOO_MANY_KEYS", "`keys` has 17 entries; at most 16"),
        (
            check(&[(&long(65), "v")]),
            "KEY_NAME_INVALID",
            "`keys` has a key that is empty or longer than 64 characters",
        ),
        (
            check(&[("", "v")]),
            "KEY_NAME_INVALID",
            "`keys` has a key that is empty or longer than 64 characters",
        ),
        (
            check(&[("user", "")]),
            "KEY_VALUE_EMPTY",
            "`keys[\"user\"]` is empty; leave out a key whose value is not known",
        ),
        (
            check(&[("user", &long(257))]),
            "KEY_VALUE_TOO_LONG",
            "`keys[\"user\"]` has more than 256 characters",
        ),
        (
            CheckRequest { hits: 2, ..check(&[("user", "u")]) },
            "HITS_OVER_BURST",
            "`hits` is 2; rule \"user-interval\" never lets more than 1 come at once",
        ),
    ];
    for (request, reason, message) in cases {
        let status = running.client.check(request).await.unwrap_err();
        let error = RpcError::from_status(&status);
        assert_eq!((error.code, error.reason.as_str()), (Code::InvalidArgument, reason));
        assert_eq!(error.message, message);
    }
    let longest = CheckRequest { tenant: long(128), ..check(&[("user", &long(256)), (&long(64), "v")]) };
    assert!(
        running.client.check(longest).await.unwrap().into_inner().allowed,
        "the limits themselves are fine"
    );
}

#[tokio::test]
async fn a_drain_ends_streams_well_and_the_server_with_them() {
    let mut running = start().await;
    let (questions, receiver) = mpsc::channel(4);
    let answers = running.client.check_stream(ReceiverStream::new(receiver)).await.unwrap();
    let mut answers = answers.into_inner();
    questions
        .send(CheckStreamRequest {
            id: 1,
            check: Some(check(&[("ip", "::1")])),
            ..CheckStreamRequest::default()
        })
        .await
        .unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().id, 1);

    running.lifecycle.drain();
    let end = tokio::time::timeout(PATIENCE, answers.message()).await.expect("ends");
    assert!(end.expect("with status OK").is_none());
    drop((questions, answers, running.client));
    // Well within the 10 s after which open calls would be cut.
    tokio::time::timeout(Duration::from_secs(5), running.server).await.expect("stops").unwrap().unwrap();
}
