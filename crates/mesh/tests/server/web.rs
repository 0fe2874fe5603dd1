//! Browsers, compression and reflection.

use sightline_mesh::{RpcError, reason, server::WebOptions};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use tokio_stream::StreamExt;
use tonic::{
    Code,
    codec::CompressionEncoding::{Gzip, Zstd},
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::support::{Running, greeter::HelloRequest, h2, head, hello, hello_framed, said, start};

async fn edge() -> Running {
    let page = "https://app.example.com".to_owned();
    start(|setup| setup.web = Some(WebOptions { allowed_origins: vec![page] })).await
}

/// One request over HTTP/1.1, and the whole answer.
async fn http1(server: &Running, head: &str, body: &[u8]) -> String {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let head = format!("{head}\r\nhost: edge\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    let mut answer = Vec::new();
    // A reset ends an answer too.
    stream.read_to_end(&mut answer).await.ok();
    String::from_utf8_lossy(&answer).to_lowercase()
}

const CALL: &str =
    "POST /greeter.v1.Greeter/Hello HTTP/1.1\r\ncontent-type: application/grpc-web+proto\r\nx-grpc-web: 1";

#[tokio::test]
async fn a_page_may_call_by_grpc_web_over_http1_and_http2() {
    let server = edge().await;
    let head = format!("{CALL}\r\norigin: https://app.example.com");
    let answer = http1(&server, &head, &hello_framed("ann")).await;
    assert!(answer.starts_with("http/1.1 200"), "{answer}");
    assert!(answer.contains("access-control-allow-origin: https://app.example.com"), "{answer}");
    assert!(answer.contains("hello ann 0") && answer.contains("grpc-status:0"), "{answer}");
    // gRPC on the same port.
    server.greeter().await.hello(hello("ann")).await.unwrap();
}

#[tokio::test]
async fn a_page_from_elsewhere_is_not_told_that_it_may() {
    let server = edge().await;
    for (origin, allowed) in [("https://app.example.com", true), ("https://evil.example", false)] {
        let head = format!(
            "OPTIONS /greeter.v1.Greeter/Hello HTTP/1.1\r\norigin: {origin}\r\naccess-control-request-method: POST"
        );
        let answer = http1(&server, &head, b"").await;
        assert!(answer.starts_with("http/1.1 200"), "{answer}");
        assert_eq!(answer.contains("access-control-allow-origin: https"), allowed, "{answer}");
    }
}

#[tokio::test]
async fn a_page_learns_that_the_server_is_full() {
    let server = start(|setup| {
        setup.web = Some(WebOptions { allowed_origins: vec!["*".into()] });
        setup.config.max_calls = 1;
        setup.config.min_calls = 1;
        setup.config.max_queued_calls = 0;
    })
    .await;
    let mut greeter = server.greeter().await;
    tokio::spawn(async move { greeter.hello(hello("wait")).await });
    server.begun(1).await;
    let answer =
        http1(&server, &format!("{CALL}\r\norigin: https://any.example"), &hello_framed("ann")).await;
    assert!(answer.contains("grpc-status: 8") && answer.contains("grpc-status-details-bin: "), "{answer}");
    let exposed = "access-control-expose-headers: grpc-message,grpc-status,grpc-status-details-bin";
    assert!(answer.contains(exposed), "{answer}");
}

#[tokio::test]
async fn inside_there_is_no_http1() {
    let server = start(|_| {}).await;
    let answer = http1(&server, CALL, &hello_framed("ann")).await;
    assert!(!answer.contains("http/1.1"), "{answer}");
}

#[tokio::test]
async fn answers_are_compressed_for_those_who_ask_and_messages_may_be() {
    let server = start(|_| {}).await;
    for encoding in [Gzip, Zstd] {
        let greeter = server.greeter().await.accept_compressed(encoding).send_compressed(encoding);
        let request = HelloRequest { name: "echo".into(), gift: vec![7; 100_000].into() };
        let answer = greeter.clone().hello(request).await.unwrap();
        let name = answer.metadata().get("grpc-encoding").unwrap().to_str().unwrap().to_owned();
        assert_eq!(name, format!("{encoding:?}").to_lowercase());
        assert_eq!(answer.into_inner().greeting.len(), 100_000);
    }
    let plain = server.greeter().await.hello(hello("ann")).await.unwrap();
    assert!(plain.metadata().get("grpc-encoding").is_none());
}

/// 200 MB of the same byte are 20 KB of gzip.
#[tokio::test]
async fn what_unpacks_to_more_than_a_message_may_have_is_refused() {
    let server = start(|_| {}).await;
    let mut greeter = server.greeter().await.send_compressed(Gzip);
    let request = HelloRequest { name: "x".into(), gift: vec![0; 64 << 20].into() };
    let refused = greeter.hello(request).await.unwrap_err();
    assert!(refused.message().contains("size limit"), "{refused:?}");
    let error = RpcError::from_status(&refused);
    assert_eq!((error.code, error.reason.as_str()), (Code::OutOfRange, reason::MESSAGE_TOO_LARGE));
}

#[tokio::test]
async fn what_cannot_be_unpacked_is_the_fault_of_whoever_sent_it() {
    let server = start(|_| {}).await;
    let mut client = h2(server.address).await;
    for encoding in ["gzip", "zstd"] {
        let mut head = head("Greeter/Hello", None);
        head.headers_mut().insert("grpc-encoding", encoding.parse().unwrap());
        let (answer, mut body) = client.send_request(head, false).unwrap();
        body.send_data(bytes::Bytes::from_static(b"\x01\0\0\0\x08damaged!"), true).unwrap();
        let error = said(answer.await.unwrap().headers());
        assert_eq!((error.code, error.reason.as_str()), (Code::InvalidArgument, reason::MESSAGE_DAMAGED));
        client = client.ready().await.unwrap();
    }
}

#[tokio::test]
async fn reflection_shows_what_the_caller_described() {
    let server = start(|_| {}).await;
    let mut reflection = ServerReflectionClient::new(server.channel().await);
    let ask = |request| ServerReflectionRequest { host: String::new(), message_request: Some(request) };
    let asked = [
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol("greeter.v1.HelloRequest".into())),
    ];
    let answers = reflection.server_reflection_info(tokio_stream::iter(asked)).await.unwrap().into_inner();
    let answers: Vec<_> = answers.map(|answer| answer.unwrap().message_response.unwrap()).collect().await;
    let MessageResponse::ListServicesResponse(list) = &answers[0] else { panic!("{answers:?}") };
    let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
    for name in ["greeter.v1.Greeter", "greeter.v1.Party", "grpc.health.v1.Health"] {
        assert!(names.contains(&name), "{names:?}");
    }
    assert!(matches!(answers[1], MessageResponse::FileDescriptorResponse(_)));
}

#[tokio::test]
async fn a_descriptor_that_is_none_is_an_error_before_anything_is_served() {
    let server = start(|setup| setup.options.descriptors = vec![b"no descriptor"]).await;
    let error = server.task.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("Options::descriptors"), "{error}");
}

/// An unknown method gets its answer although its body is never read.
#[tokio::test]
async fn what_is_not_served_is_unimplemented() {
    let server = start(|_| {}).await;
    let mut client = h2(server.address).await;
    let (answer, _body) = client.send_request(head("Greeter/Nothing", None), false).unwrap();
    assert_eq!(answer.await.unwrap().headers()["grpc-status"], "12");
}
