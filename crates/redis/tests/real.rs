//! Links to real servers that stop, hang and come back.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // a panic here is a failed test

use std::{
    fs,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use sightline_config::ServerUrl;
use sightline_redis::{Link, LinkError, Options, Script, Topology, Value, cmd};
use sightline_servers::{Home, Redis, RedisCluster, Result, Server, Spec, find, free_port, there};
use sightline_telemetry::dependencies::Dependencies;

/// No test waits longer for anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// Patient enough for a machine that is busy with other tests.
fn patient() -> Options {
    Options { timeout: Duration::from_secs(5), ..Options::default() }
}

async fn linked(url: String, options: Options) -> Link {
    let link = Link::new(&ServerUrl::new(url), &options, None).unwrap();
    assert!(link.available_within(PATIENCE).await);
    link
}

fn set(key: &str, value: &str) -> sightline_redis::Cmd {
    let mut set = cmd("SET");
    set.arg(key).arg(value);
    set
}

/// Asks until the link says what is wanted, and returns how long each call took at most.
async fn until(link: &Link, available: bool) -> Duration {
    let (since, mut longest) = (Instant::now(), Duration::ZERO);
    loop {
        let asked = Instant::now();
        let answer = link.command(&cmd("PING")).await;
        longest = longest.max(asked.elapsed());
        if answer.is_ok() == available && link.is_available() == available {
            return longest;
        }
        assert!(since.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[tokio::test]
async fn a_server_that_stops_hangs_and_comes_back_is_noticed_without_waiting() {
    let Some(mut redis) = there(Redis::start(&[])) else { return };
    let dependencies = Dependencies::default();
    let options = Options { timeout: Duration::from_millis(50), ..Options::default() };
    let url = ServerUrl::new(redis.url());
    let link = Link::new(&url, &options, Some(dependencies.register("redis"))).unwrap();
    assert!(link.available_within(PATIENCE).await);
    assert_eq!(dependencies.overall(), "healthy");

    redis.server.pause();
    let longest = until(&link, false).await;
    assert!(longest < Duration::from_millis(1000), "{longest:?}");
    let since = Instant::now();
    for _ in 0..1000 {
        assert!(matches!(link.command(&cmd("PING")).await, Err(LinkError::Away(_))));
    }
    assert!(since.elapsed() < Duration::from_secs(1), "turned away at once: {:?}", since.elapsed());
    becomes(&dependencies, "degraded").await;
    redis.server.resume();
    until(&link, true).await;

    redis.server.kill();
    until(&link, false).await;
    redis.server.restart().unwrap();
    until(&link, true).await;
    becomes(&dependencies, "healthy").await;
}

async fn becomes(dependencies: &Dependencies, status: &str) {
    let since = Instant::now();
    while dependencies.overall() != status {
        assert!(since.elapsed() < PATIENCE, "never {status}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_link_made_before_its_server_finds_it() {
    let port = free_port();
    let link = Link::new(&ServerUrl::new(format!("redis://127.0.0.1:{port}")), &patient(), None).unwrap();
    let since = Instant::now();
    assert!(matches!(link.command(&cmd("PING")).await, Err(LinkError::Away(_))));
    assert!(since.elapsed() < Duration::from_secs(1), "not even the link's own timeout is waited");
    let Some(_redis) = there(Home::temporary("redis").and_then(|home| Redis::start_at(home, port, &[])))
    else {
        return;
    };
    assert!(link.available_within(PATIENCE).await);
}

#[tokio::test]
async fn a_script_is_loaded_where_it_is_missing() {
    let Some(redis) = there(Redis::start(&[])) else { return };
    let link = linked(redis.url(), patient()).await;
    let script = Script::new("return redis.call('INCRBY', KEYS[1], ARGV[1])");
    for round in 1..=3 {
        let fill = |cmd: &mut sightline_redis::Cmd| {
            cmd.arg(1).arg("n").arg(2);
        };
        assert_eq!(link.script(&script, fill).await.unwrap(), Value::Int(2 * round));
        if round == 2 {
            redis.command(&["SCRIPT", "FLUSH"]).unwrap();
        }
    }
    let error = link.command(cmd("INCRBY").arg("n").arg("x")).await.unwrap_err();
    assert!(matches!(&error, LinkError::Refused(error) if error.to_string().contains("integer")), "{error}");
    assert!(link.is_available(), "an answer is an answer");
}

#[tokio::test]
async fn a_cluster_is_found_through_any_of_its_nodes() {
    let Some(cluster) = there(RedisCluster::start(3)) else { return };
    let ports: Vec<String> = cluster.nodes.iter().map(|node| format!("127.0.0.1:{}", node.port())).collect();
    let link = linked(format!("redis+cluster://{},127.0.0.1:{}", ports[1], free_port()), patient()).await;
    assert_eq!(link.topology(), Topology::Cluster);
    for key in 0..100 {
        link.command(&set(&format!("key-{key}"), "v")).await.unwrap();
    }
    let sizes: Vec<String> = cluster.nodes.iter().map(|node| node.command(&["DBSIZE"]).unwrap()).collect();
    assert!(sizes.iter().all(|size| size.trim() != "0"), "every node holds some: {sizes:?}");
}

#[tokio::test]
async fn an_acl_user_may_do_what_it_may() {
    let Some(redis) = there(Redis::start(&[])) else { return };
    redis.command(&["ACL", "SETUSER", "limits", "on", ">p@ss", "~limits:*", "+@all"]).unwrap();
    redis.command(&["ACL", "SETUSER", "default", "off"]).unwrap();
    let link = linked(format!("redis://limits:p%40ss@127.0.0.1:{}/", redis.port()), patient()).await;
    link.command(&set("limits:a", "1")).await.unwrap();
    assert!(matches!(link.command(&set("other", "1")).await, Err(LinkError::Refused(_))));
    let wrong = format!("redis://limits:wrong@127.0.0.1:{}/", redis.port());
    let wrong = Link::new(&ServerUrl::new(wrong), &patient(), None).unwrap();
    assert!(!wrong.available_within(Duration::from_millis(500)).await);
}

/// A CA and a certificate for 127.0.0.1, made by openssl.
fn certificates(folder: &Path) {
    let openssl = |arguments: &str| {
        let output = Command::new("openssl").args(arguments.split(' ')).current_dir(folder).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    openssl(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=ca -keyout ca.key -out ca.pem",
    );
    openssl(
        "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=redis -keyout key.pem -out request.pem",
    );
    fs::write(folder.join("extensions"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    openssl(
        "x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile extensions -out cert.pem",
    );
}

#[tokio::test]
async fn tls_trusts_the_ca_it_was_given_and_no_other() {
    let folder = tempfile::tempdir().unwrap();
    certificates(folder.path());
    let (port, path) = (free_port().to_string(), |name: &str| folder.path().join(name).display().to_string());
    let (cert, key, ca) = (path("cert.pem"), path("key.pem"), path("ca.pem"));
    let arguments = ["--tls-port", &port, "--tls-cert-file", &cert, "--tls-key-file", &key];
    let more = ["--tls-ca-cert-file", &ca, "--tls-auth-clients", "no"];
    let Some(_redis) = there(Redis::start(&[&arguments[..], &more[..]].concat())) else { return };
    let url = format!("rediss://127.0.0.1:{port}");
    let link = linked(url.clone(), Options { ca_file: Some(ca.into()), ..patient() }).await;
    link.command(&set("a", "1")).await.unwrap();
    let stranger = Link::new(&ServerUrl::new(url), &patient(), None).unwrap();
    assert!(!stranger.available_within(Duration::from_millis(500)).await, "the system knows no such CA");
}

fn sentinel(master: u16, replica: u16) -> Result<(Server, u16)> {
    let home = Home::temporary("sentinel")?;
    let port = free_port();
    let text = format!(
        "port {port}\nbind 127.0.0.1\nsentinel monitor mymaster 127.0.0.1 {master} 1\n\
         sentinel known-replica mymaster 127.0.0.1 {replica}\n\
         sentinel down-after-milliseconds mymaster 500\nsentinel failover-timeout mymaster 2000\n"
    );
    fs::write(home.folder().join("sentinel.conf"), text).unwrap();
    let server = Server::start(Spec {
        name: "sentinel".into(),
        program: find("redis-server")?,
        arguments: vec!["sentinel.conf".into(), "--sentinel".into()],
        environment: vec![],
        home,
        user: None,
        ready: Box::new(move || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()),
    })?;
    Ok((server, port))
}

#[tokio::test]
async fn the_master_that_sentinels_name_is_followed_to_its_successor() {
    let Some(mut master) = there(Redis::start(&[])) else { return };
    let master_port = master.port().to_string();
    let Some(replica) = there(Redis::start(&["--replicaof", "127.0.0.1", &master_port])) else { return };
    let Some((_sentinel, port)) = there(sentinel(master.port(), replica.port())) else { return };
    let link = linked(format!("redis+sentinel://127.0.0.1:{port}/mymaster"), patient()).await;
    assert_eq!(link.topology(), Topology::Sentinel);
    link.command(&set("a", "1")).await.unwrap();
    let since = Instant::now();
    while !replica.command(&["INFO", "replication"]).unwrap().contains("master_link_status:up") {
        assert!(since.elapsed() < PATIENCE);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    master.server.kill();
    let since = Instant::now();
    while link.command(&set("a", "2")).await.is_err() {
        assert!(since.elapsed() < PATIENCE, "the replica was never promoted");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(replica.command(&["GET", "a"]).unwrap().trim(), "2");
}
