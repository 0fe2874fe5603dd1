//! One peer of many.

use std::{io, net::SocketAddr, sync::Arc};

use sightline_mesh::{
    RpcError,
    io::{BoxFuture, BoxedIo},
    reason,
    server::{Accept, Accepted, PeerIdentity, WebOptions},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Code,
    transport::{Channel, Endpoint, Uri},
};

use crate::{
    raw::{Raw, Said},
    support::{Running, greeter::party_client::PartyClient, hello, start},
};

/// Believes whatever a connection says first: a byte of length, a name.
#[derive(Debug)]
struct Believes;

impl Accept for Believes {
    fn accept<'a>(&'a self, mut io: BoxedIo, _peer: SocketAddr) -> BoxFuture<'a, io::Result<Accepted>> {
        Box::pin(async move {
            let mut name = vec![0; usize::from(io.read_u8().await?)];
            io.read_exact(&mut name).await?;
            let name = String::from_utf8(name).map_err(io::Error::other)?;
            if name == "nobody" {
                return Err(io::Error::other("nobody is not let in"));
            }
            Ok(Accepted { io, identity: Some(PeerIdentity(name.into())) })
        })
    }
}

/// A connection that says its name.
async fn named(server: &Running, name: &'static str) -> Result<Channel, tonic::transport::Error> {
    let address = server.address;
    let connect = tower::service_fn(move |_: Uri| async move {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_u8(u8::try_from(name.len()).unwrap()).await?;
        stream.write_all(name.as_bytes()).await?;
        Ok::<_, io::Error>(hyper_util::rt::TokioIo::new(stream))
    });
    Endpoint::from_static("http://host").connect_with_connector(connect).await
}

type Open = (
    tonic::Streaming<crate::support::greeter::HelloResponse>,
    mpsc::Sender<crate::support::greeter::HelloRequest>,
);

async fn chat(channel: &Channel) -> Result<Open, tonic::Status> {
    let (guests, inbound) = mpsc::channel(1);
    let chat = PartyClient::new(channel.clone()).chat(ReceiverStream::new(inbound)).await?;
    Ok((chat.into_inner(), guests))
}

#[tokio::test]
async fn a_peer_has_one_bound_over_all_its_connections() {
    let server = start(|setup| setup.config.max_calls_per_peer = 3).await;
    let (one, other) = (server.channel().await, server.channel().await);
    let mut open = vec![chat(&one).await.unwrap(), chat(&other).await.unwrap(), chat(&one).await.unwrap()];
    for channel in [&one, &other] {
        let error = RpcError::from_status(&chat(channel).await.unwrap_err());
        assert_eq!((error.code, error.reason.as_str()), (Code::ResourceExhausted, reason::TOO_MANY_CALLS));
        assert_eq!(error.message, "this caller has 3 calls open, the most that one may have");
        assert!(error.retry_after.is_some());
    }
    open.pop();
    crate::support::until(|| server.busy() == 2).await;
    chat(&other).await.unwrap();
}

#[tokio::test]
async fn whoever_is_known_by_name_is_counted_by_name_and_the_service_learns_it() {
    let server = start(|setup| {
        setup.options.accept = Arc::new(Believes);
        setup.config.max_calls_per_peer = 1;
    })
    .await;
    let (ann, bob) = (named(&server, "ann").await.unwrap(), named(&server, "bob").await.unwrap());
    let _held = chat(&ann).await.unwrap();
    let again = named(&server, "ann").await.unwrap();
    assert_eq!(RpcError::from_status(&chat(&again).await.unwrap_err()).reason, reason::TOO_MANY_CALLS);
    let mut greeter = crate::support::greeter::greeter_client::GreeterClient::new(bob);
    assert_eq!(greeter.hello(hello("x")).await.unwrap().into_inner().greeting, "hello xbob 0");
}

#[tokio::test]
async fn whoever_is_not_let_in_gets_no_answer() {
    let server = start(|setup| setup.options.accept = Arc::new(Believes)).await;
    let mut greeter = match named(&server, "nobody").await {
        Ok(channel) => crate::support::greeter::greeter_client::GreeterClient::new(channel),
        Err(_) => return,
    };
    greeter.hello(hello("x")).await.unwrap_err();
}

#[tokio::test]
async fn connections_have_a_bound_and_one_for_each_address() {
    for (at_the_edge, per_address, bound) in [(true, 2, 2), (false, 2, 2), (false, 0, 3)] {
        let server = start(|setup| {
            setup.web = at_the_edge.then(WebOptions::default);
            setup.config.max_connections = 3;
            setup.config.max_connections_per_address = per_address;
        })
        .await;
        let mut open = Vec::new();
        for _ in 0..bound {
            let mut raw = Raw::connect(server.address).await;
            assert_eq!(raw.next().await, Said::Other(4));
            open.push(raw);
        }
        assert_eq!(Raw::connect_anyway(server.address).await, Said::End);
        drop(open);
        // When they have ended others are let in.
        let mut calls = 0;
        while Raw::connect_anyway(server.address).await != Said::Other(4) {
            calls += 1;
            assert!(calls < 1000);
        }
    }
}
