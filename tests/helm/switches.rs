//! Each switch of the values does what its comment says, and nothing else.

use serde_json::{Value, json};

use crate::support::{Objects, PROFILES};

/// `set` has the JSON of a value, as `--set-json` takes it.
fn objects(profile: &str, set: &[&str]) -> Option<Objects> {
    Objects::of(profile, set)
}

const SERVICES: [&str; 4] = ["ingest", "classifier", "ratelimiter", "stats"];

#[test]
fn every_service_has_its_seven_objects() {
    let Some(objects) = objects("production", &[]) else { return };
    for service in SERVICES {
        for kind in [
            "Deployment",
            "ServiceAccount",
            "PodDisruptionBudget",
            "HorizontalPodAutoscaler",
            "NetworkPolicy",
            "ConfigMap",
        ] {
            objects.get(kind, service);
        }
        let headless = objects.get("Service", &format!("{service}-headless"));
        assert_eq!(headless["spec"]["clusterIP"], "None");
        assert_eq!(headless["spec"]["ports"].as_array().unwrap().len(), 2);
    }
    assert_eq!(objects.get("Service", "ingest")["spec"]["type"], "LoadBalancer");
}

#[test]
fn every_pod_is_locked_down() {
    for profile in &PROFILES {
        let Some(objects) = objects(profile.name, &[]) else { return };
        for (name, pod) in objects.pods() {
            assert_eq!(pod["automountServiceAccountToken"], false, "{name}");
            assert_eq!(
                pod["enableServiceLinks"], false,
                "{name}: its variables would be refused as settings"
            );
            assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{name}");
            assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{name}");
            for container in pod["containers"].as_array().unwrap() {
                let context = &container["securityContext"];
                assert_eq!(context["readOnlyRootFilesystem"], true, "{name}");
                assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
                assert_eq!(context["capabilities"], json!({"drop": ["ALL"]}), "{name}");
                for kind in ["requests", "limits"] {
                    assert!(container["resources"][kind]["memory"].is_string(), "{name}: {kind}");
                }
                let mounts = container["volumeMounts"].as_array().unwrap();
                assert!(mounts.iter().any(|mount| mount["mountPath"] == "/tmp"), "{name}");
            }
        }
    }
}

#[test]
fn probes_speak_grpc_and_ask_for_the_service() {
    let Some(objects) = objects("distributed", &[]) else { return };
    for (service, port, name) in [
        ("ingest", 7401, "sightline.ingest.v1.IngestService"),
        ("classifier", 7402, "sightline.classifier.v1.ClassifierService"),
        ("ratelimiter", 7403, "sightline.ratelimiter.v1.RateLimiterService"),
        ("stats", 7404, "sightline.stats.v1.StatsService"),
    ] {
        for probe in ["startupProbe", "readinessProbe", "livenessProbe"] {
            let grpc = &objects.pod(service)["containers"][0][probe]["grpc"];
            assert_eq!(*grpc, json!({"port": port, "service": name}), "{service}");
        }
    }
}

#[test]
fn a_stop_has_time_to_drain() {
    let Some(defaults) = objects("production", &[]) else { return };
    let set = ["ingest.drainSeconds=40", "ingest.preStopSeconds=7"];
    let longer = objects("production", &set).unwrap();
    let grace = |objects: &Objects| objects.pod("ingest")["terminationGracePeriodSeconds"].as_u64().unwrap();
    // preStop, a lame duck of 5 s, then a drain and a flush of drainSeconds each, and 5 s to spare.
    assert_eq!((grace(&defaults), grace(&longer)), (5 + 2 * 10 + 5, 7 + 5 + 2 * 40 + 5));
    assert!(defaults.config("ingest").contains("[server]\nlame_duck = \"5s\"\n"));
    assert!(defaults.pod("ingest")["containers"][0]["lifecycle"].is_null(), "the lame duck does it");
    let patient = objects("production", &["server.lameDuckSeconds=20"]).unwrap();
    assert_eq!(grace(&patient), 20 + 2 * 10 + 5);
    // One lame duck for the four services of one pod.
    let small = objects("small", &[]).unwrap();
    let pod = &small.get("StatefulSet", "all-in-one")["spec"]["template"]["spec"];
    assert_eq!(pod["terminationGracePeriodSeconds"], 5 + 4 * 2 * 5 + 5);
    let sleep = &longer.pod("ingest")["containers"][0]["lifecycle"]["preStop"]["sleep"];
    assert_eq!(*sleep, json!({"seconds": 7}));
    assert!(longer.config("ingest").contains("drain_timeout = \"40s\""));
    let explicit = objects("production", &["ingest.terminationGracePeriodSeconds=99"]).unwrap();
    assert_eq!(grace(&explicit), 99);
}

