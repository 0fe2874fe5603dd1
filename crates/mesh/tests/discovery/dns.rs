//! Discovery by DNS, from a real name server over real sockets.

use std::time::Duration;

use hickory_resolver::proto::rr::RecordType;
use sightline_mesh::client::{
    Address, Cluster, ClusterOptions, Discover,
    discovery::{AddressStream, DiscoverOptions, Dns, DnsOptions, Family, PaceOptions, Targets},
};
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::StreamExt;

use crate::names::Names;

const POD: &str = "classifier.mesh.svc.test.";
const GRPC: &str = "_grpc._tcp.classifier.mesh.svc.test.";
/// Longer than any answer takes on a busy machine.
const LONG: Duration = Duration::from_secs(20);

/// Asks `names` alone, and often.
fn options(names: &Names) -> DnsOptions {
    DnsOptions {
        pace: PaceOptions {
            floor: Duration::from_millis(50),
            ceiling: Duration::from_secs(30),
            first_retry: Duration::from_millis(50),
            last_retry: Duration::from_millis(200),
        },
        timeout: Duration::from_secs(2),
        name_servers: vec![names.address],
        seed: Some(1),
        ..DnsOptions::default()
    }
}

/// Reads answers until one is `expected`; what comes before may be on the way to it.
async fn arrives(answers: &mut AddressStream, expected: &[&str]) -> Vec<Address> {
    let wait = async {
        loop {
            let Some(answer) = answers.next().await else { panic!("the stream ended") };
            let Ok(set) = answer else { continue };
            if set.iter().map(|address| address.authority.as_str()).eq(expected.iter().copied()) {
                return set;
            }
        }
    };
    timeout(LONG, wait).await.unwrap_or_else(|_| panic!("{expected:?} did not arrive"))
}

/// The next problem that says `text`. A set on the way would be one that nobody has.
async fn fails(answers: &mut AddressStream, text: &str) {
    let wait = async {
        loop {
            let problem = answers.next().await.unwrap().unwrap_err().to_string();
            if problem.contains(text) {
                return;
            }
        }
    };
    timeout(LONG, wait).await.unwrap_or_else(|_| panic!("no problem said {text:?}"));
}

#[tokio::test]
async fn the_set_follows_the_records() {
    let names = Names::start().await;
    names.addresses(POD, 0, &["10.0.0.2", "10.0.0.1"]);
    let mut answers = Dns::addresses(POD, 7402, options(&names)).watch();
    arrives(&mut answers, &["10.0.0.1:7402", "10.0.0.2:7402"]).await;
    names.addresses(POD, 0, &["10.0.0.2", "10.0.0.3", "10.0.0.3"]);
    arrives(&mut answers, &["10.0.0.2:7402", "10.0.0.3:7402"]).await;
}

#[tokio::test]
async fn failed_and_empty_answers_are_problems_and_never_an_empty_set() {
    let names = Names::start().await;
    names.addresses(POD, 0, &["10.0.0.1"]);
    let dns =
        Dns::addresses(POD, 7402, DnsOptions { timeout: Duration::from_millis(300), ..options(&names) });
    let mut answers = dns.watch();
    arrives(&mut answers, &["10.0.0.1:7402"]).await;
    names.fails(POD, RecordType::A);
    fails(&mut answers, "Server Failure").await;
    names.silent(POD, RecordType::A);
    fails(&mut answers, "no answer within 300ms").await;
    names.forget(POD);
    fails(&mut answers, "classifier.mesh.svc.test. does not exist").await;
    names.addresses(POD, 0, &["10.0.0.1"]);
    // The same set again: it says that the problem is over.
    arrives(&mut answers, &["10.0.0.1:7402"]).await;
}

#[tokio::test]
async fn an_answer_is_used_for_its_ttl() {
    let names = Names::start().await;
    names.addresses(POD, 1, &["10.0.0.1"]);
    let mut answers = Dns::addresses(POD, 7402, options(&names)).watch();
    arrives(&mut answers, &["10.0.0.1:7402"]).await;
    let since = Instant::now();
    names.addresses(POD, 1, &["10.0.0.2"]);
    arrives(&mut answers, &["10.0.0.2:7402"]).await;
    // A second, spread by a fifth.
    assert!(since.elapsed() >= Duration::from_millis(700), "asked again after {:?}", since.elapsed());
}

