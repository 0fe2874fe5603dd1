//! A server that has enough to do.

use std::{sync::atomic::Ordering, time::Duration};

use bytes::Bytes;
use h2::client::SendRequest;
use sightline_mesh::{
    RpcError,
    auth::{AuthConfig, Guard, Verifier},
    reason,
    server::WebOptions,
};
use tokio::{sync::mpsc, task::JoinSet};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;

use crate::support::{Running, Setup, h2, head, hello, hello_framed, said, soon, start};

fn places(setup: &mut Setup, calls: usize, queued: usize) {
    setup.config.max_calls = calls;
    setup.config.min_calls = 1;
    setup.config.max_queued_calls = queued;
}

/// A server whose only place is taken until its gate opens.
async fn full() -> Running {
    let server = start(|setup| {
        places(setup, 1, 0);
        setup.web = Some(WebOptions::default());
    })
    .await;
    let mut greeter = server.greeter().await;
    tokio::spawn(async move { greeter.hello(hello("wait")).await });
    server.begun(1).await;
    server
}

#[tokio::test]
async fn a_call_too_many_is_answered_by_its_head_alone() {
    let server = full().await;
    let mut client = h2(server.address).await;
    // Nothing of the body is sent.
    let (answer, _body) = client.send_request(head("Greeter/Hello", None), false).unwrap();
    let answer = soon(answer).await.unwrap();
    assert!(answer.body().is_end_stream(), "trailers only");
    let error = said(answer.headers());
    assert_eq!((error.code, error.reason.as_str()), (Code::ResourceExhausted, reason::OVERLOADED));
    assert_eq!(error.message, "the server works on 1 calls, and as many wait as may");
    let after = error.retry_after.unwrap();
    assert!((250..=750).contains(&after.as_millis()), "{after:?}");
    assert_eq!(answer.headers()["grpc-retry-pushback-ms"], after.as_millis().to_string().as_str());
    assert_eq!(server.host.begun.load(Ordering::SeqCst), 1);
    // When the place is free the next call has it.
    server.host.gate.cancel();
    let mut greeter = server.greeter().await;
    crate::support::until(|| server.busy() == 0).await;
    greeter.hello(hello("ann")).await.unwrap();
}

#[tokio::test]
async fn a_full_server_still_answers_for_its_health_and_takes_streams() {
    let server = full().await;
    let mut health = HealthClient::new(server.channel().await);
    for _ in 0..3 {
        health.check(HealthCheckRequest::default()).await.unwrap();
    }
    let mut chats = Vec::new();
    for _ in 0..3 {
        let (guests, inbound) = mpsc::channel(1);
        guests.send(hello("ann")).await.unwrap();
        let mut party = server.party().await;
        let mut chat = soon(party.chat(ReceiverStream::new(inbound))).await.unwrap().into_inner();
        soon(chat.next()).await.unwrap().unwrap();
        chats.push((guests, chat));
    }
    soon(server.greeter().await.hello(hello("ann"))).await.unwrap_err();
}

#[tokio::test]
async fn streams_have_a_bound_of_their_own() {
    let server = start(|setup| setup.config.max_streams = 2).await;
    let mut party = server.party().await;
    let mut open = Vec::new();
    for _ in 0..2 {
        let (guests, inbound) = mpsc::channel(1);
        open.push((soon(party.chat(ReceiverStream::new(inbound))).await.unwrap(), guests));
    }
    let (_guests, inbound) = mpsc::channel(1);
    let refused = soon(party.chat(ReceiverStream::new(inbound))).await.unwrap_err();
    let error = RpcError::from_status(&refused);
    assert_eq!((error.code, error.reason.as_str()), (Code::ResourceExhausted, reason::OVERLOADED));
    assert!(error.retry_after.is_some());
    open.pop();
    crate::support::until(|| server.busy() == 1).await;
    let (_guests, inbound) = mpsc::channel(1);
    soon(party.chat(ReceiverStream::new(inbound))).await.unwrap();
}

#[tokio::test]
async fn a_deadline_ends_calls_and_streams_whose_clients_do_not() {
    let server = start(|_| {}).await;
    let mut client = h2(server.address).await;
    let (answer, mut body) = client.send_request(head("Greeter/Hello", Some("150m")), false).unwrap();
    body.send_data(hello_framed("wait"), true).unwrap();
    let answer = soon(answer).await.unwrap();
    assert_eq!(said(answer.headers()).reason, reason::DEADLINE_EXCEEDED);

    let (answer, mut body) = client.send_request(head("Party/Chat", Some("150m")), false).unwrap();
    body.send_data(hello_framed("stay"), false).unwrap();
    let mut answers = answer.await.unwrap().into_body();
    while let Some(data) = soon(answers.data()).await {
        data.unwrap();
    }
    let trailers = answers.trailers().await.unwrap().unwrap();
    assert_eq!(said(&trailers).reason, reason::DEADLINE_EXCEEDED);
    crate::support::until(|| server.busy() == 0).await;
}

