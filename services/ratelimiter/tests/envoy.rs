//! The rate limiter as a gateway sees it: a real server on loopback and the client of Envoy's contract.
#![allow(clippy::unwrap_used)] // clippy.toml allows it in tests, but does not see the helpers of one as such

use std::{io::Write, time::Duration};

use sightline_mesh::{
    RpcError,
    server::{Lifecycle, Server},
};
use sightline_proto::envoy::{
    extensions::common::ratelimit::v3::{
        RateLimitDescriptor,
        rate_limit_descriptor::{Entry, RateLimitOverride},
    },
    service::ratelimit::v3::{
        RateLimitRequest, RateLimitResponse,
        rate_limit_response::{Code, DescriptorStatus, rate_limit::Unit},
        rate_limit_service_client::RateLimitServiceClient,
    },
};
use sightline_ratelimiter::{Deps, RateLimiter, RateLimiterConfig, build, rules::RuleSet};
use tonic::{service::Routes, transport::Channel};

const RULES: &str = r#"
[[rule]]
name = "user"
keys = ["user"]
limit = 1
per = "1h"
burst = 1

[[domain]]
name = "edge"

[[domain.descriptors]]
key = "address"
rate_limit = { unit = "hour", requests_per_unit = 10 }

    [[domain.descriptors.descriptors]]
    key = "path"
    value = "/login"
    rate_limit = { unit = "day", requests_per_unit = 100, burst = 3, name = "login" }

    [[domain.descriptors.descriptors]]
    key = "path"
    rate_limit = { unit = "minute", requests_per_unit = 7 }

[[domain.descriptors]]
key = "address"
value = "10.0.0.1"
rate_limit = { unlimited = true }

[[domain.descriptors]]
key = "blocked"
rate_limit = { unit = "second", requests_per_unit = 0 }

[[domain.descriptors]]
key = "group"

    [[domain.descriptors.descriptors]]
    key = "member"
    rate_limit = { unit = "week", requests_per_unit = 2 }

[[domain]]
name = "other"

[[domain.descriptors]]
key = "address"
rate_limit = { unit = "hour", requests_per_unit = 1 }
"#;

async fn start() -> RateLimitServiceClient<Channel> {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(RULES.as_bytes()).unwrap();
    let config =
        RateLimiterConfig { rules: file.path().to_str().unwrap().into(), ..RateLimiterConfig::default() };
    let limiter = build(&config, Deps::default()).unwrap();
    let listener = sightline_mesh::server::bind("ratelimiter.listen", "127.0.0.1:0".parse().unwrap());
    let listener = listener.await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server {
        name: "ratelimiter",
        listener,
        routes: Routes::new(limiter.envoy_service()).add_service(limiter.into_service()),
        service_names: vec![RateLimiter::SERVICE_NAME, RateLimiter::ENVOY_SERVICE_NAME],
        web: None,
        drain_timeout: config.drain_timeout.0,
    };
    tokio::spawn(server.run(Lifecycle::default()));
    let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
    RateLimitServiceClient::new(channel)
}

fn descriptor(entries: &[(&str, &str)]) -> RateLimitDescriptor {
    let entry = |(key, value): &(&str, &str)| Entry { key: (*key).into(), value: (*value).into() };
    RateLimitDescriptor { entries: entries.iter().map(entry).collect(), ..RateLimitDescriptor::default() }
}

fn request(domain: &str, descriptors: &[&[(&str, &str)]], hits_addend: u32) -> RateLimitRequest {
    let descriptors = descriptors.iter().map(|entries| descriptor(entries)).collect();
    RateLimitRequest { domain: domain.into(), descriptors, hits_addend }
}

async fn ask(client: &mut RateLimitServiceClient<Channel>, request: RateLimitRequest) -> RateLimitResponse {
    client.should_rate_limit(request).await.unwrap().into_inner()
}

fn reset(status: &DescriptorStatus) -> Duration {
    status.duration_until_reset.unwrap().try_into().unwrap()
}

/// Code, limit, unit and remaining of a status.
fn short(status: &DescriptorStatus) -> (Code, Option<(u32, Unit)>, u32) {
    let limit = status.current_limit.as_ref().map(|limit| (limit.requests_per_unit, limit.unit()));
    (status.code(), limit, status.limit_remaining)
}

