//! A Kubernetes control plane: etcd, API server, controllers and scheduler.
//!
//! There is no kubelet: a pod is bound to a node when the test made one, and stays Pending until the test reports its
//! status.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

use crate::{Answer, Home, Result, Server, Spec, free_port, http, io, process::run, tools::find};

/// The one user's token; the API server listens on loopback only.
const TOKEN: &str = "sightline";

/// A control plane on free ports. Its parts end in the order of the fields: an API server whose etcd is gone lingers.
#[derive(Debug)]
pub struct Kubernetes {
    /// `kubectl proxy`: the API without TLS and tokens.
    pub proxy: Server,
    /// kube-scheduler.
    pub scheduler: Server,
    /// kube-controller-manager.
    pub controllers: Server,
    /// kube-apiserver.
    pub api: Server,
    /// etcd.
    pub etcd: Server,
    port: u16,
    api_port: u16,
    folder: TempDir,
}

impl Kubernetes {
    /// Starts one; ready in a few seconds.
    ///
    /// # Errors
    /// [`crate::Error`].
    pub fn start() -> Result<Self> {
        for program in ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"] {
            find(program)?;
        }
        let folder = tempfile::tempdir().map_err(io("making a folder"))?;
        let (etcd_port, api_port, port) = (free_port(), free_port(), free_port());
        prepare(folder.path(), api_port)?;
        let at = |option: &str, file: &str| format!("{option}{}", folder.path().join(file).display());
        let kubeconfig = at("--kubeconfig=", "kubeconfig");
        let etcd = Server::start(etcd(folder.path(), etcd_port)?)?;
        let api = Server::start(api(folder.path(), etcd_port, api_port)?)?;
        let controllers = Server::start(spec(
            folder.path(),
            "kube-controller-manager",
            &[
                &kubeconfig,
                &at("--service-account-private-key-file=", "sa.key"),
                "--leader-elect=false",
                "--secure-port=0",
                // Nobody renews the nodes' leases.
                "--node-monitor-grace-period=24h",
                "--node-startup-grace-period=24h",
            ],
            || true,
        )?)?;
        let scheduler = Server::start(spec(
            folder.path(),
            "kube-scheduler",
            &[&kubeconfig, "--leader-elect=false", "--secure-port=0"],
            || true,
        )?)?;
        let proxy = Server::start(spec(
            folder.path(),
            "kubectl",
            &["proxy", &kubeconfig, &format!("--port={port}")],
            move || http::is_ok(port, "/readyz"),
        )?)?;
        Ok(Self { proxy, scheduler, controllers, api, etcd, port, api_port, folder })
    }

    /// What kubectl and Helm take as `--kubeconfig`.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("kubeconfig")
    }

    /// Where the API answers plain HTTP without a token.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where the API itself listens on 127.0.0.1, with TLS and tokens.
    pub fn api_port(&self) -> u16 {
        self.api_port
    }

    /// Certificates, in PEM, by which the API's own is trusted.
    pub fn ca_file(&self) -> PathBuf {
        self.api.folder().join("certs/apiserver.crt")
    }

    /// Asks the API, with JSON or nothing as body.
    ///
    /// # Errors
    /// [`crate::Error`] when there is no answer.
    pub fn send(&self, method: &str, path: &str, body: &str) -> Result<Answer> {
        http::request(self.port, method, path, body)
    }

    /// Runs kubectl and returns what it printed.
    ///
    /// # Errors
    /// [`crate::Error::Command`] with what it said.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        run(Command::new(find("kubectl")?).env("KUBECONFIG", self.kubeconfig()).args(arguments))
    }
}

/// Keys of service accounts, the token, and the kubeconfig.
fn prepare(folder: &Path, api: u16) -> Result<()> {
    let openssl = |arguments: &[&str]| -> Result<String> {
        run(Command::new(find("openssl")?).args(arguments).current_dir(folder))
    };
    openssl(&["genrsa", "-out", "sa.key", "2048"])?;
    openssl(&["rsa", "-in", "sa.key", "-pubout", "-out", "sa.pub"])?;
    let write =
        |name: &str, text: String| fs::write(folder.join(name), text).map_err(io(format!("writing {name}")));
    write("tokens.csv", format!("{TOKEN},admin,1,\"system:masters\"\n"))?;
    let cluster = format!("{{server: \"https://127.0.0.1:{api}\", insecure-skip-tls-verify: true}}");
    write(
        "kubeconfig",
        format!(
            "apiVersion: v1\nkind: Config\nclusters: [{{name: c, cluster: {cluster}}}]\n\
             users: [{{name: u, user: {{token: {TOKEN}}}}}]\n\
             contexts: [{{name: x, context: {{cluster: c, user: u}}}}]\ncurrent-context: x\n"
        ),
    )
}

fn etcd(folder: &Path, port: u16) -> Result<Spec> {
    let (client, peer) = (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{}", free_port()));
    let arguments = [
        "--data-dir=etcd".to_owned(),
        format!("--listen-client-urls={client}"),
        format!("--advertise-client-urls={client}"),
        format!("--listen-peer-urls={peer}"),
        format!("--initial-advertise-peer-urls={peer}"),
        format!("--initial-cluster=default={peer}"),
        "--unsafe-no-fsync".to_owned(),
    ];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    spec(folder, "etcd", &arguments, move || http::is_ok(port, "/health"))
}

fn api(folder: &Path, etcd: u16, port: u16) -> Result<Spec> {
    let kubectl = find("kubectl")?;
    let kubeconfig = folder.join("kubeconfig");
    let ready = move || {
        let mut ask = Command::new(&kubectl);
        ask.arg("--kubeconfig").arg(&kubeconfig).args(["get", "--raw", "/readyz"]);
        run(&mut ask).is_ok_and(|said| said == "ok")
    };
    let at = |option: &str, file: &str| format!("{option}={}", folder.join(file).display());
    let arguments = [
        format!("--etcd-servers=http://127.0.0.1:{etcd}"),
        format!("--secure-port={port}"),
        "--bind-address=127.0.0.1".to_owned(),
        "--cert-dir=certs".to_owned(),
        at("--token-auth-file", "tokens.csv"),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--service-account-issuer=https://sightline.invalid".to_owned(),
        at("--service-account-key-file", "sa.pub"),
        at("--service-account-signing-key-file", "sa.key"),
        "--service-cluster-ip-range=10.96.0.0/16".to_owned(),
    ];
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    spec(folder, "kube-apiserver", &arguments, ready)
}

fn spec(
    folder: &Path,
    program: &'static str,
    arguments: &[&str],
    ready: impl Fn() -> bool + Send + Sync + 'static,
) -> Result<Spec> {
    Ok(Spec {
        name: program.into(),
        program: find(program)?,
        arguments: arguments.iter().map(ToString::to_string).collect(),
        environment: vec![],
        home: Home::under(folder, program)?,
        user: None,
        ready: Box::new(ready),
    })
}
