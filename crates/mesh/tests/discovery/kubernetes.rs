//! Discovery by EndpointSlices, from a real API server that is stopped, paused and restarted.

use std::{fs, path::PathBuf, time::Duration};

use serde_json::json;
use sightline_mesh::client::{
    Discover,
    discovery::{
        Access, AddressStream, DnsOptions, Family, Kubernetes, KubernetesOptions, PaceOptions, PortRef,
    },
};
use sightline_servers::free_port;
use tokio::{
    runtime::{Builder, Runtime},
    time::timeout,
};
use tokio_stream::StreamExt;

use crate::{
    control_plane::{Place, control_plane, ready},
    names::Names,
};

/// Longer than anything takes on a busy machine.
const LONG: Duration = Duration::from_secs(60);

/// The API of `servers` blocks: tests do too, and enter the runtime to wait.
fn runtime() -> Runtime {
    Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// A name server that knows nothing yet.
fn no_names(runtime: &Runtime) -> (Names, DnsOptions) {
    let names = runtime.block_on(Names::start());
    let options = DnsOptions {
        pace: PaceOptions { floor: Duration::from_millis(50), ..DnsOptions::default().pace },
        name_servers: vec![names.address],
        ..DnsOptions::default()
    };
    (names, options)
}

struct Watching<'a> {
    runtime: &'a Runtime,
    answers: AddressStream,
}

impl<'a> Watching<'a> {
    fn of(runtime: &'a Runtime, discovery: &impl Discover) -> Self {
        let _entered = runtime.enter();
        Self { runtime, answers: discovery.watch() }
    }

    /// Reads answers until the set is `expected`, as `ip:port@zone`.
    fn arrives(&mut self, expected: &[&str]) {
        let mut seen = Vec::new();
        let wait = async {
            while let Some(answer) = self.answers.next().await {
                match answer {
                    Ok(set) => {
                        let shown = set.iter().map(|address| {
                            format!("{}@{}", address.authority, address.zone.as_deref().unwrap_or(""))
                        });
                        let shown: Vec<String> = shown.collect();
                        if shown == expected {
                            return;
                        }
                        seen.push(format!("{shown:?}"));
                    }
                    Err(error) => seen.push(error.to_string()),
                }
            }
            panic!("the stream ended");
        };
        let arrived = self.runtime.block_on(async { timeout(LONG, wait).await });
        assert!(arrived.is_ok(), "{expected:?} did not arrive, but {seen:#?}");
    }

    /// Reads answers until a problem says `text`. A set is passed on only when it is another one: none may come before.
    fn fails(&mut self, text: &str) {
        let wait = async {
            loop {
                let problem = self.answers.next().await.unwrap().unwrap_err().to_string();
                if problem.contains(text) {
                    return;
                }
            }
        };
        let failed = self.runtime.block_on(async { timeout(LONG, wait).await });
        assert!(failed.is_ok(), "no problem said {text:?}");
    }

    /// No other set comes for so long.
    fn stays(&mut self, time: Duration) {
        let wait = async {
            loop {
                if let Ok(set) = self.answers.next().await.unwrap() {
                    return set;
                }
            }
        };
        let other = self.runtime.block_on(async { timeout(time, wait).await });
        assert!(other.is_err(), "{other:?}");
    }
}

#[test]
fn sets_follow_the_slices_and_none_is_empty() {
    let Some(share) = control_plane() else { return };
    let mut kubernetes = share.alone();
    let place = Place::new(&mut kubernetes, "follows");
    place.grant();
    place.mint_token();
    place.slice("one", "IPv4", &json!([ready("10.0.0.1", "a"), ready("10.0.0.2", "b")]));
    let runtime = runtime();
    let (_, dns) = no_names(&runtime);
    let mut watching = Watching::of(&runtime, &place.discovery(dns.clone()));
    watching.arrives(&["10.0.0.1:7402@a", "10.0.0.2:7402@b"]);

    // An endpoint on its way from one slice to another is in both.
    place.slice("two", "IPv4", &json!([ready("10.0.0.2", "b"), ready("10.0.0.3", "c")]));
    watching.arrives(&["10.0.0.1:7402@a", "10.0.0.2:7402@b", "10.0.0.3:7402@c"]);
    let stopping = json!({
        "addresses": ["10.0.0.1"], "conditions": {"ready": false, "serving": true, "terminating": true}
    });
    place.slice("one", "IPv4", &json!([stopping]));
    watching.arrives(&["10.0.0.2:7402@b", "10.0.0.3:7402@c"]);
    place.slice("six", "IPv6", &json!([ready("fd00::1", "a")]));
    let mut v6 = Watching::of(&runtime, &place.discovery(DnsOptions { family: Family::PreferV6, ..dns }));
    v6.arrives(&["[fd00::1]:7402@a"]);
    place.delete_slice("six");

    // Scaled to zero: the last set stays.
    place.slice("one", "IPv4", &json!([]));
    place.delete_slice("two");
    watching.fails("none of its 0 endpoints is ready; the last good set stays in use");
    place.delete_slice("one");
    watching.fails("there is no EndpointSlice of this Service");
    place.slice("one", "IPv4", &json!([ready("10.0.0.9", "a")]));
    watching.arrives(&["10.0.0.9:7402@a"]);
}