#[tokio::test]
async fn a_default_counts_each_value_by_itself_and_says_how_it_stands() {
    let mut client = start().await;
    let address = |address| request("edge", &[&[("address", address)]], 0);
    for left in (0..10).rev() {
        let answer = ask(&mut client, address("192.0.2.1")).await;
        assert_eq!(answer.overall_code(), Code::Ok);
        assert_eq!(short(&answer.statuses[0]), (Code::Ok, Some((10, Unit::Hour)), left));
    }
    let answer = ask(&mut client, address("192.0.2.1")).await;
    assert_eq!(answer.overall_code(), Code::OverLimit);
    assert_eq!(short(&answer.statuses[0]), (Code::OverLimit, Some((10, Unit::Hour)), 0));
    let wait = reset(&answer.statuses[0]);
    assert!(
        wait <= Duration::from_secs(360) && wait > Duration::from_secs(330),
        "a tenth of an hour: {wait:?}"
    );
    assert_eq!(ask(&mut client, address("192.0.2.2")).await.statuses[0].limit_remaining, 9);
    let other = ask(&mut client, request("other", &[&[("address", "192.0.2.1")]], 0)).await;
    assert_eq!(short(&other.statuses[0]), (Code::Ok, Some((1, Unit::Hour)), 0), "another domain");
}

#[tokio::test]
async fn nested_keys_are_matched_by_value_before_the_default_and_only_to_their_depth() {
    let mut client = start().await;
    let paths: [&[(&str, &str)]; 8] = [
        &[("address", "a"), ("path", "/login")],
        &[("address", "a"), ("path", "/other")],
        &[("address", "a"), ("path", "/login"), ("deeper", "x")],
        &[("path", "/login")],
        &[("group", "g")],
        &[("group", "g"), ("member", "m")],
        &[("address", "10.0.0.1")],
        &[],
    ];
    let answer = ask(&mut client, request("edge", &paths, 0)).await;
    let nothing = (Code::Ok, None, 0);
    let statuses: Vec<_> = answer.statuses.iter().map(short).collect();
    assert_eq!(
        statuses,
        [
            (Code::Ok, Some((100, Unit::Day)), 2),
            (Code::Ok, Some((7, Unit::Minute)), 6),
            nothing,
            nothing,
            nothing,
            (Code::Ok, Some((2, Unit::Week)), 1),
            (Code::Ok, None, u32::MAX),
            nothing,
        ],
        "in the order of the descriptors"
    );
    assert_eq!(answer.overall_code(), Code::Ok);
    assert_eq!(answer.statuses[0].current_limit.as_ref().unwrap().name, "login");
    let unknown = ask(&mut client, request("nowhere", &[&[("address", "a")]], 0)).await;
    assert_eq!((unknown.overall_code(), short(&unknown.statuses[0])), (Code::Ok, nothing));
}

#[tokio::test]
async fn one_descriptor_over_its_limit_charges_no_other() {
    let mut client = start().await;
    let both: [&[(&str, &str)]; 2] = [&[("address", "a")], &[("group", "g"), ("member", "m")]];
    for left in [1, 0] {
        let answer = ask(&mut client, request("edge", &both, 0)).await;
        assert_eq!((answer.overall_code(), answer.statuses[1].limit_remaining), (Code::Ok, left));
    }
    for _ in 0..3 {
        let answer = ask(&mut client, request("edge", &both, 0)).await;
        assert_eq!(answer.overall_code(), Code::OverLimit);
        assert_eq!(short(&answer.statuses[0]), (Code::Ok, Some((10, Unit::Hour)), 8));
        assert_eq!(short(&answer.statuses[1]), (Code::OverLimit, Some((2, Unit::Week)), 0));
    }
    let blocked: [&[(&str, &str)]; 2] = [&[("address", "a")], &[("blocked", "x")]];
    let answer = ask(&mut client, request("edge", &blocked, 0)).await;
    assert_eq!(answer.overall_code(), Code::OverLimit);
    assert_eq!(answer.statuses[0].limit_remaining, 8);
    assert_eq!(short(&answer.statuses[1]), (Code::OverLimit, Some((0, Unit::Second)), 0));
}

