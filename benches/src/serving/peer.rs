//! The usual Python way: FastAPI under gunicorn with PIL and torch, in processes of its own (benches/peer).

use std::{
    collections::HashMap,
    fs,
    io::Write,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures_util::future::try_join_all;
use http_body_util::{BodyExt, Full};
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sightline_benches::product::Scores;
use sightline_model::{
    graph::{Activation, Graph, Op},
    nsfwjs::{CLASSES, Package, Which, read},
};
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::options::PeerSettings;

/// What is tried; the fastest takes part.
pub(crate) const CANDIDATES: [PeerSettings; 3] = [
    PeerSettings { workers: 2, threads: 1, offload: false },
    PeerSettings { workers: 2, threads: 1, offload: true },
    PeerSettings { workers: 1, threads: 2, offload: true },
];

/// How long gunicorn and its workers may take to import torch and load the model.
const START: Duration = Duration::from_secs(60);

/// The programs of the peer and its model.
pub(crate) struct Kit {
    python: PathBuf,
    folder: TempDir,
}

impl Kit {
    /// Makes the peer's model from the nsfwjs package.
    pub(crate) fn make(python: &Path, package: &Path) -> Result<Self> {
        let kit = Self { python: python.to_owned(), folder: tempfile::tempdir()? };
        let graph = read(&Package::open(package)?, Which::MobileNetV2)?;
        describe(&graph, kit.folder.path())?;
        let mut export = Command::new(python);
        export.arg(sources().join("export.py")).arg(kit.folder.path()).arg(kit.model());
        let output = export.output().with_context(|| format!("cannot start {}", python.display()))?;
        ensure!(output.status.success(), "export.py: {}", String::from_utf8_lossy(&output.stderr));
        Ok(kit)
    }

    fn model(&self) -> PathBuf {
        self.folder.path().join("peer.pt")
    }
}

fn sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("peer")
}

/// A running peer, killed when dropped.
pub(crate) struct Peer {
    master: Child,
    address: SocketAddr,
    workers: usize,
}

impl Peer {
    /// Starts it and waits until it answers.
    pub(crate) async fn start(kit: &Kit, settings: PeerSettings) -> Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut gunicorn = Command::new(&kit.python);
        gunicorn
            .args(["-W", "ignore", "-m", "gunicorn", "--log-level", "warning", "--timeout", "120"])
            .args(["-k", "uvicorn.workers.UvicornWorker", "-w", &settings.workers.to_string()])
            .args(["-b", &address.to_string(), "app:app"])
            .current_dir(sources())
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .env("PEER_MODEL", kit.model())
            .env("PEER_THREADS", settings.threads.to_string())
            .env("PEER_OFFLOAD", if settings.offload { "1" } else { "0" })
            .stdin(Stdio::null());
        let mut peer = Self { master: gunicorn.spawn()?, address, workers: settings.workers };
        let started = tokio::time::Instant::now();
        loop {
            if let Some(status) = peer.master.try_wait()? {
                bail!("gunicorn ended with {status}");
            }
            // A worker accepts once it has loaded the model; until then the others take all connections.
            let all = tokio::time::timeout(Duration::from_secs(5), peer.connect(settings.workers));
            if let Ok(Ok(_)) = all.await {
                return Ok(peer);
            }
            ensure!(started.elapsed() < START, "the peer does not answer after {START:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// The master; workers are its children.
    pub(crate) fn id(&self) -> u32 {
        self.master.id()
    }

    /// `count` connections, the same number to each worker. Whichever worker is quickest takes a connection, so some
    /// are closed again.
    pub(crate) async fn connect(&self, count: usize) -> Result<Vec<Connection>> {
        let mut connections: HashMap<u64, Vec<Connection>> = HashMap::new();
        let each = count.div_ceil(self.workers);
        for _ in 0..100 * count {
            let mut connection = Connection::open(self.address).await?;
            let health: Value =
                serde_json::from_slice(&connection.call("GET", "/health", Bytes::new()).await?)?;
            let worker = health["worker"].as_u64().context("/health names no worker")?;
            let own = connections.entry(worker).or_default();
            if own.len() < each {
                own.push(connection);
            }
            if connections.len() == self.workers && connections.values().all(|own| own.len() == each) {
                return Ok(connections.into_values().flatten().take(count).collect());
            }
        }
        bail!("not every one of {} workers takes connections", self.workers)
    }
}

/// Posts every frame over `connections` and gives the scores in the frames' order.
pub(crate) async fn classify(connections: Vec<Connection>, frames: &[Bytes]) -> Result<Scores> {
    let (frames, next) = (Arc::new(frames.to_vec()), Arc::new(AtomicUsize::new(0)));
    let callers = connections.into_iter().map(|mut connection| {
        let (frames, next) = (Arc::clone(&frames), Arc::clone(&next));
        tokio::spawn(async move {
            let mut scores = Scores::new();
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(frame) = frames.get(at) else { return Ok(scores) };
                let answer = connection.call("POST", "/classify", frame.clone()).await?;
                scores.insert(at, parse(&answer)?);
            }
        })
    });
    let answers: Result<Vec<Scores>> = try_join_all(callers).await?.into_iter().collect();
    Ok(answers?.into_iter().flatten().collect())
}

impl Drop for Peer {
    fn drop(&mut self) {
        // The master ends its workers on SIGTERM; killed, it would leave them.
        Command::new("kill").args(["-TERM", &self.id().to_string()]).status().ok();
        self.master.wait().ok();
    }
}

fn parse(answer: &[u8]) -> Result<Vec<f32>> {
    let scores: Value = serde_json::from_slice(answer)?;
    let score = |class: &str| scores[class].as_f64().map(|score| score as f32);
    CLASSES
        .iter()
        .map(|class| score(class).with_context(|| format!("no score of {class} in {scores}")))
        .collect()
}

/// One kept HTTP/1.1 connection.
pub(crate) struct Connection {
    sender: http1::SendRequest<Full<Bytes>>,
}

impl Connection {
    async fn open(address: SocketAddr) -> Result<Self> {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(socket)).await?;
        tokio::spawn(connection);
        Ok(Self { sender })
    }

