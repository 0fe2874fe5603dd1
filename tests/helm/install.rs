//! Installed, upgraded and rolled back on a real API server, with its controllers and scheduler at work.

use std::{
    collections::BTreeSet,
    fs,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    cluster::{Cluster, cluster},
    kubelet::pause,
    support::{Profile, chart, helm, parse},
};

/// A release in a namespace of its own.
struct Release<'a> {
    cluster: &'a Cluster,
    namespace: &'static str,
}

impl Release<'_> {
    /// Runs Helm on the release, which must succeed, and waits until everything is ready.
    fn helm(&self, command: &str, arguments: &[String]) -> String {
        let mut helm = helm().unwrap();
        helm.args([command, "sightline"]).args(arguments).args(["--namespace", self.namespace]);
        helm.arg("--kubeconfig").arg(self.cluster.kubernetes.kubeconfig());
        let output = helm.output().unwrap();
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{command}: {said}{}", String::from_utf8_lossy(&output.stderr));
        said
    }

    fn apply(&self, command: &str, profile: &str, set: &[&str]) -> String {
        let mut arguments = vec![chart().display().to_string(), "--wait".into(), "--timeout=4m".into()];
        arguments.extend(Profile::named(profile).arguments());
        arguments.extend(set.iter().flat_map(|value| ["--set-json".into(), (*value).into()]));
        self.helm(command, &arguments)
    }

    fn rollback(&self, revision: &str) {
        self.helm("rollback", &[revision.into(), "--wait".into(), "--timeout=4m".into()]);
    }

    /// Objects of a kind, by the API's path below the namespace.
    fn list(&self, group: &str, kind: &str) -> Vec<Value> {
        let list = self.cluster.get(&format!("/{group}/namespaces/{}/{kind}", self.namespace));
        list["items"].as_array().unwrap().clone()
    }

    /// Pods of a component that are ready and shall stay.
    fn ready(&self, component: &str) -> Vec<Value> {
        let mut pods = self.list("api/v1", "pods");
        pods.retain(|pod| {
            let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
            pod["metadata"]["labels"]["app.kubernetes.io/component"] == component
                && pod["metadata"]["deletionTimestamp"].is_null()
                && conditions.iter().any(|entry| entry["type"] == "Ready" && entry["status"] == "True")
        });
        pods
    }

    /// Every object of the release is there, as the server keeps it.
    fn assert_all_there(&self) {
        let manifest = {
            let mut helm = helm().unwrap();
            helm.args(["get", "manifest", "sightline", "--namespace", self.namespace]);
            helm.arg("--kubeconfig").arg(self.cluster.kubernetes.kubeconfig());
            String::from_utf8(helm.output().unwrap().stdout).unwrap()
        };
        let file = self.cluster.folder.path().join("manifest.yaml");
        fs::write(&file, &manifest).unwrap();
        let path = file.display().to_string();
        let found = self.cluster.kubernetes.kubectl(&["get", "-f", &path, "-o", "json"]).unwrap();
        let found: Value = serde_json::from_str(&found).unwrap();
        let wanted = parse(&manifest).len();
        assert!(wanted >= 5);
        assert_eq!(found["items"].as_array().unwrap().len(), wanted);
    }

    fn uninstall(self) {
        self.helm("uninstall", &["--wait".into()]);
        self.cluster.kubernetes.kubectl(&["delete", "namespace", self.namespace, "--wait=false"]).unwrap();
    }
}

fn release<'a>(cluster: &'a Cluster, namespace: &'static str) -> Release<'a> {
    cluster.namespace(namespace);
    Release { cluster, namespace }
}

/// Waits until it holds, a minute at most.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let since = Instant::now();
    while !holds() {
        assert!(since.elapsed() < Duration::from_secs(60), "not after a minute: {what}");
        pause();
    }
}

fn images(pods: &[Value]) -> BTreeSet<&str> {
    pods.iter().map(|pod| pod["spec"]["containers"][0]["image"].as_str().unwrap()).collect()
}

fn nodes(pods: &[Value]) -> BTreeSet<&str> {
    pods.iter().map(|pod| pod["spec"]["nodeName"].as_str().unwrap()).collect()
}