#[tokio::test]
async fn who_lost_a_replica_asks_sooner_but_not_before_the_floor() {
    let names = Names::start().await;
    names.addresses(POD, 3600, &["10.0.0.1"]);
    let mut options = options(&names);
    options.pace.floor = Duration::from_millis(300);
    options.pace.ceiling = Duration::from_secs(3600);
    let dns = Dns::addresses(POD, 7402, options);
    let since = Instant::now();
    let mut answers = dns.watch();
    arrives(&mut answers, &["10.0.0.1:7402"]).await;
    names.addresses(POD, 3600, &["10.0.0.2"]);
    dns.hurry();
    arrives(&mut answers, &["10.0.0.2:7402"]).await;
    assert!(since.elapsed() >= Duration::from_millis(300), "asked again after {:?}", since.elapsed());
}

#[tokio::test]
async fn a_cluster_asks_again_when_a_replica_is_lost() {
    let names = Names::start().await;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    names.addresses(POD, 3600, &["127.0.0.1"]);
    let mut options = options(&names);
    options.pace.ceiling = Duration::from_secs(3600);
    let cluster = Cluster::start(ClusterOptions::new("classifier", Dns::addresses(POD, port, options)));
    let connection = timeout(LONG, listener.accept()).await.unwrap().unwrap();
    names.addresses(POD, 3600, &["127.0.0.2"]);
    // What was no HTTP/2 connection yet ends.
    drop(connection);
    let mut sets = cluster.endpoints();
    let moved = sets.wait_for(|set| set.iter().any(|of| of.address().authority.starts_with("127.0.0.2:")));
    timeout(LONG, moved).await.expect("the new replica was not found").unwrap();
}

#[tokio::test]
async fn a_long_ttl_is_cut_at_the_ceiling() {
    let names = Names::start().await;
    names.addresses(POD, 3600, &["10.0.0.1"]);
    let mut options = options(&names);
    options.pace.ceiling = Duration::from_millis(200);
    let mut answers = Dns::addresses(POD, 7402, options).watch();
    arrives(&mut answers, &["10.0.0.1:7402"]).await;
    names.addresses(POD, 3600, &["10.0.0.2"]);
    arrives(&mut answers, &["10.0.0.2:7402"]).await;
}

#[tokio::test]
async fn srv_records_give_port_weight_and_priority() {
    let names = Names::start().await;
    let records =
        [(10, 3, 7402, "a.mesh.test."), (10, 0, 7403, "b.mesh.test."), (20, 1, 7404, "spare.mesh.test.")];
    names.srv(GRPC, 0, &records, &[("a.mesh.test.", "10.0.0.1"), ("other.test.", "10.9.9.9")]);
    names.addresses("b.mesh.test.", 0, &["10.0.0.2"]);
    names.addresses("spare.mesh.test.", 0, &["10.0.0.3"]);
    let mut answers = Dns::srv(GRPC, options(&names)).watch();
    let set = arrives(&mut answers, &["10.0.0.1:7402", "10.0.0.2:7403"]).await;
    assert_eq!(set.iter().map(|address| address.weight).collect::<Vec<_>>(), [3, 1]);
    assert_eq!(names.asked("a.mesh.test.", RecordType::A), 0, "its address came along");
    names.srv(GRPC, 0, &records[2..], &[]);
    arrives(&mut answers, &["10.0.0.3:7404"]).await;
    names.srv(GRPC, 0, &[(0, 0, 0, ".")], &[]);
    fails(&mut answers, "says that the service is not available").await;
}

#[tokio::test]
async fn a_target_that_cannot_be_looked_up_keeps_its_addresses() {
    let names = Names::start().await;
    names.srv(GRPC, 0, &[(0, 1, 1, "a.test."), (0, 1, 1, "b.test.")], &[]);
    names.addresses("a.test.", 0, &["10.0.0.1"]);
    names.addresses("b.test.", 0, &["10.0.0.2"]);
    let mut answers = Dns::srv(GRPC, options(&names)).watch();
    arrives(&mut answers, &["10.0.0.1:1", "10.0.0.2:1"]).await;
    names.fails("b.test.", RecordType::A);
    names.addresses("a.test.", 0, &["10.0.0.3"]);
    arrives(&mut answers, &["10.0.0.2:1", "10.0.0.3:1"]).await;
    names.forget("b.test.");
    arrives(&mut answers, &["10.0.0.3:1"]).await;
}

