//! TLS in the chart: who a service is, what it is given, who may call it, and probes that work with it.

use serde_json::{Value, json};

use crate::support::{Objects, Profile, TLS, parse, render};

const SERVICES: [&str; 4] = ["ingest", "classifier", "ratelimiter", "stats"];
const CERT_MANAGER: [&str; 4] = [
    "--api-versions",
    "cert-manager.io/v1/Certificate",
    "--set-json",
    r#"tls={"enabled":true,"trustDomain":"mesh.example","certManager":{"enabled":true,"issuer":{"name":"ours"}}}"#,
];

fn volume<'a>(objects: &'a Objects, service: &str, name: &str) -> &'a Value {
    let volumes = objects.pod(service)["volumes"].as_array().unwrap();
    volumes.iter().find(|volume| volume["name"] == name).unwrap_or(&Value::Null)
}

fn probe<'a>(objects: &'a Objects, service: &str, kind: &str) -> &'a Value {
    &objects.pod(service)["containers"][0][kind]
}

#[test]
fn each_service_has_its_certificate_and_takes_ingest_and_whom_it_is_told() {
    let more = r#"tls.callers.stats=["spiffe://mesh.example/ns/tools/*"]"#;
    let Some(objects) = Objects::of("production", &[TLS, &[more]].concat()) else { return };
    let id = |service: &str| format!("spiffe://mesh.example/ns/sightline/sa/sightline-{service}");
    for service in SERVICES {
        let config = objects.config(service);
        assert!(config.contains("cert_file = \"/etc/sightline-tls/tls.crt\""), "{config}");
        let sources = &volume(&objects, service, "tls")["projected"]["sources"];
        assert_eq!(sources[0]["secret"]["name"], format!("{service}-cert"));
        assert_eq!(sources[1]["configMap"]["name"], "authorities", "{sources}");
        let account = &objects.pod(service)["serviceAccountName"];
        assert_eq!(*account, format!("sightline-{service}"), "the id says so");
        let callers = match service {
            "ingest" => continue,
            "stats" => format!("stats = [{:?},\"spiffe://mesh.example/ns/tools/*\"]", id("ingest")),
            _ => format!("{service} = [{:?}]", id("ingest")),
        };
        assert!(config.contains(&format!("[tls.callers]\n{callers}\n")), "{config}");
        assert!(objects.config("ingest").contains(&format!("\n{service} = [{:?}]\n", id(service))));
        let headless = objects.get("Service", &format!("{service}-headless"));
        assert_eq!(headless["spec"]["ports"][0]["appProtocol"], "https");
    }
    assert!(!objects.config("ingest").contains("[edge_tls]"));
    assert_eq!(objects.get("Service", "ingest")["spec"]["ports"][0]["appProtocol"], "kubernetes.io/h2c");
}

#[test]
fn the_edge_has_a_certificate_of_its_own_in_every_mode() {
    for (profile, kind, name) in
        [("production", "Deployment", "ingest"), ("small", "StatefulSet", "all-in-one")]
    {
        let Some(objects) = Objects::of(profile, &[r#"edgeTls.secretName="edge""#]) else { return };
        let config = objects.config(name);
        assert!(config.contains("[edge_tls]\ncert_file = \"/etc/sightline-edge-tls/tls.crt\""), "{config}");
        assert!(!config.contains("[tls]"), "{config}");
        let pod = &objects.get(kind, name)["spec"]["template"]["spec"];
        let volumes = pod["volumes"].as_array().unwrap();
        assert!(volumes.iter().any(|volume| volume["secret"]["secretName"] == "edge"), "{volumes:?}");
        assert_eq!(pod["containers"][0]["readinessProbe"]["httpGet"]["path"], "/servingz");
        assert_eq!(objects.get("Service", "ingest")["spec"]["ports"][0]["appProtocol"], "https");
    }
}

/// Kubernetes' gRPC probes speak no TLS.
#[test]
fn probes_of_ports_with_tls_ask_the_port_for_metrics() {
    let kinds = [("startupProbe", "/servingz"), ("readinessProbe", "/servingz"), ("livenessProbe", "/livez")];
    let Some(inside) = Objects::of("distributed", TLS) else { return };
    let edge = Objects::of("distributed", &[r#"edgeTls.secretName="edge""#]).unwrap();
    for (kind, path) in kinds {
        for service in SERVICES {
            let [by_http, by_grpc] = match service {
                "ingest" => [&edge, &inside],
                _ => [&inside, &edge],
            }
            .map(|objects| probe(objects, service, kind));
            assert_eq!(by_http["httpGet"], json!({"path": path, "port": "metrics"}), "{service}");
            assert!(by_http["grpc"].is_null() && by_grpc["grpc"].is_object() && by_grpc["httpGet"].is_null());
        }
    }
    // Which every pod serves beyond loopback.
    assert!(inside.config("stats").contains("admin_listen = \"0.0.0.0:7400\""));
}

#[test]
fn cert_manager_is_asked_for_what_services_are_verified_by() {
    let edge = r#"edgeTls={"secretName":"edge","certManager":{"enabled":true,"dnsNames":["images.example"],"issuer":{"name":"public","kind":"ClusterIssuer"}}}"#;
    let mut arguments = Profile::named("production").arguments();
    arguments.extend(CERT_MANAGER.iter().chain(&["--set-json", edge]).map(ToString::to_string));
    let Some(text) = render(&arguments) else { return };
    let objects = Objects(parse(&text));
    for service in SERVICES {
        let spec = &objects.get("Certificate", &format!("{service}-tls"))["spec"];
        assert_eq!(
            spec["uris"],
            json!([format!("spiffe://mesh.example/ns/sightline/sa/sightline-{service}")])
        );
        assert_eq!(spec["issuerRef"], json!({"group": "cert-manager.io", "kind": "Issuer", "name": "ours"}));
        assert_eq!(spec["usages"], json!(["digital signature", "server auth", "client auth"]));
        // What it writes is what the pods mount, with the authority beside it.
        let source = &volume(&objects, service, "tls")["projected"]["sources"][0]["secret"];
        assert_eq!(source["name"], spec["secretName"]);
        let keys: Vec<_> =
            source["items"].as_array().unwrap().iter().map(|item| item["key"].clone()).collect();
        assert_eq!(keys, ["tls.crt", "tls.key", "ca.crt"]);
    }
    let public = &objects.get("Certificate", "ingest-edge-tls")["spec"];
    assert_eq!((&public["secretName"], &public["dnsNames"]), (&json!("edge"), &json!(["images.example"])));
    assert_eq!(public["issuerRef"]["kind"], "ClusterIssuer");
}
