//! Ours: `sightline dev` as a child process, called over gRPC by `Classify` and by `ClassifyStream`.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use bytes::Bytes;
use futures_util::future::try_join_all;
use sightline_proto::{
    classifier::{InputSpec, ListModelsRequest, classifier_service_client::ClassifierServiceClient},
    ingest::{
        ClassifyRequest, ClassifyStreamRequest, Frame, Hello, StreamFrame,
        classify_stream_request::Message as Said, classify_stream_response::Message as Heard,
        ingest_service_client::IngestServiceClient,
    },
    verdict::{Verdict, VerdictSource},
};
use sightline_testkit::Process;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};

/// Scores by the frame's place.
pub type Scores = BTreeMap<usize, Vec<f32>>;

/// Connections of the client: several clients at once, as an ingest sees them.
const CONNECTIONS: usize = 4;
/// Windows of the client; verdicts are small.
const WINDOW: u32 = 1 << 20;

/// The running product and connections to it.
pub struct Product {
    process: Process,
    channels: Vec<Channel>,
    _folder: TempDir,
}

/// How frames are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// One call a frame.
    Unary,
    /// One stream a connection.
    Stream,
}

impl Product {
    /// Starts it with the model in `model`, or with a very small one; `settings` come last.
    ///
    /// # Errors
    /// When it does not start, or listens to nobody.
    pub async fn start(model: Option<&Path>, settings: &[String]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let model = model.map(|model| format!("classifier.models=[{:?}]", model.display().to_string()));
        let mut all = vec!["ratelimiter.rules=dev"];
        all.extend(model.iter().chain(settings).map(String::as_str));
        let process = Process::dev(&folder, &all).context("SIGHTLINE_TEST_BINARY names no binary")?;
        let mut channels = Vec::new();
        for _ in 0..CONNECTIONS {
            let endpoint = Endpoint::from_shared(process.uri("ingest"))?
                .tcp_nodelay(true)
                .initial_stream_window_size(WINDOW)
                .initial_connection_window_size(WINDOW)
                .timeout(Duration::from_secs(60));
            channels.push(endpoint.connect().await?);
        }
        Ok(Self { process, channels, _folder: folder })
    }

    /// The process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// What the default model's pixels look like.
    ///
    /// # Errors
    /// When the classifier does not say.
    pub async fn input(&self) -> Result<InputSpec> {
        let mut client = ClassifierServiceClient::new(
            Endpoint::from_shared(self.process.uri("classifier"))?.connect().await?,
        );
        let models = client.list_models(ListModelsRequest {}).await?.into_inner().models;
        models.into_iter().find_map(|model| model.input).context("the classifier lists no model")
    }

    /// Sends `count` frames, going round in `frames`, with `in_flight` of them unanswered, and gives the scores in
    /// the order of sending. Every verdict must come from `source`.
    ///
    /// # Errors
    /// When one fails, or comes from elsewhere.
    pub async fn classify(
        &self,
        way: Way,
        frames: &[Bytes],
        count: usize,
        in_flight: usize,
        source: VerdictSource,
    ) -> Result<Scores> {
        let work = Arc::new(Work { frames: frames.to_vec(), count, next: AtomicUsize::new(0), source });
        let answers: Vec<Scores> = match way {
            Way::Unary => {
                let callers = (0..in_flight).map(|caller| {
                    let channel = self.channels[caller % CONNECTIONS].clone();
                    tokio::spawn(unary(channel, Arc::clone(&work), caller))
                });
                try_join_all(callers).await?.into_iter().collect::<Result<_>>()?
            }
            Way::Stream => {
                let window = in_flight.div_ceil(CONNECTIONS);
                let streams = self.channels.iter().enumerate().map(|(at, channel)| {
                    tokio::spawn(stream(channel.clone(), Arc::clone(&work), at, window))
                });
                try_join_all(streams).await?.into_iter().collect::<Result<_>>()?
            }
        };
        Ok(answers.into_iter().flatten().collect())
    }
}

/// The frames to send, taken one by one by whoever is free.
struct Work {
    frames: Vec<Bytes>,
    count: usize,
    next: AtomicUsize,
    source: VerdictSource,
}

impl Work {
    fn take(&self) -> Option<usize> {
        Some(self.next.fetch_add(1, Ordering::Relaxed)).filter(|at| *at < self.count)
    }

    fn frame(&self, at: usize) -> Frame {
        Frame { image: self.frames[at % self.frames.len()].clone(), ..Frame::default() }
    }

    fn check(&self, verdict: Option<Verdict>) -> Result<Vec<f32>> {
        let verdict = verdict.context("an answer without a verdict")?;
        ensure!(
            verdict.source() == self.source,
            "a verdict came from {:?} instead of {:?}: what was measured is something else",
            verdict.source(),
            self.source
        );
        Ok(verdict.scores.into_iter().map(|score| score.value).collect())
    }
}

async fn unary(channel: Channel, work: Arc<Work>, caller: usize) -> Result<Scores> {
    let mut client = IngestServiceClient::new(channel);
    let mut scores = Scores::new();
    while let Some(at) = work.take() {
        let frame = Frame { user_id: format!("caller-{caller}"), ..work.frame(at) };
        let answer = client.classify(ClassifyRequest { frame: Some(frame) }).await?.into_inner();
        scores.insert(at, work.check(answer.verdict)?);
    }
    Ok(scores)
}

async fn stream(channel: Channel, work: Arc<Work>, number: usize, window: usize) -> Result<Scores> {
    let (outbound, receiver) = mpsc::channel(window + 1);
    let say = |message| -> Result<()> {
        let message = ClassifyStreamRequest { message: Some(message) };
        outbound.try_send(message).map_err(|_| anyhow!("the stream takes no more"))
    };
    say(Said::Hello(Hello { user_id: format!("stream-{number}"), ..Hello::default() }))?;
    let mut inbound =
        IngestServiceClient::new(channel).classify_stream(ReceiverStream::new(receiver)).await?.into_inner();
    let mut scores = Scores::new();
    let mut owed = 0;
    let ask = |owed: &mut usize| -> Result<()> {
        if let Some(at) = work.take() {
            say(Said::Frame(StreamFrame {
                id: at as u64,
                frame: Some(work.frame(at)),
                ..StreamFrame::default()
            }))?;
            *owed += 1;
        }
        Ok(())
    };
    for _ in 0..window {
        ask(&mut owed)?;
    }
    while owed > 0 {
        match inbound.message().await?.and_then(|answer| answer.message) {
            Some(Heard::Verdict(answer)) => {
                owed -= 1;
                ask(&mut owed)?;
                scores.insert(answer.id as usize, work.check(answer.verdict)?);
            }
            Some(Heard::Welcome(_)) => {}
            other => bail!("the stream answered {other:?}"),
        }
    }
    Ok(scores)
}
