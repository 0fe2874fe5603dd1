//! A stop ends within its bounds.

#![allow(clippy::unwrap_used)] // helpers of tests: a panic is a failed test

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use sightline_node::{Node, NodeConfig, Role};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

const ANY_PORT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

async fn get(admin: SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(admin).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_of_several_roles_is_a_lame_duck_once_and_says_so_to_probes() {
    const LAME_DUCK: Duration = Duration::from_secs(2);
    let folder = tempfile::tempdir().unwrap();
    let mut config = NodeConfig::default();
    config.node.data_dir = folder.path().into();
    config.telemetry.admin_listen = sightline_config::Listen::at(ANY_PORT);
    config.server.lame_duck = sightline_config::HumanDuration(LAME_DUCK);
    (config.ratelimiter.listen, config.stats.listen) = (ANY_PORT, ANY_PORT);
    let node = Node::start(config, &[Role::Ratelimiter, Role::Stats]).await.unwrap();
    let admin = node.admin_address().unwrap();
    assert!(get(admin, "/servingz").await.starts_with("HTTP/1.1 200"));

    // A stop is a lame duck's only once the server's task has begun, which takes a moment in a debug build.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let since = Instant::now();
    let stopping = tokio::spawn(node.stop());
    tokio::time::sleep(Duration::from_millis(200)).await;
    let answer = get(admin, "/servingz").await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("it was asked to stop\n"), "{answer}");
    assert!(get(admin, "/livez").await.starts_with("HTTP/1.1 200"), "a stop is no reason for a restart");
    stopping.await.unwrap();
    let took = since.elapsed();
    assert!((LAME_DUCK..2 * LAME_DUCK).contains(&took), "{took:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_sent_by_half_does_not_hold_a_stop_back() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = NodeConfig::default();
    config.node.data_dir = folder.path().into();
    config.telemetry.admin_listen = sightline_config::Listen::at(ANY_PORT);
    config.ratelimiter.listen = ANY_PORT;
    let node = Node::start(config, &[Role::Ratelimiter]).await.unwrap();
    let admin = node.admin_address().unwrap();
    let answer = get(admin, "/livez").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");

    let mut half = TcpStream::connect(admin).await.unwrap();
    half.write_all(b"GET /livez HTTP/1.1\r\nhost:").await.unwrap();
    // The server has it when it answers another one that came later.
    tokio::time::sleep(Duration::from_millis(100)).await;
    tokio::time::timeout(Duration::from_secs(8), node.stop()).await.expect("it ends within its bounds");
}