/// Two places of 50 ms do 40 calls a second; they are asked for 200.
#[tokio::test(flavor = "multi_thread")]
async fn at_five_times_the_capacity_what_is_refused_was_not_begun() {
    let server = start(|setup| places(setup, 2, 16)).await;
    let greeter = server.greeter().await;
    let mut calls = JoinSet::new();
    let mut ticks = tokio::time::interval(Duration::from_millis(5));
    for _ in 0..400 {
        ticks.tick().await;
        let mut greeter = greeter.clone();
        calls.spawn(async move { greeter.hello(hello("work")).await });
    }
    let (good, refused): (Vec<_>, Vec<_>) = calls.join_all().await.into_iter().partition(Result::is_ok);
    // How many were good depends on what else the machine does: a simulation in `limit::gate` has the figure.
    assert!(good.len() >= 10 && refused.len() > 200, "{} of 80, {} refused", good.len(), refused.len());
    assert_eq!(server.host.begun.load(Ordering::SeqCst), good.len());
    for refusal in refused {
        assert_eq!(RpcError::from_status(&refusal.unwrap_err()).reason, reason::OVERLOADED);
    }
}

/// Makes calls that begin with `begun` and are answered by `reason`, and sends the rest of their bodies after that: what
/// still comes of those must not end the connection (at the edge h2 takes 1,024 such frames).
async fn late_bodies(server: &Running, begun: &'static [u8], reason: &str) -> SendRequest<Bytes> {
    let mut client = h2(server.address).await;
    for _ in 0..1500 {
        let (answer, mut body) = client.send_request(head("Greeter/Hello", None), false).unwrap();
        if !begun.is_empty() {
            body.send_data(begun.into(), false).unwrap();
        }
        assert_eq!(said(soon(answer).await.unwrap().headers()).reason, reason);
        // The client learns of it too late.
        body.send_data(hello_framed("ann"), true).unwrap();
        client = client.ready().await.unwrap();
    }
    client
}

#[tokio::test]
async fn a_connection_survives_thousands_of_refusals() {
    let server = full().await;
    let mut client = late_bodies(&server, b"", reason::OVERLOADED).await;
    server.host.gate.cancel();
    crate::support::until(|| server.busy() == 0).await;
    let (answer, mut body) = client.send_request(head("Greeter/Hello", None), false).unwrap();
    body.send_data(hello_framed("ann"), true).unwrap();
    assert!(answer.await.unwrap().headers().get("grpc-status").is_none());
}

/// What a guard or a size limit turns away has been let in before, and its body is not read either.
#[tokio::test]
async fn a_connection_survives_thousands_of_refusals_from_behind_the_gate() {
    let folder = tempfile::tempdir().unwrap();
    let secret = folder.path().join("secret");
    std::fs::write(&secret, "of all the secrets this is the longest").unwrap();
    let config = AuthConfig { secret_file: Some(secret), ..AuthConfig::default() };
    let verifier = Verifier::from_config(&config).unwrap();
    let server = start(|setup| {
        setup.web = Some(WebOptions::default());
        setup.guard = Guard::new(verifier, "greet");
    })
    .await;
    late_bodies(&server, b"", reason::TOKEN_MISSING).await;
    let server = start(|setup| setup.web = Some(WebOptions::default())).await;
    // A message of 2 GiB, by its head.
    late_bodies(&server, b"\0\x7f\xff\xff\xff", reason::MESSAGE_TOO_LARGE).await;
}

#[tokio::test]
async fn watches_of_health_and_reflection_have_a_bound_of_their_own_and_count_for_their_peer() {
    type Bound = fn(&mut Setup);
    let bounds: [(Bound, &str); 2] = [
        (|setup| setup.config.max_watches = 2, reason::OVERLOADED),
        (|setup| setup.config.max_calls_per_peer = 2, reason::TOO_MANY_CALLS),
    ];
    for (bound, expected) in bounds {
        let server = start(bound).await;
        let channel = server.channel().await;
        let mut health = HealthClient::new(channel.clone());
        let mut reflection = ServerReflectionClient::new(channel);
        let watch = health.watch(HealthCheckRequest::default()).await.unwrap();
        let shown = reflection.server_reflection_info(tokio_stream::pending()).await.unwrap();
        let refusals = [
            health.watch(HealthCheckRequest::default()).await.err().unwrap(),
            reflection.server_reflection_info(tokio_stream::pending()).await.err().unwrap(),
        ];
        for refused in refusals {
            let error = RpcError::from_status(&refused);
            assert_eq!((error.code, error.reason.as_str()), (Code::ResourceExhausted, expected));
            assert!(error.retry_after.is_some());
        }
        health.check(HealthCheckRequest::default()).await.unwrap();
        drop((watch, shown));
        let again = async {
            while health.watch(HealthCheckRequest::default()).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        soon(again).await;
    }
    // Streams of the services do not count as such.
    let server = start(|setup| setup.config.max_watches = 1).await;
    let _watch =
        HealthClient::new(server.channel().await).watch(HealthCheckRequest::default()).await.unwrap();
    let mut party = server.party().await;
    soon(party.chat(tokio_stream::pending())).await.unwrap();
}
