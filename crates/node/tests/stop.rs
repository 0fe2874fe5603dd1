//! A stop ends within its bounds.

#![allow(clippy::unwrap_used)] // helpers of tests: a panic is a failed test

use std::{net::SocketAddr, time::Duration};

use sightline_node::{Node, NodeConfig, Role};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

#[tokio::test(flavor = "multi_thread")]
async fn a_request_sent_by_half_does_not_hold_a_stop_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = NodeConfig::default();
    config.node.data_dir = folder.path().into();
    config.telemetry.admin_listen = sightline_config::Listen::at(ANY_PORT);
    config.ratelimiter.listen = ANY_PORT;
    let node = Node::start(config, &[Role::Ratelimiter]).await.unwrap();
    let admin = node.admin_address().unwrap();
    let mut whole = TcpStream::connect(admin).await.unwrap();
    whole.write_all(b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    whole.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    let mut half = TcpStream::connect(admin).await.unwrap();
    half.write_all(b"GET /livez HTTP/1.1\r\nhost:").await.unwrap();
    // The server has it when it answers another one that came later.
    tokio::time::sleep(Duration::from_millis(100)).await;
    tokio::time::timeout(Duration::from_secs(8), node.stop()).await.expect("it ends within its bounds");
}
