//! A model that runs nothing, and the classifier around it behind a real port.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use sightline_classifier::{
    ClassifierConfig, Registry, Service, StartError,
    backend::{Backend, BackendError, Executor},
};
use sightline_mesh::{
    RpcError,
    server::{Lifecycle, Server},
};
use sightline_model::manifest::{
    Class, Colour, Corners, Device, Digest, Fit, Input, Layout, Manifest, Output, Resize, Role, SCHEMA,
    Transport, Variant,
};
use sightline_proto::classifier::{
    CancelTensor, InferRequest, InferResponse, InferResult, PixelFormat, Tensor,
    classifier_service_client::ClassifierServiceClient,
    classifier_service_server::{ClassifierServiceServer, SERVICE_NAME},
    infer_request,
    infer_response::Message,
};
use tempfile::TempDir;
use tokio::{sync::mpsc, task::JoinHandle};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{
    Status, Streaming,
    service::Routes,
    transport::{Channel, Endpoint},
};

/// Numbers in one image: 2 × 2 of three colours, a byte each.
pub const VALUES: usize = 12;
/// An image of this byte gets scores that are not numbers.
pub const NOT_A_NUMBER: u8 = 250;
/// An image of this byte fails the whole run it is in.
pub const FAILS: u8 = 251;
/// Nothing here takes longer, unless it hangs.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What the fake model does, and what it did.
#[derive(Default)]
pub struct Script {
    closed: Mutex<bool>,
    changed: Condvar,
    /// The byte of each image, run by run; what is run at start is left out.
    runs: Mutex<Vec<Vec<u8>>>,
    /// Executors that are loaded now.
    pub loaded: AtomicUsize,
    /// Executors that were ever asked for.
    pub loads: AtomicUsize,
    /// The executor that cannot be loaded, counted from 1.
    pub fails_to_load: AtomicUsize,
    /// The largest batch that does not fail; 0: any.
    pub largest: AtomicUsize,
}

impl Script {
    /// Runs wait from now on.
    pub fn hold(&self) {
        *self.closed.lock().unwrap() = true;
    }

    /// Runs go on.
    pub fn release(&self) {
        *self.closed.lock().unwrap() = false;
        self.changed.notify_all();
    }

    /// What was run so far.
    pub fn runs(&self) -> Vec<Vec<u8>> {
        self.runs.lock().unwrap().clone()
    }

