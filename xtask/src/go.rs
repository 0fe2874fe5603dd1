//! Programs that Debian lacks and Go modules have, built once into the cache, pinned by version and module hash.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};
use indicatif::MultiProgress;

use crate::{cache, cargo, tools};

/// A program and the module it is built from.
struct Program {
    /// What the file is called.
    name: &'static str,
    module: &'static str,
    version: &'static str,
    /// The module's hash as `go mod download -json` gives it; its dependencies' hashes are in its own go.sum.
    sum: &'static str,
    /// The package with its main function.
    package: &'static str,
}

const JAEGER: Program = Program {
    name: "jaeger",
    module: "github.com/jaegertracing/jaeger",
    version: "v1.76.0",
    sum: "h1:sWCOOF1dr+NL0PLil7mFo3BqqQL8k4WiM7aguFbc14g=",
    package: "github.com/jaegertracing/jaeger/cmd/jaeger",
};
const TOXIPROXY: Program = Program {
    name: "toxiproxy-server",
    module: "github.com/Shopify/toxiproxy/v2",
    version: "v2.5.0",
    sum: "h1:i4LPT+qrSlKNtQf5QliVjdP08GyAH8+BUIc9gT0eahc=",
    package: "github.com/Shopify/toxiproxy/v2/cmd/server",
};
const HELM: Program = Program {
    name: "helm",
    module: "helm.sh/helm/v4",
    version: "v4.3.1",
    sum: "h1:UndCoLe9UPmNoL7IvWzaUXveL7T5t/ijoorEmgJdI9g=",
    package: "helm.sh/helm/v4/cmd/helm",
};
const KUBECONFORM: Program = Program {
    name: "kubeconform",
    module: "github.com/yannh/kubeconform",
    version: "v0.8.0",
    sum: "h1:loDYd3a3spjIFrauqW67CDKF55Oo9R6uvC8AvpVd4ug=",
    package: "github.com/yannh/kubeconform/cmd/kubeconform",
};
const RATELIMIT: Program = Program {
    name: "envoy-ratelimit",
    module: "github.com/envoyproxy/ratelimit",
    version: "v1.4.1-0.20260122083618-3fb702589d36",
    sum: "h1:nEi1OH2qhE8NtcuBgO/uKpTw/P0nVu4i8mZvL6oD9CQ=",
    package: "github.com/envoyproxy/ratelimit/src/service_cmd",
};
const KUBERNETES: (&str, &str, &str) =
    ("k8s.io/kubernetes", "v1.36.3", "h1:qDQdoMiluAE2Eab6Fa52YV+WjiGz9mZFFoagEA6cI+o=");
/// Kubernetes publishes its staging modules beside itself under this version.
const KUBERNETES_STAGING: &str = "v0.36.3";
const CONTROL_PLANE: [(&str, &str); 5] = [
    ("kube-apiserver", "k8s.io/kubernetes/cmd/kube-apiserver"),
    ("kube-controller-manager", "k8s.io/kubernetes/cmd/kube-controller-manager"),
    ("kube-scheduler", "k8s.io/kubernetes/cmd/kube-scheduler"),
    ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
    ("etcd", "go.etcd.io/etcd/server/v3"),
];

/// What Kubernetes' programs say their version is: Helm asks, and charts refuse a cluster that is too old.
const KUBERNETES_FLAGS: &str = "-s -w -X k8s.io/component-base/version.gitVersion=v1.36.3 \
                                -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36";
/// The module that defines the kinds of the Prometheus operator, and the files of those that our chart uses.
const OPERATOR: (&str, &str, &str) = (
    "github.com/prometheus-operator/prometheus-operator",
    "v0.85.0",
    "h1:M5xLCLEoaW2IJfnuCwFzzpL+jSVQu3KGT84Pye+fW8s=",
);
const KINDS: [&str; 2] =
    ["monitoring.coreos.com_servicemonitors.yaml", "monitoring.coreos.com_prometheusrules.yaml"];

/// Where the programs are kept: a folder for `SIGHTLINE_TOOLS`.
pub(crate) fn folder() -> Result<PathBuf> {
    Ok(cache::folder()?.join("tools"))
}

/// What the tests need.
pub(crate) fn for_tests(progress: &MultiProgress) -> Result<()> {
    for program in [TOXIPROXY, JAEGER, HELM, KUBECONFORM] {
        ensure(progress, &program)?;
    }
    control_plane(progress)?;
    operators_kinds(progress)
}

/// What the cluster on one machine needs.
pub(crate) fn for_cluster(progress: &MultiProgress) -> Result<()> {
    ensure(progress, &JAEGER)
}

/// The peer of the benchmark of limits.
pub(crate) fn ratelimit(progress: &MultiProgress) -> Result<()> {
    ensure(progress, &RATELIMIT)
}

/// The linter of charts.
pub(crate) fn helm(progress: &MultiProgress) -> Result<PathBuf> {
    ensure(progress, &HELM)?;
    Ok(folder()?.join(HELM.name))
}

fn ensure(progress: &MultiProgress, program: &Program) -> Result<()> {
    let file = folder()?.join(program.name);
    if is_built(&file, program.version) {
        return Ok(());
    }
    cache::announce(progress, &format!("building {} {}: a few minutes", program.name, program.version));
    let build = Build::new(progress, program.module, program.version, program.sum)?;
    build.take_over_requirements("")?;
    build.program(program.package, &file, program.version, "-s -w")
}

