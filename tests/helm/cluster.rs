//! One real control plane for all tests, with nodes, volumes and the Prometheus operator's kinds.

use std::{
    fs,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use serde_json::{Value, json};
use sightline_servers::{Kubernetes, find};
use tempfile::TempDir;

use crate::{kubelet::Kubelets, support::there};

/// Files of the Prometheus operator that define its kinds.
const CUSTOM: [&str; 2] =
    ["monitoring.coreos.com_servicemonitors.yaml", "monitoring.coreos.com_prometheusrules.yaml"];

/// Name, zone, and whether it has GPUs.
const NODES: [(&str, &str, bool); 4] =
    [("a1", "a", false), ("b1", "b", false), ("c1", "c", false), ("gpu1", "a", true)];

pub struct Cluster {
    pub kubelets: Kubelets,
    pub kubernetes: Kubernetes,
    pub folder: TempDir,
}

/// The cluster while some test uses it.
static RUNNING: Mutex<Weak<Mutex<Cluster>>> = Mutex::new(Weak::new());

/// A share of the cluster: it ends with the last.
pub struct Share(Arc<Mutex<Cluster>>);

impl Share {
    /// The cluster to one test alone: what one installs, others do not see.
    pub fn alone(&self) -> MutexGuard<'_, Cluster> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts the cluster unless it runs already. `None` when its programs are missing.
pub fn cluster() -> Option<Share> {
    for file in CUSTOM {
        there(find(file))?;
    }
    let mut running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(cluster) = running.upgrade() {
        return Some(Share(cluster));
    }
    let cluster = Arc::new(Mutex::new(Cluster::start(there(Kubernetes::start())?)));
    *running = Arc::downgrade(&cluster);
    Some(Share(cluster))
}

impl Cluster {
    fn start(kubernetes: Kubernetes) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for file in CUSTOM {
            let path = find(file).unwrap();
            kubernetes.kubectl(&["create", "-f", &path.display().to_string()]).unwrap();
        }
        let wait = ["wait", "--for=condition=Established", "crd", "--all", "--timeout=30s"];
        kubernetes.kubectl(&wait).unwrap();
        let mut objects: Vec<Value> = NODES.map(|(name, zone, gpu)| node(name, zone, gpu)).into();
        objects.push(json!({
            "apiVersion": "storage.k8s.io/v1", "kind": "StorageClass",
            "metadata": {"name": "manual", "annotations": {"storageclass.kubernetes.io/is-default-class": "true"}},
            "provisioner": "kubernetes.io/no-provisioner"
        }));
        objects.extend((0..4).map(volume));
        objects.push(json!({
            "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": "nvidia"}, "handler": "nvidia"
        }));
        let cluster = Self { kubelets: Kubelets::start(kubernetes.port()), kubernetes, folder };
        cluster.create(&objects);
        cluster
    }

    /// Creates objects.
    pub fn create(&self, objects: &[Value]) {
        let file = self.folder.path().join("objects.json");
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        fs::write(&file, list.to_string()).unwrap();
        self.kubernetes.kubectl(&["create", "-f", &file.display().to_string()]).unwrap();
    }

    /// A namespace that takes only pods of Kubernetes' strictest profile.
    pub fn namespace(&self, name: &str) {
        let labels = json!({"pod-security.kubernetes.io/enforce": "restricted"});
        self.create(&[json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}
        })]);
    }

    /// GETs a path of the API.
    pub fn get(&self, path: &str) -> Value {
        let answer = self.kubernetes.send("GET", path, "").unwrap();
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        serde_json::from_str(&answer.body).unwrap()
    }
}

fn node(name: &str, zone: &str, gpu: bool) -> Value {
    let mut capacity = json!({"cpu": "256", "memory": "512Gi", "pods": "500", "ephemeral-storage": "500Gi"});
    let mut labels = json!({"kubernetes.io/hostname": name, "topology.kubernetes.io/zone": zone});
    let mut taints = json!([]);
    if gpu {
        capacity["nvidia.com/gpu"] = json!("8");
        labels["nvidia.com/gpu.present"] = json!("true");
        taints = json!([{"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}]);
    }
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "spec": {"taints": taints},
        "status": {"capacity": capacity, "allocatable": capacity}
    })
}

fn volume(number: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "PersistentVolume",
        "metadata": {"name": format!("disk-{number}")},
        "spec": {
            "capacity": {"storage": "50Gi"}, "accessModes": ["ReadWriteOnce", "ReadOnlyMany"],
            "storageClassName": "manual", "hostPath": {"path": format!("/disk-{number}")}
        }
    })
}