    /// Waits until so many runs have begun.
    pub async fn begun(&self, runs: usize) {
        let begun = async {
            while self.runs.lock().unwrap().len() < runs {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::time::timeout(PATIENCE, begun).await.expect("the run begins");
    }

    fn pass(&self) {
        let closed = self.closed.lock().unwrap();
        drop(self.changed.wait_timeout_while(closed, PATIENCE, |closed| *closed).unwrap());
    }
}

pub struct Fake(pub Arc<Script>);

impl Backend for Fake {
    fn device(&self) -> String {
        "cpu".into()
    }

    fn prepare_thread(&self) {}

    fn load(&self, _: &Manifest, _: &Path) -> Result<Box<dyn Executor>, BackendError> {
        let nth = self.0.loads.fetch_add(1, Ordering::SeqCst) + 1;
        if self.0.fails_to_load.load(Ordering::SeqCst) == nth {
            return Err(BackendError("no memory for another copy".into()));
        }
        self.0.loaded.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(Loaded(Arc::clone(&self.0))))
    }
}

struct Loaded(Arc<Script>);

impl Drop for Loaded {
    fn drop(&mut self) {
        self.0.loaded.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Executor for Loaded {
    /// The scores of an image of the byte `b` are `b` and `1 - b`, as parts of 255.
    fn run(
        &mut self,
        batch: usize,
        fill: &mut dyn FnMut(&mut [f32]),
        output: &mut Vec<f32>,
    ) -> Result<(), BackendError> {
        let mut buffer = vec![0.0; batch * VALUES];
        fill(&mut buffer);
        let firsts: Vec<f32> = buffer.chunks(VALUES).map(|image| image[0]).collect();
        // At start images are grey, halfway between two bytes.
        if firsts[0].fract() == 0.0 {
            self.0.runs.lock().unwrap().push(firsts.iter().map(|first| *first as u8).collect());
            self.0.pass();
        }
        let largest = self.0.largest.load(Ordering::SeqCst);
        if largest > 0 && batch > largest {
            return Err(BackendError("out of memory".into()));
        }
        if firsts.contains(&f32::from(FAILS)) {
            return Err(BackendError("no good today".into()));
        }
        output.clear();
        for first in firsts {
            let score = if first == f32::from(NOT_A_NUMBER) { f32::NAN } else { first / 255.0 };
            output.extend([score, 1.0 - score]);
        }
        Ok(())
    }
}

/// The manifest of the fake model: `2 × 2`, one byte a colour, two classes.
pub fn manifest() -> Manifest {
    Manifest {
        schema: SCHEMA,
        name: "fake".into(),
        version: "1".into(),
        file: "model.pt".into(),
        digest: Digest::of(b"any device"),
        output: Output::Probabilities,
        tolerance: 1e-4,
        license: "Apache-2.0".into(),
        source: "made in a test".into(),
        classes: [("unsafe", Role::Explicit), ("safe", Role::Safe)]
            .map(|(name, role)| Class { name: name.into(), role })
            .into(),
        input: Input {
            width: 2,
            height: 2,
            channels: 3,
            colour: Colour::Rgb,
            layout: Layout::Nchw,
            scale: 1.0,
            mean: vec![0.0; 3],
            std: vec![1.0; 3],
            resize: Resize::Bilinear,
            corners: Corners::HalfPixel,
            antialias: false,
            fit: Fit::Stretch,
            transport: Transport::U8,
        },
        variants: vec![],
    }
}

/// A second archive, for the CPU alone.
pub fn cpu_variant() -> Variant {
    Variant { file: "model-cpu.pt".into(), digest: Digest::of(b"the processor"), device: Device::Cpu }
}

/// Writes the manifest and the files it names.
pub fn write(manifest: &Manifest, parent: &TempDir) -> PathBuf {
    let folder = parent.path().join(&manifest.name);
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("model.pt"), "any device").unwrap();
    std::fs::write(folder.join("model-cpu.pt"), "the processor").unwrap();
    manifest.save(&folder).unwrap();
    folder
}

/// Starts the executors of a model as a node does.
pub async fn registry(config: &ClassifierConfig, script: &Arc<Script>) -> Result<Registry, StartError> {
    let (config, backend) = (config.clone(), Arc::new(Fake(Arc::clone(script))) as Arc<dyn Backend>);
    let start = tokio::task::spawn_blocking(move || Registry::start(&config, &backend));
    tokio::time::timeout(PATIENCE, start).await.expect("a start ends").unwrap()
}

/// A classifier behind a port.
pub struct Running {
    pub client: ClassifierServiceClient<Channel>,
    pub script: Arc<Script>,
    pub lifecycle: Lifecycle,
    pub served: Option<JoinHandle<()>>,
    _folder: TempDir,
}

impl Drop for Running {
    /// Executors that wait for a test that failed would keep it from ending.
    fn drop(&mut self) {
        self.script.release();
        self.lifecycle.drain();
    }
}

/// Starts with one executor that takes tensors one by one, unless `change` says otherwise.
pub async fn start(change: impl FnOnce(&mut ClassifierConfig)) -> Running {
    start_model(&manifest(), change).await
}

/// The same with another model.
pub async fn start_model(manifest: &Manifest, change: impl FnOnce(&mut ClassifierConfig)) -> Running {
    let folder = tempfile::tempdir().unwrap();
    let models = vec![write(manifest, &folder)];
    let mut config = ClassifierConfig { models, executors: 1, max_batch: 1, ..ClassifierConfig::default() };
    change(&mut config);
    config.validate().unwrap();
    let (script, lifecycle) = (Arc::new(Script::default()), Lifecycle::default());
    let registry = Arc::new(registry(&config, &script).await.unwrap());
    let service = Service::new(&config, registry, lifecycle.clone());
    let service = ClassifierServiceServer::new(service).max_decoding_message_size(config.max_message.bytes());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    let server = Server {
        name: "classifier",
        listener,
        routes: Routes::new(service),
        service_names: vec![SERVICE_NAME],
        web: None,
        drain_timeout: config.drain_timeout.0,
    };
    let life = lifecycle.clone();
    let served = Some(tokio::spawn(async move { server.run(life).await.unwrap() }));
    let channel = Endpoint::from_shared(uri).unwrap().connect().await.unwrap();
    Running { client: ClassifierServiceClient::new(channel), script, lifecycle, served, _folder: folder }
}

impl Running {
    /// Opens a stream and reads the first message: its credits.
    pub async fn open(&self) -> Stream {
        let (requests, outbound) = mpsc::channel(1_024);
        let answers = self.client.clone().infer(ReceiverStream::new(outbound)).await.unwrap().into_inner();
        let mut stream = Stream { requests: Some(requests), answers, credits: 0 };
        match stream.next().await {
            Some(Message::Credits(credits)) => stream.credits = credits.granted,
            other => panic!("the first message is {other:?}"),
        }
        stream
    }
}

/// An `Infer` stream.
pub struct Stream {
    requests: Option<mpsc::Sender<InferRequest>>,
    answers: Streaming<InferResponse>,
    pub credits: u32,
}

/// An image of one byte, as the fake model takes it.
pub fn tensor(id: u64, byte: u8) -> Tensor {
    Tensor {
        id,
        format: PixelFormat::U8.into(),
        pixels: Bytes::from(vec![byte; VALUES]),
        ..Tensor::default()
    }
}

impl Stream {
    pub async fn send(&self, message: Option<infer_request::Message>) {
        self.requests.as_ref().unwrap().send(InferRequest { message }).await.unwrap();
    }