#[test]
fn a_rollout_takes_no_pod_away_before_another_is_ready() {
    let Some(objects) = objects("production", &[]) else { return };
    for service in SERVICES {
        let strategy = &objects.get("Deployment", service)["spec"]["strategy"];
        assert_eq!(
            *strategy,
            json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}})
        );
    }
}

#[test]
fn sqlite_is_one_pod_on_a_claim_that_stays() {
    let Some(own) = objects("distributed", &[]) else { return };
    assert_eq!(own.get("Deployment", "stats")["spec"]["strategy"], json!({"type": "Recreate"}));
    let claim = own.get("PersistentVolumeClaim", "stats");
    assert_eq!(claim["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
    assert!(own.find("Job", "migrate").is_none());

    let existing = objects("distributed", &[r#"stats.persistence.existingClaim="mine""#]).unwrap();
    assert!(existing.find("PersistentVolumeClaim", "stats").is_none());
    let volumes = existing.pod("stats")["volumes"].as_array().unwrap();
    assert!(volumes.iter().any(|volume| volume["persistentVolumeClaim"]["claimName"] == "mine"));
}

#[test]
fn secrets_come_by_reference_to_those_who_need_them() {
    let Some(objects) = objects("production", &[]) else { return };
    let variables = |pod: &Value| -> Vec<(String, String)> {
        let env = pod["containers"][0]["env"].as_array().cloned().unwrap_or_default();
        let by_reference = |entry: &Value| {
            let key = &entry["valueFrom"]["secretKeyRef"];
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            (text(&entry["name"]), format!("{}/{}", text(&key["name"]), text(&key["key"])))
        };
        env.iter().filter(|entry| entry["valueFrom"].is_object()).map(by_reference).collect()
    };
    let pair = |name: &str, from: &str| vec![(name.to_owned(), from.to_owned())];
    let postgres = pair("SIGHTLINE_STATS_POSTGRES_URL", "sightline-postgres/url");
    assert_eq!(
        variables(objects.pod("ingest")),
        pair("SIGHTLINE_INGEST_CACHE_REDIS_URL", "sightline-redis/cache-url")
    );
    assert_eq!(
        variables(objects.pod("ratelimiter")),
        pair("SIGHTLINE_RATELIMITER_REDIS_URL", "sightline-redis/ratelimiter-url")
    );
    assert_eq!(variables(objects.pod("stats")), postgres);
    assert_eq!(variables(&objects.get("Job", "migrate")["spec"]["template"]["spec"]), postgres);
    assert_eq!(variables(objects.pod("classifier")), []);
    assert!(objects.0.iter().all(|object| object["kind"] != "Secret"));

    // Keys for tokens as files; only ingest has a token to show.
    let sources = |service: &str| {
        let volumes = objects.pod(service)["volumes"].as_array().unwrap();
        let auth = volumes.iter().find(|volume| volume["name"] == "auth").unwrap();
        let sources = auth["projected"]["sources"].as_array().unwrap();
        sources.iter().map(|source| source["secret"]["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(sources("ingest"), ["sightline-auth", "sightline-service-token"]);
    assert_eq!(sources("stats"), ["sightline-auth"]);
}

#[test]
fn the_schema_is_brought_up_before_anything_starts() {
    let Some(own) = objects("production", &[]) else { return };
    let job = own.get("Job", "migrate");
    assert_eq!(job["metadata"]["annotations"]["helm.sh/hook"], "pre-install,pre-upgrade");
    assert_eq!(job["spec"]["template"]["spec"]["containers"][0]["args"], json!(["migrate"]));
    // What the job needs is there before it.
    for kind in ["ServiceAccount", "NetworkPolicy"] {
        assert_eq!(own.get(kind, "migrate")["metadata"]["annotations"]["helm.sh/hook-weight"], "-10");
    }
    let off = objects("production", &["migration.enabled=false"]).unwrap();
    assert!(off.find("Job", "migrate").is_none() && off.find("ServiceAccount", "migrate").is_none());
}

#[test]
fn a_gpu_classifier_goes_to_a_gpu_node_with_the_cuda_image() {
    let Some(objects) = objects("gpu", &[]) else { return };
    let pod = objects.pod("classifier");
    assert_eq!(pod["containers"][0]["image"], "sightline:0.1.0-cuda");
    assert_eq!(pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"], 1);
    assert_eq!(pod["nodeSelector"]["nvidia.com/gpu.present"], "true");
    assert_eq!(pod["runtimeClassName"], "nvidia");
    assert_eq!(pod["tolerations"][0]["key"], "nvidia.com/gpu");
    assert!(objects.config("classifier").contains("device = \"cuda:0\""));
    assert_eq!(objects.pod("ingest")["containers"][0]["image"], "sightline:0.1.0");
    let metrics = &objects.get("HorizontalPodAutoscaler", "classifier")["spec"]["metrics"];
    assert_eq!(metrics.as_array().unwrap().len(), 1);
    assert_eq!(metrics[0]["pods"]["metric"]["name"], "classifier_queue_depth");
}

#[test]
fn models_come_from_where_the_values_say() {
    let source = |set: &str| objects("distributed", &[set]);
    let Some(image) = source("classifier.models=[\"a\",\"b\"]") else { return };
    assert!(
        image
            .config("classifier")
            .contains(r#"models = ["/opt/sightline/models/a","/opt/sightline/models/b"]"#)
    );
    let volume = |objects: &Objects| {
        let volumes = objects.pod("classifier")["volumes"].as_array().unwrap();
        volumes.iter().find(|volume| volume["name"] == "models").cloned()
    };
    assert_eq!(volume(&image), None);
    let pvc = source(r#"classifier.modelSource={"kind":"pvc","claimName":"m"}"#).unwrap();
    let claim = json!({"claimName": "m", "readOnly": true});
    assert_eq!(volume(&pvc).unwrap()["persistentVolumeClaim"], claim);
    assert!(pvc.config("classifier").contains(r#"models = ["/models/nsfwjs-mobilenet-v2"]"#));
    let host = source(r#"classifier.modelSource={"kind":"hostPath","hostPath":"/srv/m"}"#).unwrap();
    assert_eq!(volume(&host).unwrap()["hostPath"]["path"], "/srv/m");
    let init =
        source(r#"classifier.modelSource={"kind":"init","init":{"command":["cp","-r","/m","/models"]}}"#);
    let init = init.unwrap();
    let container = &init.pod("classifier")["initContainers"][0];
    assert_eq!(container["command"], json!(["cp", "-r", "/m", "/models"]));
    assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
    assert!(volume(&init).unwrap()["emptyDir"].is_object());
}

#[test]
fn a_changed_configuration_is_a_changed_pod() {
    let Some(before) = objects("production", &[]) else { return };
    let after =
        objects("production", &[r#"ingest.settings={"cache_ttl":"1m"}"#, r#"policy={"mild":0.25}"#]).unwrap();
    let checksum = |objects: &Objects, service: &str| {
        let template = &objects.get("Deployment", service)["spec"]["template"];
        template["metadata"]["annotations"]["checksum/config"].clone()
    };
    assert_ne!(checksum(&before, "ingest"), checksum(&after, "ingest"));
    assert_eq!(checksum(&before, "stats"), checksum(&after, "stats"));
    let config = after.config("ingest");
    assert!(config.contains("cache_ttl = \"1m\"") && config.contains("[policy]\nmild = 0.25"), "{config}");
}

#[test]
fn pods_that_watch_know_their_zone_and_every_section_has_settings() {
    let Some(defaults) = objects("production", &[]) else { return };
    let zone = |objects: &Objects| {
        let env = objects.pod("ingest")["containers"][0]["env"].clone();
        env.as_array().into_iter().flatten().find(|entry| entry["name"] == "SIGHTLINE_MESH_ZONE").cloned()
    };
    assert!(zone(&defaults).is_none());
    let watching = objects("production", &[r#"discovery.kind="kubernetes""#]).unwrap();
    let label = "metadata.labels['topology.kubernetes.io/zone']";
    assert_eq!(zone(&watching).unwrap()["valueFrom"]["fieldRef"]["fieldPath"], label);
    let set = [
        r#"discovery.kind="kubernetes""#,
        r#"discovery.settings={"kubernetes_patience":"9s"}"#,
        r#"mesh.settings={"zone":"north"}"#,
        r#"node.settings={"worker_threads":3}"#,
    ];
    let told = objects("production", &set).unwrap();
    assert!(zone(&told).is_none(), "an empty label would take its place");
    let config = told.config("ingest");
    for line in ["kubernetes_patience = \"9s\"", "[mesh]\nzone = \"north\"", "worker_threads = 3"] {
        assert!(config.contains(line), "{config}");
    }
}

#[test]
fn limits_of_ones_own_are_a_file() {
    let Some(objects) = objects("distributed", &[r#"ratelimiter.customRules="[[rule]]\nname = \"x\"""#])
    else {
        return;
    };
    let data = &objects.get("ConfigMap", "ratelimiter")["data"];
    assert_eq!(data["rules.toml"].as_str().unwrap().trim(), "[[rule]]\nname = \"x\"");
    assert!(objects.config("ratelimiter").contains("rules = \"/etc/sightline/rules.toml\""));
}

#[test]
fn an_autoscaled_deployment_leaves_its_replicas_alone() {
    let Some(on) = objects("production", &[]) else { return };
    assert!(on.get("Deployment", "ingest")["spec"].get("replicas").is_none());
    let bounds = |service: &str| {
        let spec = &on.get("HorizontalPodAutoscaler", service)["spec"];
        (spec["minReplicas"].as_u64().unwrap(), spec["maxReplicas"].as_u64().unwrap())
    };
    assert_eq!((bounds("ingest"), bounds("classifier")), ((5, 50), (10, 100)));
    let metrics = on.get("HorizontalPodAutoscaler", "ingest")["spec"]["metrics"].as_array().unwrap();
    let targets: Vec<_> = metrics
        .iter()
        .map(|metric| (&metric["resource"]["name"], &metric["resource"]["target"]["averageUtilization"]))
        .collect();
    assert_eq!(targets, [(&json!("cpu"), &json!(70)), (&json!("memory"), &json!(80))]);
    let off = objects("production", &["ingest.autoscaling.enabled=false", "ingest.replicas=7"]).unwrap();
    assert_eq!(off.get("Deployment", "ingest")["spec"]["replicas"], 7);
    assert!(off.find("HorizontalPodAutoscaler", "ingest").is_none());
}

#[test]
fn only_those_talk_who_must() {
    let Some(objects) = objects("production", &[]) else { return };
    let policy = |service: &str| objects.get("NetworkPolicy", service)["spec"].clone();
    let callers = |service: &str| {
        let rule = policy(service)["ingress"][0].clone();
        assert_eq!(rule["ports"][0]["port"], "grpc");
        let from = rule["from"].as_array().cloned().unwrap_or_default();
        let component =
            |peer: &Value| peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"].clone();
        from.iter().map(component).collect::<Vec<_>>()
    };
    for service in ["classifier", "ratelimiter", "stats"] {
        assert_eq!(callers(service), [json!("ingest")], "{service}");
    }
    assert_eq!(callers("ingest"), [] as [Value; 0]);
    let called = |service: &str| {
        let egress = policy(service)["egress"].as_array().unwrap().clone();
        egress.iter().map(|rule| rule["ports"][0]["port"].as_u64().unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(called("ingest"), [53, 7402, 7403, 7404, 6379]);
    assert_eq!(called("classifier"), [53]);
    assert_eq!(called("ratelimiter"), [53, 6379]);
    assert_eq!(called("stats"), [53, 5432]);
    assert_eq!(called("migrate"), [53, 5432]);

    let off = crate::switches::objects("production", &["networkPolicy.enabled=false"]).unwrap();
    assert!(off.0.iter().all(|object| object["kind"] != "NetworkPolicy"));
}

#[test]
fn certificates_go_to_those_who_check_them() {
    let Some(objects) = objects("production", &[r#"ca.secretName="own-ca""#]) else { return };
    for (service, key) in
        [("ingest", "cache_redis_ca_file"), ("ratelimiter", "redis_ca_file"), ("stats", "postgres_ca_file")]
    {
        assert!(
            objects.config(service).contains(&format!("\n{key} = \"/etc/sightline-ca/ca.crt\"")),
            "{service}"
        );
    }
    let with_ca = objects.pods().into_iter().filter(|(_, pod)| {
        let volumes = pod["volumes"].as_array().unwrap();
        volumes.iter().any(|volume| volume["secret"]["secretName"] == "own-ca")
    });
    let names: Vec<_> = with_ca.map(|(name, _)| name.trim_start_matches("sightline-").to_owned()).collect();
    assert_eq!(names.len(), 4, "{names:?}");
    assert!(!names.contains(&"classifier".to_owned()), "{names:?}");
}

#[test]
fn traces_go_to_the_collector() {
    let set = [r#"telemetry.otlpEndpoint="http://otel:4317""#];
    let Some(objects) = objects("production", &set) else { return };
    for service in SERVICES {
        assert!(objects.config(service).contains("otlp_endpoint = \"http://otel:4317\""));
        let egress = objects.get("NetworkPolicy", service)["spec"]["egress"].as_array().unwrap().clone();
        assert!(egress.iter().any(|rule| rule["ports"][0]["port"] == 4317), "{service}");
    }
}

#[test]
fn the_small_profile_is_one_pod_with_a_volume() {
    let Some(objects) = objects("small", &[]) else { return };
    assert_eq!(objects.pods().len(), 1);
    let set = objects.get("StatefulSet", "all-in-one");
    let container = &set["spec"]["template"]["spec"]["containers"][0];
    assert_eq!(
        container["args"],
        json!([
            "serve",
            "ratelimiter",
            "classifier",
            "stats",
            "ingest",
            "--config",
            "/etc/sightline/sightline.toml"
        ])
    );
    assert_eq!(set["spec"]["volumeClaimTemplates"][0]["metadata"]["name"], "data");
    let config = objects.config("all-in-one");
    assert!(config.contains("listen = \"0.0.0.0:7401\"") && config.contains("listen = \"127.0.0.1:7404\""));
    assert!(config.contains("insecure = true"));
    let selector = &objects.get("Service", "ingest")["spec"]["selector"];
    assert_eq!(selector["app.kubernetes.io/component"], "all-in-one");
}

#[test]
fn extras_are_off_until_asked_for() {
    let Some(plain) = objects("distributed", &[]) else { return };
    for kind in ["ServiceMonitor", "PrometheusRule", "Ingress", "HorizontalPodAutoscaler"] {
        assert!(plain.0.iter().all(|object| object["kind"] != kind), "{kind}");
    }
    assert!(plain.find("ConfigMap", "dashboard").is_none());
    let ingress =
        r#"ingest.ingress={"enabled":true,"host":"s.example.com","tlsSecretName":"t","className":"nginx"}"#;
    let set = [
        r#"insecure.confirm="""#,
        r#"auth={"secretName":"a","serviceTokenSecretName":"b"}"#,
        ingress,
        r#"commonLabels={"team":"safety"}"#,
        r#"commonAnnotations={"note":"x"}"#,
        r#"imagePullSecrets=[{"name":"registry"}]"#,
        r#"ingest.priorityClassName="high""#,
        r#"image.digest="sha256:0000000000000000000000000000000000000000000000000000000000000000""#,
    ];
    let full = objects("distributed", &set).unwrap();
    assert_eq!(full.get("Ingress", "ingest")["spec"]["tls"][0]["secretName"], "t");
    for object in &full.0 {
        assert_eq!(object["metadata"]["labels"]["team"], "safety", "{}", object["kind"]);
        assert_eq!(object["metadata"]["annotations"]["note"], "x", "{}", object["kind"]);
    }
    let pod = full.pod("ingest");
    assert_eq!(
        (&pod["priorityClassName"], &pod["imagePullSecrets"][0]["name"]),
        (&json!("high"), &json!("registry"))
    );
    assert!(pod["containers"][0]["image"].as_str().unwrap().starts_with("sightline@sha256:0000"));
    // What pods are found by never carries labels that may change.
    let selector = full.get("Deployment", "ingest")["spec"]["selector"]["matchLabels"].as_object().unwrap();
    assert_eq!(selector.len(), 3);
}
