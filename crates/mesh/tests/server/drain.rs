//! A server that stops.

use std::time::{Duration, Instant};

use sightline_config::HumanDuration;
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::Code;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    raw::{Raw, Said},
    support::{hello, soon, start, until},
};

const MAX: u32 = (1 << 31) - 1;

#[tokio::test]
async fn a_drain_says_goaway_twice_so_that_no_call_on_its_way_is_lost() {
    let server = start(|_| {}).await;
    let mut raw = Raw::connect(server.address).await;
    assert_eq!(raw.next().await, Said::Other(4), "SETTINGS");
    // The call of another connection keeps the server from ending at once.
    let mut greeter = server.greeter().await;
    let waits = tokio::spawn(async move { greeter.hello(hello("wait")).await });
    server.begun(1).await;
    server.life.drain();
    assert_eq!(raw.rest().await, [Said::GoAway(MAX), Said::Ping, Said::GoAway(0)]);
    server.host.gate.cancel();
    waits.await.unwrap().unwrap();
    soon(server.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_long_call_and_a_stream_end_well_while_nobody_new_is_let_in() {
    let server = start(|_| {}).await;
    let mut greeter = server.greeter().await;
    let waits = tokio::spawn(async move { greeter.hello(hello("wait")).await });
    let (guests, inbound) = mpsc::channel(4);
    let mut chat = server.party().await.chat(ReceiverStream::new(inbound)).await.unwrap().into_inner();
    guests.send(hello("ann")).await.unwrap();
    assert_eq!(chat.next().await.unwrap().unwrap().greeting, "hello ann");
    server.begun(2).await;
    server.life.drain();
    assert_eq!(soon(chat.next()).await.unwrap().unwrap().greeting, "bye");
    assert!(chat.next().await.is_none(), "ended with OK");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!server.task.is_finished(), "the call is waited for");
    assert!(tokio::net::TcpStream::connect(server.address).await.is_err());
    server.host.gate.cancel();
    assert_eq!(waits.await.unwrap().unwrap().into_inner().greeting, "hello wait 0");
    soon(server.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn what_outlives_the_drain_is_cut_with_its_work() {
    let server = start(|setup| setup.drain_timeout = Duration::from_millis(300)).await;
    let mut greeter = server.greeter().await;
    let waits = tokio::spawn(async move { greeter.hello(hello("wait")).await });
    let (guests, inbound) = mpsc::channel(4);
    let mut chat = server.party().await.chat(ReceiverStream::new(inbound)).await.unwrap().into_inner();
    guests.send(hello("stay")).await.unwrap();
    chat.next().await.unwrap().unwrap();
    server.begun(2).await;
    let began = Instant::now();
    server.life.drain();
    soon(server.task).await.unwrap().unwrap();
    let took = began.elapsed();
    assert!(took >= Duration::from_millis(300) && took < Duration::from_millis(1300), "{took:?}");
    let busy = server.host.busy.load(std::sync::atomic::Ordering::SeqCst);
    assert_eq!(busy, 0, "the futures of the calls are gone when the server is");
    soon(waits).await.unwrap().unwrap_err();
    soon(chat.next()).await.unwrap().unwrap_err();
}

#[tokio::test]
async fn a_lame_duck_serves_on_while_its_health_sends_clients_away() {
    let pause = Duration::from_millis(500);
    let server = start(|setup| setup.config.lame_duck = HumanDuration(pause)).await;
    let mut health = HealthClient::new(server.channel().await);
    let asked = || HealthCheckRequest { service: "greeter.v1.Greeter".into() };
    assert_eq!(health.check(asked()).await.unwrap().into_inner().status, 1);
    let began = Instant::now();
    server.life.drain();
    until(|| server.life.is_leaving()).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(health.check(asked()).await.unwrap().into_inner().status, 2, "NOT_SERVING");
    // On a new connection too.
    server.greeter().await.hello(hello("ann")).await.unwrap();
    assert!(began.elapsed() < pause && !server.life.is_draining());
    soon(server.task).await.unwrap().unwrap();
    assert!(began.elapsed() >= pause);
    assert_eq!(health.check(asked()).await.unwrap_err().code(), Code::Unavailable);
}

#[tokio::test]
async fn a_server_that_is_dropped_serves_no_longer() {
    let server = start(|_| {}).await;
    let mut greeter = server.greeter().await;
    let waits = tokio::spawn(async move { greeter.hello(hello("wait")).await });
    server.begun(1).await;
    server.task.abort();
    soon(waits).await.unwrap().unwrap_err();
    until(|| server.host.busy.load(std::sync::atomic::Ordering::SeqCst) == 0).await;
}