#[test]
fn the_small_profile_is_installed_upgraded_and_rolled_back() {
    let (Some(_), Some(share)) = (helm(), cluster()) else { return };
    let cluster = share.alone();
    let release = release(&cluster, "small");
    let notes = release.apply("install", "small", &[]);
    assert!(notes.contains("rollout status statefulset/sightline-all-in-one"), "{notes}");
    assert!(notes.contains("WARNING: nobody has to show a token"), "{notes}");
    release.assert_all_there();
    let volume = |pods: &[Value]| {
        let volumes = pods[0]["spec"]["volumes"].as_array().unwrap();
        volumes.iter().find(|volume| volume["name"] == "data").unwrap()["persistentVolumeClaim"].clone()
    };
    let log = |release: &Release| {
        let maps = release.list("api/v1", "configmaps");
        let own = maps.iter().find(|map| map["metadata"]["name"] == "sightline-all-in-one").unwrap();
        own["data"]["sightline.toml"]
            .as_str()
            .unwrap()
            .lines()
            .find(|line| line.starts_with("log "))
            .unwrap()
            .to_owned()
    };
    let first = release.ready("all-in-one");
    assert_eq!((first.len(), volume(&first)["claimName"].as_str()), (1, Some("data-sightline-all-in-one-0")));
    let claims = release.list("api/v1", "persistentvolumeclaims");
    assert_eq!(claims[0]["status"]["phase"], "Bound");

    release.apply("upgrade", "small", &[r#"telemetry.log="debug""#]);
    let second = release.ready("all-in-one");
    assert_ne!(
        first[0]["metadata"]["uid"], second[0]["metadata"]["uid"],
        "a new configuration needs a new pod"
    );
    assert_eq!((volume(&first), log(&release).as_str()), (volume(&second), "log = \"debug\""));

    release.rollback("1");
    assert_eq!((release.ready("all-in-one").len(), log(&release).as_str()), (1, "log = \"info\""));
    release.assert_all_there();
    release.uninstall();
}

#[test]
fn the_production_profile_is_installed_upgraded_and_rolled_back_without_a_gap() {
    let (Some(_), Some(share)) = (helm(), cluster()) else { return };
    let cluster = share.alone();
    let release = release(&cluster, "production");
    release.apply("install", "production", &[]);
    release.assert_all_there();

    // The migration ran before any pod of a service, and its job is gone.
    assert_migrated_first(&release);
    assert_eq!(release.list("apis/batch/v1", "jobs").len(), 0);
    let counts = [("ingest", 5), ("classifier", 10), ("ratelimiter", 3), ("stats", 2)];
    for (service, count) in counts {
        eventually(&format!("{count} pods of {service}"), || release.ready(service).len() == count);
    }
    as_intended(&release);
    // What the autoscalers started since then is not the upgrade's.
    cluster.kubelets.started("production");

    let upgrade = || {
        let set = [r#"image.tag="0.1.1""#, r#"ingest.settings.cache_ttl="1m""#];
        release.apply("upgrade", "production", &set);
    };
    let ((), fewest) = cluster.kubelets.fewest_ready(upgrade);
    for (service, count) in counts {
        assert_eq!(fewest[&format!("production/{service}")], count, "{service} had a gap: {fewest:?}");
        assert_eq!(images(&release.ready(service)), BTreeSet::from(["sightline:0.1.1"]), "{service}");
    }
    assert_migrated_first(&release);

    let ((), fewest) = cluster.kubelets.fewest_ready(|| release.rollback("1"));
    for (service, count) in counts {
        assert_eq!(fewest[&format!("production/{service}")], count, "{service} had a gap: {fewest:?}");
        assert_eq!(images(&release.ready(service)), BTreeSet::from(["sightline:0.1.0"]), "{service}");
    }
    let started = cluster.kubelets.started("production");
    assert!(!started.contains(&"migrate".into()), "a rollback leaves the schema as it is: {started:?}");
    release.assert_all_there();
    release.uninstall();
}

fn on(pods: &[Value], node: &str) -> usize {
    pods.iter().filter(|pod| pod["spec"]["nodeName"] == node).count()
}

fn assert_migrated_first(release: &Release) {
    let started = release.cluster.kubelets.started(release.namespace);
    let migrations = started.iter().filter(|component| *component == "migrate").count();
    assert!(started[0] == "migrate" && migrations == 1 && started.len() > 4, "{started:?}");
}

/// What the controllers and the scheduler made of the production profile.
fn as_intended(release: &Release) {
    for service in ["ingest", "classifier", "ratelimiter", "stats"] {
        let pods = release.ready(service);
        for pod in &pods {
            let spec = &pod["spec"];
            assert_eq!(spec["serviceAccountName"], format!("sightline-{service}").as_str());
            assert_eq!(
                (&spec["enableServiceLinks"], &spec["automountServiceAccountToken"]),
                (&json!(false), &json!(false))
            );
            assert_eq!(spec["terminationGracePeriodSeconds"], 30);
            // Nothing before SIGTERM: the lame duck after it takes as long as endpoints take to go.
            assert!(spec["containers"][0]["lifecycle"].is_null(), "{spec}");
            assert_eq!(spec["containers"][0]["securityContext"]["readOnlyRootFilesystem"], true);
        }
        let files = release.list("api/v1", "configmaps");
        let own = files.iter().find(|map| map["metadata"]["name"] == format!("sightline-{service}").as_str());
        assert!(own.unwrap()["data"]["sightline.toml"].as_str().unwrap().contains("lame_duck = \"5s\""));
        // Over every zone, as far as pods reach, and never on a GPU node.
        assert_eq!(nodes(&pods).len(), pods.len().min(3), "{service}: {:?}", nodes(&pods));
        assert!(!nodes(&pods).contains("gpu1"), "{service}");
        let most = nodes(&pods).iter().map(|node| on(&pods, node)).max();
        assert!(most <= Some(pods.len().div_ceil(3)), "{service}: {most:?} of {} in one zone", pods.len());
        // DNS of the headless Service answers with every pod.
        eventually(&format!("endpoints of {service}"), || {
            let slices = release.list("apis/discovery.k8s.io/v1", "endpointslices");
            let name = format!("sightline-{service}-headless");
            let own = slices
                .iter()
                .filter(|s| s["metadata"]["labels"]["kubernetes.io/service-name"] == name.as_str());
            let endpoints = own.flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default());
            endpoints.filter(|endpoint| endpoint["conditions"]["ready"] == true).count() == pods.len()
        });
        eventually(&format!("the budget of {service}"), || {
            let budgets = release.list("apis/policy/v1", "poddisruptionbudgets");
            let own =
                budgets.iter().find(|b| b["metadata"]["name"] == format!("sightline-{service}").as_str());
            own.unwrap()["status"]["disruptionsAllowed"] == 1
        });
    }
    let services = release.list("api/v1", "services");
    let public = services.iter().find(|service| service["metadata"]["name"] == "sightline-ingest").unwrap();
    assert_eq!(public["status"]["loadBalancer"]["ingress"][0]["ip"], "203.0.113.7");
}

#[test]
fn gpu_classifiers_are_scheduled_on_gpu_nodes() {
    let (Some(_), Some(share)) = (helm(), cluster()) else { return };
    let cluster = share.alone();
    let claim = json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim",
        "metadata": {"name": "sightline-models", "namespace": "gpu"},
        "spec": {"accessModes": ["ReadOnlyMany"], "resources": {"requests": {"storage": "1Gi"}}}
    });
    let release = release(&cluster, "gpu");
    cluster.create(&[claim]);
    release.apply("install", "gpu", &[r#"topologySpread.zone="ScheduleAnyway""#]);
    eventually("two classifiers", || release.ready("classifier").len() == 2);
    let pods = release.ready("classifier");
    assert_eq!(
        (nodes(&pods), images(&pods)),
        (BTreeSet::from(["gpu1"]), BTreeSet::from(["sightline:0.1.0-cuda"]))
    );
    release.uninstall();
}

#[test]
fn values_that_cannot_work_install_nothing() {
    let (Some(mut helm), Some(share)) = (helm(), cluster()) else { return };
    let cluster = share.alone();
    let release = release(&cluster, "refused");
    helm.args(["install", "sightline"]).arg(chart()).args(["--namespace", "refused"]);
    let output = helm.arg("--kubeconfig").arg(cluster.kubernetes.kubeconfig()).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("auth.secretName is empty"), "{said}");
    assert_eq!(release.list("apis/apps/v1", "deployments").len(), 0);
}