/// The API server with its controllers, its store and its client: a cluster without machines.
fn control_plane(progress: &MultiProgress) -> Result<()> {
    let folder = folder()?;
    let (module, version, sum) = KUBERNETES;
    if CONTROL_PLANE.iter().all(|(name, _)| is_built(&folder.join(name), version)) {
        return Ok(());
    }
    cache::announce(progress, &format!("building Kubernetes' control plane {version}: about ten minutes"));
    let build = Build::new(progress, module, version, sum)?;
    build.take_over_requirements(KUBERNETES_STAGING)?;
    CONTROL_PLANE
        .iter()
        .try_for_each(|(name, package)| build.program(package, &folder.join(name), version, KUBERNETES_FLAGS))
}

/// Definitions of kinds, which the API server of the chart's tests takes: files of a module, not built.
fn operators_kinds(progress: &MultiProgress) -> Result<()> {
    let folder = folder()?;
    let (module, version, sum) = OPERATOR;
    if KINDS.iter().all(|name| is_built(&folder.join(name), version)) {
        return Ok(());
    }
    let source = Build::new(progress, module, version, sum)?.source.join("example/prometheus-operator-crd");
    fs::create_dir_all(&folder)?;
    for name in KINDS {
        // Read and written, not copied: files of the module cache are read-only.
        fs::write(folder.join(name), fs::read(source.join(name)).with_context(|| name.to_owned())?)?;
        fs::write(stamp(&folder.join(name)), version)?;
    }
    Ok(())
}

fn stamp(file: &Path) -> PathBuf {
    file.with_file_name(format!(".{}.version", file.file_name().unwrap_or_default().display()))
}

fn is_built(file: &Path, version: &str) -> bool {
    file.is_file() && fs::read_to_string(stamp(file)).is_ok_and(|have| have == version)
}

/// A module of our own, in a folder that goes when it is dropped, that requires the one to be built. `go install` refuses
/// modules with replace directives; building from outside, their go.mod and go.sum have to be taken over.
struct Build {
    go: PathBuf,
    work: tempfile::TempDir,
    module: &'static str,
    version: &'static str,
    /// The module's go.mod and its unpacked folder.
    go_mod: PathBuf,
    source: PathBuf,
}

impl Build {
    fn new(progress: &MultiProgress, module: &'static str, version: &'static str, sum: &str) -> Result<Self> {
        let work = tempfile::tempdir()?;
        fs::write(work.path().join("go.mod"), "module build\n\ngo 1.24\n")?;
        let mut build = Self {
            go: tools::go(progress)?,
            work,
            module,
            version,
            go_mod: PathBuf::new(),
            source: PathBuf::new(),
        };
        let said = build.go(&["mod", "download", "-json", &format!("{module}@{version}")])?;
        let said: serde_json::Value = serde_json::from_slice(&said).context("go's answer")?;
        ensure!(said["Sum"] == sum, "{module} {version} has the hash {}, expected {sum}", said["Sum"]);
        let path = |key: &str| said[key].as_str().map(PathBuf::from).context("go's answer names no path");
        (build.go_mod, build.source) = (path("GoMod")?, path("Dir")?);
        Ok(build)
    }

    fn go(&self, arguments: &[&str]) -> Result<Vec<u8>> {
        let mut command = Command::new(&self.go);
        command.args(arguments).current_dir(self.work.path());
        // The hash database lacks some modules; their hashes are in the go.sum that we take over.
        command.env("GOFLAGS", "-mod=mod").env("GOSUMDB", "off").env("CGO_ENABLED", "0");
        cargo::output(&mut command).context("Go could not build what the tests need; is there a network?")
    }

    /// The module's own requirements become ours; modules that it keeps in its own tree come as `staging`.
    fn take_over_requirements(&self, staging: &str) -> Result<()> {
        let text = fs::read_to_string(&self.go_mod)?;
        let own = text.lines().map(|line| match line.split_once("=> ./staging/src/") {
            Some((replaced, module)) => format!("{replaced}=> {module} {staging}"),
            None if line.starts_with("module ") => "module build".into(),
            None => line.into(),
        });
        let own: Vec<String> = own.collect();
        if own.iter().any(|line| line.contains("=> ./")) {
            bail!("{} replaces modules by folders of its own", self.module);
        }
        let (module, version) = (self.module, self.version);
        let text = format!("{}\nrequire {module} {version}\n", own.join("\n"));
        fs::write(self.work.path().join("go.mod"), text)?;
        fs::copy(self.source.join("go.sum"), self.work.path().join("go.sum"))?;
        // Copied from the module cache, where files are read-only.
        let mut permissions = fs::metadata(self.work.path().join("go.sum"))?.permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o644);
        Ok(fs::set_permissions(self.work.path().join("go.sum"), permissions)?)
    }

    fn program(&self, package: &str, file: &Path, version: &str, flags: &str) -> Result<()> {
        fs::create_dir_all(file.parent().context("the cache is a folder")?)?;
        let partial = file.with_extension("partial");
        let flags = format!("-ldflags={flags}");
        self.go(&["build", "-trimpath", &flags, "-o", &partial.display().to_string(), package])?;
        fs::rename(partial, file)?;
        Ok(fs::write(stamp(file), version)?)
    }
}
