//! How ingest finds the other services' pods, and what it may do for that.

use serde_json::{Value, json};

use crate::{cluster::cluster, support::Objects};

const WATCHING: [&str; 1] = [r#"discovery.kind="kubernetes""#];

#[test]
fn names_are_looked_up_by_default_and_nothing_is_granted() {
    let Some(objects) = Objects::of("distributed", &[r#"clusterDomain="corp.local""#]) else { return };
    let config = objects.config("ingest");
    for (service, port) in [("classifier", 7402), ("ratelimiter", 7403), ("stats", 7404)] {
        let name = format!("sightline-{service}-headless.sightline.svc.corp.local.");
        assert!(config.contains(&format!("\n{service} = [\"dns://{name}:{port}\"]\n")), "{config}");
    }
    assert!(!config.contains("[discovery]"), "{config}");
    assert!(objects.0.iter().all(|object| object["kind"] != "Role" && object["kind"] != "RoleBinding"));
}

#[test]
fn an_ingest_that_watches_has_a_token_and_others_have_none() {
    let Some(objects) = Objects::of("production", &WATCHING) else { return };
    let config = objects.config("ingest");
    assert!(
        config.contains("\nclassifier = [\"k8s://sightline/sightline-classifier-headless:grpc\"]\n"),
        "{config}"
    );
    assert!(config.contains("[discovery]\nkubernetes_domain = \"cluster.local\"\n"), "{config}");
    // The name of the port is one that the Service gives.
    let ports = &objects.get("Service", "classifier-headless")["spec"]["ports"];
    assert_eq!(ports[0]["name"], "grpc");
    for service in ["ingest", "classifier", "ratelimiter", "stats"] {
        let mounted = &objects.pod(service)["automountServiceAccountToken"];
        assert_eq!(*mounted, json!(service == "ingest"), "{service}");
    }
    let egress = objects.get("NetworkPolicy", "ingest")["spec"]["egress"].as_array().unwrap();
    let to_api = json!([{"port": 443, "protocol": "TCP"}, {"port": 6443, "protocol": "TCP"}]);
    assert!(egress.iter().any(|rule| rule["ports"] == to_api), "{egress:?}");

    let without = Objects::of("production", &[WATCHING[0], "discovery.rbac=false"]).unwrap();
    assert!(without.find("Role", "ingest-discovery").is_none());
    assert_eq!(without.pod("ingest")["automountServiceAccountToken"], true);
}

#[test]
fn the_rights_are_enough_to_watch_and_for_nothing_else() {
    let Some(objects) = Objects::of("distributed", &WATCHING) else { return };
    let Some(share) = cluster() else { return };
    let cluster = share.alone();
    let namespace = "watching";
    cluster.namespace(namespace);
    let of_rights = ["ServiceAccount", "Role", "RoleBinding"];
    let mut rights: Vec<Value> = objects
        .0
        .iter()
        .filter(|object| of_rights.iter().any(|kind| object["kind"] == *kind))
        .cloned()
        .collect();
    for object in &mut rights {
        object["metadata"]["namespace"] = json!(namespace);
        if object["kind"] == "RoleBinding" {
            object["subjects"][0]["namespace"] = json!(namespace);
        }
    }
    cluster.create(&rights);
    let may = |service: &str, verb: &str, kind: &str, namespace: &str| {
        let who = format!("--as=system:serviceaccount:watching:sightline-{service}");
        // Its status says no as well, which is no failure here.
        let said = cluster.kubernetes.kubectl(&["auth", "can-i", verb, kind, &who, "--namespace", namespace]);
        said.is_ok_and(|said| said.trim() == "yes")
    };
    let slices = "endpointslices.discovery.k8s.io";
    for verb in ["get", "list", "watch"] {
        assert!(may("ingest", verb, slices, namespace), "{verb}");
    }
    for verb in ["create", "update", "delete"] {
        assert!(!may("ingest", verb, slices, namespace), "{verb}");
    }
    assert!(!may("ingest", "list", slices, "default"));
    assert!(!may("ingest", "list", "secrets", namespace));
    assert!(!may("stats", "list", slices, namespace));
}
