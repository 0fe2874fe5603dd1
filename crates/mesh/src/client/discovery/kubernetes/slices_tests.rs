use serde_json::{Value, json};

use super::*;

fn endpoint(ip: &str, zone: &str, conditions: &Value) -> Value {
    json!({"addresses": [ip], "zone": zone, "conditions": conditions})
}

fn slice(name: &str, kind: &str, endpoints: &[Value]) -> Value {
    let ports = json!([
        {"name": "grpc", "port": 7402, "protocol": "TCP"},
        {"name": "metrics", "port": 7400, "protocol": "TCP"},
        {"name": "quic", "port": 7402, "protocol": "UDP"}
    ]);
    json!({
        "metadata": {"name": name, "resourceVersion": "5"},
        "addressType": kind, "endpoints": endpoints, "ports": ports
    })
}

fn slices(of: &[Value]) -> Slices {
    let mut slices = Slices::default();
    let list: List =
        serde_json::from_value(json!({"metadata": {"resourceVersion": "9"}, "items": of})).unwrap();
    slices.replace(list.items, list.metadata.resource_version);
    slices
}

fn event(slices: &mut Slices, kind: &str, object: &Value) -> Result<(), Status> {
    slices.apply(serde_json::from_value(json!({"type": kind, "object": object})).unwrap())
}

fn grpc() -> PortRef {
    PortRef::Name("grpc".into())
}

/// `ip:port@zone`.
fn found(slices: &Slices, port: &PortRef, family: Family) -> Vec<String> {
    let shown = |address: Address| format!("{}@{}", address.authority, address.zone.unwrap_or_default());
    slices.addresses(port, family).unwrap_or_default().into_iter().map(shown).collect()
}

#[test]
fn slices_are_merged_and_an_endpoint_in_two_of_them_counts_once() {
    let ready = json!({"ready": true, "serving": true, "terminating": false});
    let not = json!({"ready": false, "serving": false, "terminating": false});
    let slices = slices(&[
        slice("a", "IPv4", &[endpoint("10.0.0.1", "x", &ready), endpoint("10.0.0.2", "", &ready)]),
        slice("b", "IPv4", &[endpoint("10.0.0.2", "y", &ready), endpoint("10.0.0.1", "x", &not)]),
        slice("c", "FQDN", &[endpoint("some.host", "x", &ready)]),
    ]);
    assert_eq!(found(&slices, &grpc(), Family::PreferV4), ["10.0.0.1:7402@x", "10.0.0.2:7402@y"]);
    assert_eq!(slices.version(), Some("9"));
}

#[test]
fn conditions_decide_who_is_called() {
    let one = |conditions: Value| slices(&[slice("a", "IPv4", &[endpoint("10.0.0.1", "x", &conditions)])]);
    let is_used = |conditions: Value| !found(&one(conditions), &grpc(), Family::PreferV4).is_empty();
    assert!(is_used(json!({"ready": true})));
    assert!(is_used(json!({})), "unknown is ready");
    assert!(is_used(json!({"ready": null, "serving": null})));
    assert!(!is_used(json!({"ready": false})));
    assert!(!is_used(json!({"ready": false, "serving": true, "terminating": false})));
    assert!(!is_used(json!({"ready": false, "serving": false, "terminating": true})));

    // A pod that stops and still serves is for when there is no other.
    let stopping = json!({"ready": false, "serving": true, "terminating": true});
    assert!(is_used(stopping.clone()));
    let both = [endpoint("10.0.0.1", "x", &stopping), endpoint("10.0.0.2", "x", &json!({"ready": true}))];
    assert_eq!(found(&slices(&[slice("a", "IPv4", &both)]), &grpc(), Family::PreferV4), ["10.0.0.2:7402@x"]);
}

