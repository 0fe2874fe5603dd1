//! A real Kubernetes API server, with what a test puts into a namespace of its own.

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use serde_json::{Value, json};
use sightline_mesh::client::discovery::{
    Access, DnsOptions, Kubernetes as Discovery, KubernetesOptions, PaceOptions, PortRef,
};
use sightline_servers::{Kubernetes, there};
use tempfile::TempDir;

/// The control plane while some test uses it: it takes a while to start.
static RUNNING: Mutex<Weak<Mutex<Kubernetes>>> = Mutex::new(Weak::new());

const HEADLESS: &str = "service.kubernetes.io/headless";

/// A share of it; it ends with the last.
pub struct Share(Arc<Mutex<Kubernetes>>);

impl Share {
    /// To one test alone: some stop it.
    pub fn alone(&self) -> MutexGuard<'_, Kubernetes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `None`, said visibly, where it is not installed.
pub fn control_plane() -> Option<Share> {
    let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(share) = running.upgrade() {
        return Some(Share(share));
    }
    let share = Arc::new(Mutex::new(there(Kubernetes::start())?));
    *running = Arc::downgrade(&share);
    Some(Share(share))
}

/// A namespace with a Service `classifier` and a service account `mesh`.
pub struct Place<'a> {
    pub kubernetes: &'a mut Kubernetes,
    pub namespace: &'static str,
    folder: TempDir,
}

impl<'a> Place<'a> {
    pub fn new(kubernetes: &'a mut Kubernetes, namespace: &'static str) -> Self {
        let place = Self { kubernetes, namespace, folder: tempfile::tempdir().unwrap() };
        let of =
            |kind: &str, name: &str| json!({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}});
        place.post("/api/v1/namespaces", &of("Namespace", namespace));
        place.post(&place.at("api/v1", "serviceaccounts"), &of("ServiceAccount", "mesh"));
        let mut service = of("Service", "classifier");
        service["spec"] = json!({"clusterIP": "None", "ports": [{"name": "grpc", "port": 7402}]});
        place.post(&place.at("api/v1", "services"), &service);
        place
    }

    /// What the chart grants.
    pub fn grant(&self) {
        let group = "rbac.authorization.k8s.io";
        let rule = json!({
            "apiGroups": ["discovery.k8s.io"], "resources": ["endpointslices"], "verbs": ["get", "list", "watch"]
        });
        let path = |kind: &str| self.at(&format!("apis/{group}/v1"), kind);
        self.post(&path("roles"), &json!({"metadata": {"name": "discovery"}, "rules": [rule]}));
        let subject = json!({"kind": "ServiceAccount", "name": "mesh", "namespace": self.namespace});
        let role = json!({"apiGroup": group, "kind": "Role", "name": "discovery"});
        let binding = json!({"metadata": {"name": "discovery"}, "roleRef": role, "subjects": [subject]});
        self.post(&path("rolebindings"), &binding);
    }

    /// Takes it away.
    pub fn revoke(&self) {
        let path = self.at("apis/rbac.authorization.k8s.io/v1", "rolebindings");
        let answer = self.kubernetes.send("DELETE", &format!("{path}/discovery"), "").unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    }

    /// Writes the service account's token to where discovery reads it.
    pub fn mint_token(&self) {
        let token = self
            .kubernetes
            .kubectl(&["create", "token", "mesh", "--namespace", self.namespace, "--duration=1h"])
            .unwrap();
        fs::write(self.token_file(), token).unwrap();
    }

    pub fn token_file(&self) -> PathBuf {
        self.folder.path().join("token")
    }

    /// Makes an EndpointSlice, or writes it anew.
    pub fn slice(&self, name: &str, kind: &str, endpoints: &Value) {
        // As the API server's controller labels those of a headless Service.
        let headless = json!({"kubernetes.io/service-name": "classifier", HEADLESS: ""});
        self.labelled(name, kind, endpoints, &headless);
    }

    /// The same of a Service that has an address of its own.
    pub fn slice_behind_one_address(&self, name: &str, kind: &str, endpoints: &Value) {
        self.labelled(name, kind, endpoints, &json!({"kubernetes.io/service-name": "classifier"}));
    }

    fn labelled(&self, name: &str, kind: &str, endpoints: &Value, labels: &Value) {
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": name, "labels": labels}, "addressType": kind, "endpoints": endpoints,
            "ports": [{"name": "grpc", "port": 7402}, {"name": "metrics", "port": 7400}]
        });
        let path = self.slices();
        let answer = self.kubernetes.send("PUT", &format!("{path}/{name}"), &slice.to_string()).unwrap();
        match answer.status {
            200 => {}
            404 => self.post(&path, &slice),
            _ => panic!("{answer:?}"),
        }
    }

    pub fn delete_slice(&self, name: &str) {
        let answer = self.kubernetes.send("DELETE", &format!("{}/{name}", self.slices()), "").unwrap();
        assert_eq!(answer.status, 200, "{answer:?}");
    }

    /// Changes so much elsewhere that the API server's version moves on.
    pub fn make_noise(&self, round: usize) {
        for number in 0..5 {
            let name = format!("noise-{round}-{number}");
            self.post(&self.at("api/v1", "configmaps"), &json!({"metadata": {"name": name}}));
        }
    }

    /// What finds the Service's endpoints by the port's name, quick to give up.
    pub fn discovery(&self, dns: DnsOptions) -> Discovery {
        self.discovery_of(PortRef::Name("grpc".into()), dns)
    }

    pub fn discovery_of(&self, port: PortRef, dns: DnsOptions) -> Discovery {
        let access = Access {
            host: "127.0.0.1".into(),
            port: self.kubernetes.api_port(),
            ca_file: self.kubernetes.ca_file(),
            token_file: self.token_file(),
        };
        let options = KubernetesOptions {
            cluster_domain: "test".into(),
            pace: PaceOptions {
                first_retry: Duration::from_millis(50),
                last_retry: Duration::from_millis(500),
                ..KubernetesOptions::new(access.clone()).pace
            },
            watch_for: Duration::from_secs(2),
            keepalive_interval: Duration::from_millis(500),
            keepalive_timeout: Duration::from_millis(500),
            fallback_after: Duration::from_millis(300),
            forbidden_retry: Duration::from_millis(500),
            ..KubernetesOptions::new(access)
        };
        Discovery::new(self.namespace, "classifier", port, options, dns)
    }

    fn slices(&self) -> String {
        self.at("apis/discovery.k8s.io/v1", "endpointslices")
    }

    fn at(&self, group: &str, kind: &str) -> String {
        format!("/{group}/namespaces/{}/{kind}", self.namespace)
    }

    fn post(&self, path: &str, object: &Value) {
        let answer = self.kubernetes.send("POST", path, &object.to_string()).unwrap();
        assert_eq!(answer.status, 201, "{path}: {answer:?}");
    }
}

/// A ready endpoint in a zone.
pub fn ready(ip: &str, zone: &str) -> Value {
    json!({"addresses": [ip], "zone": zone, "conditions": {"ready": true, "serving": true, "terminating": false}})
}
