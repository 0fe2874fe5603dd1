//! The servers really start, really die, and really come back.

#![allow(clippy::unwrap_used)] // a panic here is a failed test

use std::{
    fs,
    net::TcpStream,
    process::Command,
    time::{Duration, Instant},
};

use sightline_servers::{
    Error, Jaeger, Kubernetes, PgBouncer, Postgres, Prometheus, Redis, RedisCluster, there,
};

#[test]
fn a_redis_is_killed_and_comes_back_empty() {
    let Some(mut redis) = there(Redis::start(&[])) else { return };
    redis.command(&["SET", "a", "1"]).unwrap();
    assert_eq!(redis.command(&["GET", "a"]).unwrap().trim(), "1");
    redis.server.kill();
    assert!(redis.command(&["GET", "a"]).is_err());
    redis.server.restart().unwrap();
    assert_eq!(redis.command(&["GET", "a"]).unwrap().trim(), "");
}

#[test]
fn a_cluster_serves_every_slot() {
    let Some(cluster) = there(RedisCluster::start(3)) else { return };
    let said = cluster.nodes[0].command(&["CLUSTER", "INFO"]).unwrap();
    assert!(said.contains("cluster_slots_ok:16384") && said.contains("cluster_known_nodes:3"), "{said}");
}

#[test]
fn a_postgres_whose_children_are_slow_to_end_starts_again() {
    let Some(mut postgres) = there(Postgres::start(&[])) else { return };
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", postgres.server.pid())).unwrap();
    let child = children.split_whitespace().next().unwrap().to_owned();
    let signal = |signal: &str| Command::new("kill").args([signal, &child]).status().unwrap();
    signal("-STOP");
    postgres.server.kill();
    std::thread::scope(|scope| {
        let restarted = scope.spawn(|| postgres.server.restart());
        std::thread::park_timeout(Duration::from_secs(1));
        signal("-CONT");
        restarted.join().unwrap().unwrap();
    });
}

#[test]
fn a_postgres_keeps_what_was_committed_when_it_is_killed() {
    let Some(mut postgres) = there(Postgres::start(&[])) else { return };
    postgres.sql("sightline", "CREATE TABLE t (x int); INSERT INTO t VALUES (17)").unwrap();
    let Some(bouncer) = there(PgBouncer::start(&postgres, 4)) else { return };
    assert!(bouncer.url("sightline").ends_with("/sightline"));
    postgres.server.kill();
    assert!(postgres.sql("sightline", "SELECT 1").is_err());
    postgres.server.restart().unwrap();
    assert_eq!(postgres.sql("sightline", "SELECT x FROM t").unwrap(), "17");
    assert!(postgres.server.cpu() > Duration::ZERO);
}

#[test]
fn prometheus_scrapes_itself() {
    let Some(prometheus) = there(Prometheus::start(&[])) else { return };
    assert!(prometheus.get("/api/v1/query?query=up").unwrap().body.contains("success"));
}

#[test]
fn jaeger_takes_spans_and_answers_questions() {
    let Some(mut jaeger) = there(Jaeger::start()) else { return };
    let services = jaeger.get("/api/services").unwrap();
    assert!(services.status == 200 && services.body.contains("\"total\":0"), "{services:?}");
    let otlp = jaeger.endpoint().rsplit_once(':').unwrap().1.parse().unwrap();
    assert!(TcpStream::connect(("127.0.0.1", otlp)).is_ok());
    jaeger.server.kill();
    assert!(jaeger.get("/api/services").is_err());
    jaeger.server.restart().unwrap();
    assert_eq!(jaeger.get("/api/services").unwrap().status, 200);
}

#[test]
fn a_server_that_cannot_start_names_its_log() {
    let since = Instant::now();
    match Redis::start(&["--no-such-option", "x"]) {
        Err(Error::Missing { .. }) => {}
        Err(error @ Error::NotStarted { .. }) => assert!(error.to_string().contains("redis.log"), "{error}"),
        other => panic!("{other:?}"),
    }
    assert!(since.elapsed() < Duration::from_secs(30));
}

#[test]
fn kubernetes_makes_what_its_controllers_are_for() {
    let Some(kubernetes) = there(Kubernetes::start()) else { return };
    let version = kubernetes.send("GET", "/version", "").unwrap().body;
    assert!(version.contains("\"gitVersion\": \"v1."), "Helm asks for the version: {version}");
    kubernetes.kubectl(&["create", "deployment", "web", "--image=web", "--replicas=2"]).unwrap();
    let since = Instant::now();
    let pods = ["get", "pods", "-o", "name"];
    while kubernetes.kubectl(&pods).unwrap().lines().count() < 2 {
        assert!(since.elapsed() < Duration::from_secs(30), "no controller made the pods");
    }
}