#[test]
fn one_family_is_chosen() {
    let ready = json!({"ready": true});
    let six = slice("six", "IPv6", &[endpoint("fd00::1", "x", &ready)]);
    let four = slice("four", "IPv4", &[endpoint("10.0.0.1", "x", &ready)]);
    let both = slices(&[six.clone(), four]);
    let (v4, v6) = ("10.0.0.1:7402@x", "[fd00::1]:7402@x");
    assert_eq!(found(&both, &grpc(), Family::PreferV4), [v4]);
    assert_eq!(found(&both, &grpc(), Family::PreferV6), [v6]);
    let alone = slices(&[six]);
    assert_eq!(found(&alone, &grpc(), Family::PreferV4), [v6]);
    let none = alone.addresses(&grpc(), Family::OnlyV4).unwrap_err();
    assert_eq!(none, "its endpoints are IPv6, and `discovery.family` takes only IPv4");
}

#[test]
fn a_label_says_whether_dns_knows_the_pods() {
    let labelled = |labels: Value| {
        let mut slice = slice("a", "IPv4", &[]);
        slice["metadata"]["labels"] = labels;
        slices(&[slice]).headless()
    };
    assert_eq!(labelled(json!({"service.kubernetes.io/headless": ""})), Some(true));
    assert_eq!(labelled(json!({"kubernetes.io/service-name": "stats"})), Some(false));
    assert_eq!(slices(&[]).headless(), None);
}

#[test]
fn ports_are_found_by_name_or_number_and_a_wrong_one_is_explained() {
    let slices = slices(&[slice("a", "IPv4", &[endpoint("10.0.0.1", "x", &json!({"ready": true}))])]);
    assert_eq!(found(&slices, &PortRef::Number(7400), Family::PreferV4), ["10.0.0.1:7400@x"]);
    assert_eq!(found(&slices, &grpc(), Family::PreferV4), ["10.0.0.1:7402@x"]);
    let said = slices.addresses(&PortRef::Number(80), Family::PreferV4).unwrap_err();
    assert_eq!(said, "its endpoints have no TCP port 80, only grpc=7402 metrics=7400 quic=7402");
    let udp = slices.addresses(&PortRef::Name("quic".into()), Family::PreferV4);
    assert!(udp.unwrap_err().starts_with("its endpoints have no TCP port quic"));
}

#[test]
fn a_hint_for_one_zone_stands_in_for_the_zone() {
    let hinted = |zones: Value| {
        let mut endpoint = endpoint("10.0.0.1", "", &json!({"ready": true}));
        endpoint["hints"] = json!({"forZones": zones});
        slices(&[slice("a", "IPv4", &[endpoint])])
    };
    let zone = |zones: Value| found(&hinted(zones), &grpc(), Family::PreferV4);
    assert_eq!(zone(json!([{"name": "x"}])), ["10.0.0.1:7402@x"]);
    assert_eq!(zone(json!([{"name": "x"}, {"name": "y"}])), ["10.0.0.1:7402@"]);
    assert_eq!(zone(json!(null)), ["10.0.0.1:7402@"]);
}

#[test]
fn events_change_what_is_known_and_errors_do_not() {
    let ready = json!({"ready": true});
    let mut slices = slices(&[slice("a", "IPv4", &[endpoint("10.0.0.1", "x", &ready)])]);
    let other = slice("b", "IPv4", &[endpoint("10.0.0.2", "x", &ready)]);
    event(&mut slices, "ADDED", &other).unwrap();
    assert_eq!(found(&slices, &grpc(), Family::PreferV4).len(), 2);
    event(&mut slices, "BOOKMARK", &json!({"kind": "EndpointSlice", "metadata": {"resourceVersion": "77"}}))
        .unwrap();
    assert_eq!(slices.version(), Some("77"));
    event(&mut slices, "MODIFIED", &slice("b", "IPv4", &[])).unwrap();
    event(&mut slices, "DELETED", &slice("a", "IPv4", &[])).unwrap();
    assert_eq!(slices.addresses(&grpc(), Family::PreferV4).unwrap_err(), "none of its 0 endpoints is ready");
    let gone = json!({"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"});
    assert_eq!(event(&mut slices, "ERROR", &gone).unwrap_err().code, 410);
    slices.expire();
    assert_eq!((slices.version(), slices.by_name.len()), (None, 1));
    event(&mut slices, "DELETED", &other).unwrap();
    let none = slices.addresses(&grpc(), Family::PreferV4).unwrap_err();
    assert!(none.starts_with("there is no EndpointSlice of this Service"), "{none}");
}