#[tokio::test]
async fn hits_are_added_for_all_descriptors_or_for_one() {
    let mut client = start().await;
    let answer = ask(&mut client, request("edge", &[&[("address", "a")]], 4)).await;
    assert_eq!(answer.statuses[0].limit_remaining, 6);
    let answer = ask(&mut client, request("edge", &[&[("address", "a")]], 11)).await;
    assert_eq!(
        short(&answer.statuses[0]),
        (Code::OverLimit, Some((10, Unit::Hour)), 6),
        "more than ever fit"
    );
    assert!(reset(&answer.statuses[0]) > Duration::ZERO);

    let mut peek = request("edge", &[&[("address", "a")]], 4);
    peek.descriptors[0].hits_addend = Some(0);
    for _ in 0..3 {
        assert_eq!(ask(&mut client, peek.clone()).await.statuses[0].limit_remaining, 6);
    }
    let mut own = request("edge", &[&[("address", "a")], &[("address", "b")]], 1);
    own.descriptors[0].hits_addend = Some(6);
    let answer = ask(&mut client, own).await;
    let left: Vec<u32> = answer.statuses.iter().map(|status| status.limit_remaining).collect();
    assert_eq!((answer.overall_code(), left), (Code::Ok, vec![0, 9]));

    // The same descriptor twice costs twice.
    let twice: [&[(&str, &str)]; 2] = [&[("address", "c")], &[("address", "c")]];
    let answer = ask(&mut client, request("edge", &twice, 5)).await;
    assert_eq!((answer.overall_code(), answer.statuses[1].limit_remaining), (Code::Ok, 0));
}

#[tokio::test]
async fn a_limit_that_the_gateway_brings_takes_the_place_of_the_configured_one() {
    let mut client = start().await;
    let mut own = request("edge", &[&[("address", "a")]], 1);
    own.descriptors[0].limit = Some(RateLimitOverride { requests_per_unit: 2, unit: 4 });
    let answer = ask(&mut client, own.clone()).await;
    assert_eq!(short(&answer.statuses[0]), (Code::Ok, Some((2, Unit::Day)), 1));
    let configured = ask(&mut client, request("edge", &[&[("address", "a")]], 1)).await;
    assert_eq!(configured.statuses[0].limit_remaining, 9, "counted by itself");
    own.descriptors[0].limit = Some(RateLimitOverride { requests_per_unit: 2, unit: 99 });
    let status = client.should_rate_limit(own).await.unwrap_err();
    assert_eq!(RpcError::from_status(&status).reason, "LIMIT_INVALID");
}

#[tokio::test]
async fn a_request_that_says_too_little_or_too_much_is_an_error() {
    let mut client = start().await;
    let long = "x".repeat(257);
    let many: Vec<&[(&str, &str)]> = vec![&[("address", "a")]; 65];
    for (request, reason) in [
        (request("", &[&[("address", "a")]], 0), "DOMAIN_EMPTY"),
        (request("edge", &[], 0), "DESCRIPTORS_EMPTY"),
        (request("edge", &many, 0), "TOO_MANY_DESCRIPTORS"),
        (request("edge", &[&[("a", "b"); 17]], 0), "TOO_MANY_ENTRIES"),
        (request("edge", &[&[("address", &long)]], 0), "TEXT_TOO_LONG"),
    ] {
        let error = RpcError::from_status(&client.should_rate_limit(request).await.unwrap_err());
        assert_eq!((error.code, error.reason.as_str()), (tonic::Code::InvalidArgument, reason));
    }
}

#[test]
fn mistakes_in_the_configuration_are_named() {
    let rule = RULES.split("[[domain]]").next().unwrap();
    let domain = |rest: &str| format!("{rule}[[domain]]\nname = \"edge\"\n{rest}");
    let one = "[[domain.descriptors]]\nkey = \"a\"\n";
    for (text, expected) in [
        (format!("{rule}[[domain]]\nname = \"\""), "a [[domain]] needs a `name`"),
        (domain("[[domain]]\nname = \"edge\""), "domain \"edge\" is there twice"),
        (domain(&format!("{one}{one}")), "domain \"edge\": descriptor \"/a\": is there twice"),
        (domain("[[domain.descriptors]]\nkey = \"\""), "`key` needs 1 to 256 characters"),
        (
            domain(&format!("{one}rate_limit = {{ unit = \"second\" }}")),
            "needs `unit` and `requests_per_unit`",
        ),
        (
            domain(&format!("{one}rate_limit = {{ unlimited = true, burst = 1 }}")),
            "is unlimited and has numbers",
        ),
        (
            domain(&format!("{one}rate_limit = {{ unit = \"second\", requests_per_unit = 2000000 }}")),
            "`limit` must be at most one hit per microsecond",
        ),
        (domain(&format!("{one}rate_limit = {{ unit = \"fortnight\" }}")), "unknown variant `fortnight`"),
        (domain(&format!("{one}shadow = true")), "unknown field `shadow`"),
    ] {
        let message = RuleSet::parse("limits.toml", &text).unwrap_err().to_string();
        assert!(message.starts_with("limits.toml: ") && message.contains(expected), "{message}");
    }
}