#[tokio::test]
async fn one_family_is_taken() {
    let names = Names::start().await;
    names.addresses(POD, 0, &["10.0.0.1"]);
    names.addresses(POD, 0, &["fd00::1"]);
    let of = |family| Dns::addresses(POD, 7402, DnsOptions { family, ..options(&names) }).watch();
    arrives(&mut of(Family::PreferV4), &["10.0.0.1:7402"]).await;
    arrives(&mut of(Family::PreferV6), &["[fd00::1]:7402"]).await;
    names.fails(POD, RecordType::A);
    // Nobody knows whether there are any: the other kind is no substitute.
    fails(&mut of(Family::PreferV4), "looking up A of").await;
    names.forget(POD);
    names.addresses(POD, 0, &["fd00::1"]);
    arrives(&mut of(Family::PreferV4), &["[fd00::1]:7402"]).await;
    fails(&mut of(Family::OnlyV4), "has no A records").await;
}

#[tokio::test]
async fn names_without_a_final_dot_are_searched() {
    let names = Names::start().await;
    names.addresses(POD, 0, &["10.0.0.1"]);
    let options =
        DnsOptions { search: vec!["other.svc.test".into(), "mesh.svc.test".into()], ..options(&names) };
    let mut answers = Dns::addresses("classifier", 7402, options.clone()).watch();
    arrives(&mut answers, &["10.0.0.1:7402"]).await;
    let mut answers = Dns::addresses("classifier.", 7402, options).watch();
    fails(&mut answers, "classifier. does not exist").await;
}

#[tokio::test]
async fn many_replicas_are_asked_for_by_tcp() {
    let names = Names::start().await;
    let ips: Vec<String> = (0..200).map(|n| format!("10.0.1.{n}")).collect();
    names.addresses(POD, 0, &ips.iter().map(String::as_str).collect::<Vec<_>>());
    let mut answers = Dns::addresses(POD, 1, options(&names)).watch();
    let set = timeout(LONG, answers.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(set.len(), 200);
    assert!(names.asked_by_tcp() > 0);
}

#[tokio::test]
async fn a_server_that_is_away_is_asked_until_it_is_back() {
    let names = Names::start().await;
    names.silent(POD, RecordType::A);
    let dns =
        Dns::addresses(POD, 7402, DnsOptions { timeout: Duration::from_millis(200), ..options(&names) });
    let mut answers = dns.watch();
    fails(&mut answers, "no answer within 200ms").await;
    names.addresses(POD, 0, &["10.0.0.1"]);
    arrives(&mut answers, &["10.0.0.1:7402"]).await;
}

#[tokio::test]
async fn nobody_is_asked_once_nobody_listens() {
    let names = Names::start().await;
    names.addresses(POD, 0, &["10.0.0.1"]);
    let mut answers = Dns::addresses(POD, 7402, options(&names)).watch();
    arrives(&mut answers, &["10.0.0.1:7402"]).await;
    drop(answers);
    sleep(Duration::from_millis(300)).await;
    let asked = names.asked(POD, RecordType::A);
    sleep(Duration::from_millis(500)).await;
    assert_eq!(names.asked(POD, RecordType::A), asked);
}

#[tokio::test]
async fn a_setting_finds_its_replicas() {
    let names = Names::start().await;
    names.addresses(POD, 0, &["10.0.0.1"]);
    let options = DiscoverOptions { dns: options(&names), kubernetes: None };
    let found = |entry: &str| {
        let targets = Targets::parse("ingest.classifier", &[entry.to_owned()]).unwrap();
        targets.discover("ingest.classifier", &options).unwrap()
    };
    let by_name = found("dns://classifier.mesh.svc.test:7402");
    assert_eq!(by_name.describe(), "dns://classifier.mesh.svc.test:7402");
    arrives(&mut by_name.watch(), &["10.0.0.1:7402"]).await;
    arrives(&mut found("dns://192.0.2.1:7402").watch(), &["192.0.2.1:7402"]).await;
    arrives(&mut found("http://host:7402").watch(), &["host:7402"]).await;
}
