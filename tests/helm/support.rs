//! Running Helm, and reading what it renders.

use std::{
    env,
    path::PathBuf,
    process::{Command, Output},
};

use serde_json::Value;
use sightline_servers::{Error, Result, find};
use sightline_testkit::setup;

/// What has to be written to let everybody in.
pub const INSECURE: &str = r#"insecure.confirm="anybody-who-reaches-a-port-is-let-in""#;

/// What encrypts calls between services, by Secrets that are there already.
pub const TLS: &[&str] = &[
    "tls.enabled=true",
    r#"tls.trustDomain="mesh.example""#,
    r#"tls.secretNames={"ingest":"ingest-cert","classifier":"classifier-cert","ratelimiter":"ratelimiter-cert","stats":"stats-cert"}"#,
    r#"tls.bundle={"kind":"configMap","name":"authorities","key":"ca.crt"}"#,
];

/// A way of installing the chart that we show: its name, values files, and more values.
pub struct Profile {
    pub name: &'static str,
    pub files: &'static [&'static str],
    pub set: &'static [&'static str],
}

/// All of them; each has a golden rendering under examples/.
pub const PROFILES: [Profile; 4] = [
    Profile { name: "small", files: &["values-small.yaml"], set: &[INSECURE] },
    Profile { name: "distributed", files: &[], set: &[INSECURE] },
    Profile { name: "production", files: &["values-production.yaml"], set: &[] },
    Profile { name: "gpu", files: &["values-production.yaml", "values-gpu.yaml"], set: &[] },
];

impl Profile {
    pub fn named(name: &str) -> &'static Self {
        PROFILES.iter().find(|profile| profile.name == name).unwrap()
    }

    /// As arguments of Helm.
    pub fn arguments(&self) -> Vec<String> {
        let files =
            self.files.iter().flat_map(|file| ["-f".into(), chart().join(file).display().to_string()]);
        let set = self.set.iter().flat_map(|value| ["--set-json".into(), (*value).into()]);
        files.chain(set).collect()
    }
}

/// The chart.
pub fn chart() -> PathBuf {
    setup::repository().join("helm/sightline")
}

/// Without the program the test is skipped, and says so; `cargo xtask test` makes that a failure.
pub fn there<T>(found: Result<T>) -> Option<T> {
    match found {
        Err(error @ Error::Missing { .. }) => {
            assert!(env::var_os("SIGHTLINE_TEST_NO_SKIP").is_none(), "{error}");
            println!("SKIPPED: {error}");
            None
        }
        found => Some(found.unwrap()),
    }
}

/// Helm, without the caller's own repositories and plugins.
pub fn helm() -> Option<Command> {
    let mut command = Command::new(there(find("helm"))?);
    let nowhere = env::temp_dir().join("sightline-no-helm-home");
    for variable in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
        command.env(variable, &nowhere);
    }
    command.env_remove("KUBECONFIG");
    Some(command)
}

/// `helm template` of a release `sightline` in the namespace `sightline`, of a cluster with the Prometheus operator.
pub fn template(arguments: &[String]) -> Option<Output> {
    let mut helm = helm()?;
    helm.args(["template", "sightline"]).arg(chart()).args(["--namespace", "sightline"]);
    helm.args(["--kube-version", "v1.36.3"]);
    for kind in ["ServiceMonitor", "PrometheusRule"] {
        helm.args(["--api-versions", &format!("monitoring.coreos.com/v1/{kind}")]);
    }
    Some(helm.args(arguments).output().unwrap())
}

/// The text of what is rendered, which must succeed.
pub fn render(arguments: &[String]) -> Option<String> {
    let output = template(arguments)?;
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

/// Rendered objects.
pub struct Objects(pub Vec<Value>);

impl Objects {
    /// Of a profile with more values.
    pub fn of(profile: &str, set: &[&str]) -> Option<Self> {
        let mut arguments = Profile::named(profile).arguments();
        arguments.extend(set.iter().flat_map(|value| ["--set-json".into(), (*value).into()]));
        Some(Self(parse(&render(&arguments)?)))
    }

    /// The only object of this kind with this name, without the release's prefix.
    pub fn get(&self, kind: &str, name: &str) -> &Value {
        self.find(kind, name).unwrap_or_else(|| panic!("no {kind} {name}"))
    }

    pub fn find(&self, kind: &str, name: &str) -> Option<&Value> {
        let full = format!("sightline-{name}");
        let mut found = self.0.iter().filter(|o| o["kind"] == kind && o["metadata"]["name"] == full.as_str());
        let object = found.next();
        assert!(found.next().is_none(), "two of {kind} {name}");
        object
    }

    /// The pod of a Deployment.
    pub fn pod(&self, name: &str) -> &Value {
        &self.get("Deployment", name)["spec"]["template"]["spec"]
    }

    /// Every pod template: of Deployments, StatefulSets and Jobs.
    pub fn pods(&self) -> Vec<(String, &Value)> {
        let with_pods = self.0.iter().filter(|object| object["spec"]["template"]["spec"].is_object());
        with_pods
            .map(|object| {
                (object["metadata"]["name"].as_str().unwrap().into(), &object["spec"]["template"]["spec"])
            })
            .collect()
    }

    /// The configuration file of a component.
    pub fn config(&self, name: &str) -> &str {
        self.get("ConfigMap", name)["data"]["sightline.toml"].as_str().unwrap()
    }
}

/// YAML documents; empty ones are left out.
pub fn parse(text: &str) -> Vec<Value> {
    use serde::Deserialize;
    serde_norway::Deserializer::from_str(text)
        .map(|document| Value::deserialize(document).unwrap())
        .filter(|document| !document.is_null())
        .collect()
}