#[test]
fn an_api_server_that_was_away_is_followed_again_and_dns_stands_in_meanwhile() {
    let Some(share) = control_plane() else { return };
    let mut kubernetes = share.alone();
    let place = Place::new(&mut kubernetes, "away");
    place.grant();
    place.mint_token();
    place.slice("one", "IPv4", &json!([ready("10.0.0.1", "a")]));
    let runtime = runtime();
    let (names, dns) = no_names(&runtime);
    let mut watching = Watching::of(&runtime, &place.discovery(dns));
    watching.arrives(&["10.0.0.1:7402@a"]);

    // Versions from before a restart are forgotten by it: what is known has to be listed again.
    for round in 0..2 {
        place.make_noise(round);
        place.kubernetes.api.kill();
        watching.fails("API server");
        names.srv(
            "_grpc._tcp.classifier.away.svc.test.",
            0,
            &[(0, 1, 7402, "pod-1.test."), (0, 1, 7402, "pod-2.test.")],
            &[("pod-1.test.", "10.0.0.1"), ("pod-2.test.", "10.0.0.2")],
        );
        // The zone is what the API said of it before.
        watching.arrives(&["10.0.0.1:7402@a", "10.0.0.2:7402@"]);
        place.kubernetes.api.restart().unwrap();
        watching.arrives(&["10.0.0.1:7402@a"]);
        place.slice("one", "IPv4", &json!([ready("10.0.0.1", "a"), ready("10.0.0.7", "b")]));
        watching.arrives(&["10.0.0.1:7402@a", "10.0.0.7:7402@b"]);
        place.slice("one", "IPv4", &json!([ready("10.0.0.1", "a")]));
        watching.arrives(&["10.0.0.1:7402@a"]);
    }

    // Silent, as behind a black hole.
    place.kubernetes.api.pause();
    watching.arrives(&["10.0.0.1:7402@a", "10.0.0.2:7402@"]);
    place.kubernetes.api.resume();
    watching.arrives(&["10.0.0.1:7402@a"]);
}

#[test]
fn the_pods_of_a_service_with_one_address_stay_while_the_api_is_away() {
    let Some(share) = control_plane() else { return };
    let mut kubernetes = share.alone();
    let place = Place::new(&mut kubernetes, "one-address");
    place.grant();
    place.mint_token();
    place.slice_behind_one_address("one", "IPv4", &json!([ready("10.0.0.1", "a")]));
    let runtime = runtime();
    let (names, dns) = no_names(&runtime);
    let mut watching = Watching::of(&runtime, &place.discovery_of(PortRef::Number(7402), dns));
    watching.arrives(&["10.0.0.1:7402@a"]);

    // The Service's own address, on which nobody listens at the pods' port.
    names.addresses("classifier.one-address.svc.test.", 0, &["10.96.0.9"]);
    place.kubernetes.api.kill();
    watching.fails("API server");
    // Ten times as long as until DNS would stand in.
    watching.stays(Duration::from_secs(3));
    place.kubernetes.api.restart().unwrap();
    place.slice_behind_one_address("one", "IPv4", &json!([ready("10.0.0.7", "b")]));
    watching.arrives(&["10.0.0.7:7402@b"]);
}

#[test]
fn without_the_right_dns_is_asked_until_it_is_granted() {
    let Some(share) = control_plane() else { return };
    let mut kubernetes = share.alone();
    let place = Place::new(&mut kubernetes, "forbidden");
    place.mint_token();
    place.slice("one", "IPv4", &json!([ready("10.0.0.1", "a")]));
    let runtime = runtime();
    let (names, dns) = no_names(&runtime);
    names.srv(
        "_grpc._tcp.classifier.forbidden.svc.test.",
        0,
        &[(0, 1, 7402, "pod-2.test.")],
        &[("pod-2.test.", "10.0.0.2")],
    );
    let mut watching = Watching::of(&runtime, &place.discovery(dns));
    watching.fails("system:serviceaccount:forbidden:mesh\" cannot list resource \"endpointslices\"");
    watching.arrives(&["10.0.0.2:7402@"]);
    place.grant();
    watching.arrives(&["10.0.0.1:7402@a"]);
    // Known when the watch ends, and believed when it was said several times.
    place.revoke();
    watching.arrives(&["10.0.0.2:7402@"]);
}

#[test]
fn a_token_is_read_again_when_it_was_replaced() {
    let Some(share) = control_plane() else { return };
    let mut kubernetes = share.alone();
    let place = Place::new(&mut kubernetes, "token");
    place.grant();
    place.slice("one", "IPv4", &json!([ready("10.0.0.1", "a")]));
    let runtime = runtime();
    let (_, dns) = no_names(&runtime);
    let mut watching = Watching::of(&runtime, &place.discovery(dns));
    watching.fails("reading");
    fs::write(place.token_file(), "old").unwrap();
    watching.fails("the API server answered 401");
    place.mint_token();
    watching.arrives(&["10.0.0.1:7402@a"]);
}

#[test]
fn without_an_api_server_from_the_start_dns_is_asked() {
    let runtime = runtime();
    let (names, dns) = no_names(&runtime);
    names.addresses("classifier.mesh.svc.test.", 0, &["10.0.0.2"]);
    let nowhere = PathBuf::from("/nonexistent/sightline");
    let access = Access {
        host: "127.0.0.1".into(),
        port: free_port(),
        ca_file: nowhere.join("ca.crt"),
        token_file: nowhere.join("token"),
    };
    let options = KubernetesOptions { cluster_domain: "test".into(), ..KubernetesOptions::new(access) };
    let discovery = Kubernetes::new("mesh", "classifier", PortRef::Number(7402), options, dns);
    let mut watching = Watching::of(&runtime, &discovery);
    watching.fails("reading /nonexistent/sightline/ca.crt");
    watching.arrives(&["10.0.0.2:7402@"]);
}