    pub async fn tensor(&self, tensor: Tensor) {
        self.send(Some(infer_request::Message::Tensor(tensor))).await;
    }

    pub async fn cancel(&self, id: u64) {
        self.send(Some(infer_request::Message::Cancel(CancelTensor { id }))).await;
    }

    /// Closes the client's side; answers still come.
    pub fn close(&mut self) {
        self.requests = None;
    }

    /// The next message; `None` at a clean end.
    pub async fn next(&mut self) -> Option<Message> {
        self.try_next().await.unwrap()
    }

    pub async fn try_next(&mut self) -> Result<Option<Message>, Status> {
        let next = tokio::time::timeout(PATIENCE, self.answers.message()).await.expect("an answer in time");
        Ok(next?.map(|response| response.message.unwrap()))
    }

    /// The next answer to a tensor.
    pub async fn answer(&mut self) -> (u64, Result<InferResult, RpcError>) {
        match self.next().await.expect("an answer before the end") {
            Message::Result(result) => (result.id, Ok(result)),
            Message::Error(error) => (error.id, Err(error.error.unwrap().into())),
            other => panic!("{other:?} is no answer"),
        }
    }

    /// The reason of the next answer, which is an error.
    pub async fn refusal(&mut self) -> (u64, String) {
        let (id, answer) = self.answer().await;
        (id, answer.unwrap_err().reason)
    }

    /// Returns when the server has read everything sent before: it refuses an empty message at once.
    pub async fn read_by_the_server(&mut self) {
        self.send(None).await;
        assert_eq!(self.refusal().await, (0, "MESSAGE_EMPTY".into()));
    }
}