    async fn call(&mut self, method: &str, path: &str, body: Bytes) -> Result<Bytes> {
        self.sender.ready().await?;
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("host", "peer")
            .header("content-type", "image/jpeg")
            .body(Full::new(body))?;
        let response = self.sender.send_request(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await?.to_bytes();
        ensure!(status.is_success(), "the peer answered {status}: {}", String::from_utf8_lossy(&body));
        Ok(body)
    }
}

/// Writes layers.json and weights.bin for export.py.
fn describe(graph: &Graph, folder: &Path) -> Result<()> {
    let mut weights = Vec::new();
    let mut keep = |values: &[f32]| {
        let from = weights.len();
        weights.extend_from_slice(values);
        json!([from, weights.len()])
    };
    let mut layers = Vec::new();
    for node in graph.nodes() {
        let mut layer = match &node.op {
            Op::Input => json!({"op": "input"}),
            Op::Conv(conv) => json!({
                "op": "conv",
                "in_channels": conv.filter.inputs * conv.groups,
                "out_channels": conv.filter.outputs,
                "kernel": [conv.filter.rows, conv.filter.columns],
                "stride": conv.stride,
                "padding": [conv.padding.top, conv.padding.left],
                "dilation": conv.dilation,
                "groups": conv.groups,
                "weight": keep(&conv.filter.values),
                "bias": if conv.bias.iter().all(|value| *value == 0.0) { Value::Null } else { keep(&conv.bias) },
            }),
            Op::Affine { scale, shift } => {
                json!({"op": "batch_norm", "scale": keep(scale), "shift": keep(shift)})
            }
            Op::Dense(dense) => json!({
                "op": "dense",
                "in_features": dense.inputs,
                "out_features": dense.outputs,
                "weight": keep(&dense.weight),
                "bias": keep(&dense.bias),
                "relu": match dense.activation {
                    Activation::None => false,
                    Activation::Relu => true,
                    Activation::Relu6 => bail!("layer {}: export.py has no word for it", node.name),
                },
            }),
            Op::Pad(pad) => json!({"op": "pad", "sides": [pad.left, pad.right, pad.top, pad.bottom]}),
            Op::Activation(Activation::Relu6) => json!({"op": "relu6"}),
            Op::Add => json!({"op": "add"}),
            Op::AvgPool(pool) if pool.padding.is_zero() => {
                json!({"op": "avg_pool", "window": pool.window, "stride": pool.stride})
            }
            Op::GlobalAvgPool => json!({"op": "mean"}),
            Op::Flatten => json!({"op": "flatten"}),
            Op::Softmax => json!({"op": "softmax"}),
            other => bail!("layer {}: export.py has no word for {other:?}", node.name),
        };
        if let Op::Conv(conv) = &node.op {
            let plain = conv.padding.is_symmetric() && conv.activation == Activation::None;
            ensure!(plain && node.inputs.len() == 1, "layer {}: nn.Conv2d cannot do all of it", node.name);
        }
        layer["inputs"] = node.inputs.iter().map(|input| input.0).collect();
        layers.push(layer);
    }
    fs::write(folder.join("layers.json"), serde_json::to_vec(&layers)?)?;
    let mut file = std::io::BufWriter::new(fs::File::create(folder.join("weights.bin"))?);
    for value in weights {
        file.write_all(&value.to_le_bytes())?;
    }
    Ok(file.flush()?)
}
