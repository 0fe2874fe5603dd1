//! What kubelets and a cloud would report: nodes are ready, scheduled pods run and are ready, pods of jobs succeed, pods
//! that shall go are gone, load balancers get an address. Everything else is done by the real controllers.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use serde_json::{Value, json};
use sightline_servers::request;

/// How often the state is looked at.
const ROUND: Duration = Duration::from_millis(150);

/// The fewest ready pods seen at once, by `namespace/component`.
type Fewest = Arc<Mutex<Option<BTreeMap<String, usize>>>>;

/// Every pod that was started, as `namespace/component`, in order.
type Started = Arc<Mutex<Vec<String>>>;

pub struct Kubelets {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    fewest: Fewest,
    started: Started,
}

impl Kubelets {
    pub fn start(port: u16) -> Self {
        let (stop, fewest) = (Arc::new(AtomicBool::new(false)), Fewest::default());
        let started = Started::default();
        let thread = thread::spawn({
            let stop = Arc::clone(&stop);
            let mut reporter =
                Reporter { port, addresses: 0, fewest: Arc::clone(&fewest), started: Arc::clone(&started) };
            move || {
                while !stop.load(Ordering::Relaxed) {
                    reporter.round();
                    pause();
                }
            }
        });
        Self { stop, thread: Some(thread), fewest, started }
    }

    /// The components whose pods were started in a namespace since this was last asked, in order.
    pub fn started(&self, namespace: &str) -> Vec<String> {
        let all = std::mem::take(&mut *self.started.lock().unwrap_or_else(PoisonError::into_inner));
        let own = all.iter().filter_map(|name| name.strip_prefix(&format!("{namespace}/")));
        own.map(ToOwned::to_owned).collect()
    }

    /// Runs `during` and returns the fewest ready pods that each component had meanwhile.
    pub fn fewest_ready<T>(&self, during: impl FnOnce() -> T) -> (T, BTreeMap<String, usize>) {
        let lock = || self.fewest.lock().unwrap_or_else(PoisonError::into_inner);
        *lock() = Some(BTreeMap::new());
        let outcome = during();
        let seen = lock().take().unwrap();
        (outcome, seen)
    }
}

impl Drop for Kubelets {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().ok();
        }
    }
}

#[allow(clippy::disallowed_methods)] // a thread of its own
pub fn pause() {
    thread::sleep(ROUND);
}

struct Reporter {
    port: u16,
    addresses: u32,
    fewest: Fewest,
    started: Started,
}

impl Reporter {
    fn round(&mut self) {
        for node in self.list("/api/v1/nodes") {
            if !is_true(&node, "Ready") {
                self.report("nodes", &node, &json!({"conditions": [condition("Ready", &node)]}));
            }
        }
        let pods = self.list("/api/v1/pods");
        self.count(&pods);
        for pod in pods {
            let phase = pod["status"]["phase"].as_str().unwrap_or_default();
            if pod["metadata"]["deletionTimestamp"].is_string() {
                self.send("DELETE", &path("pods", &pod), r#"{"gracePeriodSeconds":0}"#);
            } else if phase == "Pending" && pod["spec"]["nodeName"].is_string() {
                self.addresses += 1;
                let status = running(&pod, self.addresses);
                self.report("pods", &pod, &status);
                self.started.lock().unwrap_or_else(PoisonError::into_inner).push(component(&pod));
            }
        }
        for service in self.list("/api/v1/services") {
            if service["spec"]["type"] == "LoadBalancer"
                && service["status"]["loadBalancer"]["ingress"].is_null()
            {
                let status = json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}]}});
                self.report("services", &service, &status);
            }
        }
    }

    /// Keeps the fewest ready pods of each component, while somebody wants to know.
    fn count(&self, pods: &[Value]) {
        let mut ready = BTreeMap::<String, usize>::new();
        for pod in pods {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let component = text(&pod["metadata"]["labels"]["app.kubernetes.io/component"]);
            let count =
                ready.entry(format!("{}/{component}", text(&pod["metadata"]["namespace"]))).or_default();
            *count += usize::from(is_true(pod, "Ready") && pod["metadata"]["deletionTimestamp"].is_null());
        }
        if let Some(fewest) = &mut *self.fewest.lock().unwrap_or_else(PoisonError::into_inner) {
            for (component, count) in ready {
                let fewest = fewest.entry(component).or_insert(count);
                *fewest = count.min(*fewest);
            }
        }
    }

    fn list(&self, path: &str) -> Vec<Value> {
        let body = self.send("GET", path, "");
        let list: Value = serde_json::from_str(&body).unwrap_or_default();
        list["items"].as_array().cloned().unwrap_or_default()
    }

    /// Writes a status. One that somebody else changed meanwhile is written in the next round.
    fn report(&self, kind: &str, object: &Value, status: &Value) {
        let mut object = object.clone();
        let have = object["status"].as_object().cloned().unwrap_or_default();
        let merged = have.into_iter().chain(status.as_object().cloned().unwrap());
        object["status"] = merged.collect::<serde_json::Map<_, _>>().into();
        self.send("PUT", &(path(kind, &object) + "/status"), &object.to_string());
    }

    /// The server ends before this thread does when the process ends: no answer is no failure here.
    fn send(&self, method: &str, path: &str, body: &str) -> String {
        request(self.port, method, path, body).map(|answer| answer.body).unwrap_or_default()
    }
}

fn path(kind: &str, object: &Value) -> String {
    let name = object["metadata"]["name"].as_str().unwrap();
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("/api/v1/namespaces/{namespace}/{kind}/{name}"),
        None => format!("/api/v1/{kind}/{name}"),
    }
}

/// `namespace/component`.
fn component(pod: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let labels = &pod["metadata"]["labels"];
    format!("{}/{}", text(&pod["metadata"]["namespace"]), text(&labels["app.kubernetes.io/component"]))
}

fn is_true(object: &Value, condition: &str) -> bool {
    let conditions = object["status"]["conditions"].as_array().into_iter().flatten();
    conditions.into_iter().any(|entry| entry["type"] == condition && entry["status"] == "True")
}

fn condition(name: &str, object: &Value) -> Value {
    let since = &object["metadata"]["creationTimestamp"];
    json!({"type": name, "status": "True", "reason": "Reported", "message": "", "lastTransitionTime": since})
}

/// The status of a pod that has just come up, or of a job's that has done its work.
fn running(pod: &Value, number: u32) -> Value {
    let since = &pod["metadata"]["creationTimestamp"];
    let done = pod["metadata"]["ownerReferences"][0]["kind"] == "Job";
    let state = match done {
        true => {
            json!({"terminated": {"exitCode": 0, "reason": "Completed", "startedAt": since, "finishedAt": since}})
        }
        false => json!({"running": {"startedAt": since}}),
    };
    let containers: Vec<Value> = pod["spec"]["containers"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|container| {
            json!({
                "name": container["name"], "image": container["image"], "imageID": "", "ready": !done,
                "started": !done, "restartCount": 0, "state": state
            })
        })
        .collect();
    let conditions: Vec<Value> = match done {
        true => vec![],
        false => ["PodScheduled", "Initialized", "ContainersReady", "Ready"]
            .map(|name| condition(name, pod))
            .into(),
    };
    let address = format!("10.1.{}.{}", number / 250, number % 250 + 1);
    json!({
        "phase": if done { "Succeeded" } else { "Running" }, "conditions": conditions, "containerStatuses": containers,
        "podIP": address, "podIPs": [{"ip": address}], "startTime": since
    })
}
