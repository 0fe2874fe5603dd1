//! Connections that grow old.

use std::time::{Duration, Instant};

use sightline_config::HumanDuration;
use sightline_mesh::client::{CallOptions, Channel, Cluster, ClusterOptions, Fixed, MethodPolicies};
use tokio::{io::AsyncReadExt, sync::mpsc};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};

use crate::{
    raw::{Raw, Said},
    support::{Setup, greeter::greeter_client::GreeterClient, hello, soon, start},
};

fn aging(setup: &mut Setup, age: u64, grace: u64) {
    setup.config.max_connection_age = HumanDuration::from_millis(age);
    setup.config.max_connection_age_grace = HumanDuration::from_millis(grace);
}

#[tokio::test]
async fn an_idle_connection_gets_goaway_at_its_age_a_tenth_more_or_less() {
    let server = start(|setup| aging(setup, 500, 5000)).await;
    let mut ages = Vec::new();
    for _ in 0..6 {
        let began = Instant::now();
        let mut raw = Raw::connect(server.address).await;
        assert_eq!(raw.rest().await.first(), Some(&Said::GoAway((1 << 31) - 1)));
        ages.push(began.elapsed());
    }
    let (least, most) = (ages.iter().min().unwrap(), ages.iter().max().unwrap());
    assert!(*least >= Duration::from_millis(450), "{ages:?}");
    assert!(*most - *least > Duration::from_millis(3), "no two are asked at once: {ages:?}");
}

/// Calls for two seconds, four at a time, and gives how many of how many failed.
async fn keep_calling<C>(greeters: impl Fn() -> GreeterClient<C>) -> (usize, usize)
where
    C: tonic::client::GrpcService<tonic::body::Body, ResponseBody = tonic::body::Body> + Send + 'static,
    C::Future: Send,
{
    let until = Instant::now() + Duration::from_secs(2);
    let mut workers = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let mut greeter = greeters();
        workers.spawn(async move {
            let (mut calls, mut errors) = (0, 0);
            while Instant::now() < until {
                errors += usize::from(greeter.hello(hello("ann")).await.is_err());
                calls += 1;
            }
            (errors, calls)
        });
    }
    workers.join_all().await.into_iter().fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
}

#[tokio::test]
async fn age_costs_a_client_nothing() {
    let server = start(|setup| aging(setup, 100, 5000)).await;
    let replicas = Fixed::from_uris("greeter", &[format!("http://{}", server.address)]).unwrap();
    let cluster = Cluster::start(ClusterOptions::new("greeter", replicas));
    // Not even for calls that may not be repeated.
    let ours = Channel::new(cluster, &MethodPolicies::default(), CallOptions::default());
    let tonics = server.channel().await;
    for (errors, calls) in [
        keep_calling(|| GreeterClient::new(ours.clone())).await,
        keep_calling(|| GreeterClient::new(tonics.clone())).await,
    ] {
        assert!(calls > 100, "{calls}");
        assert_eq!(errors, 0, "of {calls} calls");
    }
}

#[tokio::test]
async fn a_stream_on_an_old_connection_is_told_and_one_that_stays_is_cut() {
    let server = start(|setup| aging(setup, 200, 300)).await;
    let mut party = server.party().await;
    for (name, ends_well) in [("ann", true), ("stay", false)] {
        let began = Instant::now();
        let (guests, inbound) = mpsc::channel(4);
        guests.send(hello(name)).await.unwrap();
        let mut chat = party.chat(ReceiverStream::new(inbound)).await.unwrap().into_inner();
        chat.next().await.unwrap().unwrap();
        match ends_well {
            true => assert_eq!(soon(chat.next()).await.unwrap().unwrap().greeting, "bye"),
            false => assert!(soon(chat.next()).await.unwrap().is_err()),
        }
        assert!(began.elapsed() < Duration::from_secs(3), "{name}: {:?}", began.elapsed());
    }
    assert!(!server.life.is_leaving() && !server.task.is_finished(), "the server goes on");
}

#[tokio::test]
async fn whoever_says_nothing_is_sent_away() {
    let server = start(|setup| setup.config.handshake_timeout = HumanDuration::from_millis(200)).await;
    let mut silent = tokio::net::TcpStream::connect(server.address).await.unwrap();
    soon(silent.read_to_end(&mut Vec::new())).await.unwrap();
    // One that has spoken may be idle.
    let mut greeter = server.greeter().await;
    tokio::time::sleep(Duration::from_millis(400)).await;
    greeter.hello(hello("ann")).await.unwrap();
}
