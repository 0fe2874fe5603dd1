//! The way of a frame, step by step (DESIGN §2).

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use sightline_mesh::{
    Deadline, RpcError,
    client::{Ask, CallOptions, Channel, Cluster, PoolOptions, PoolSnapshot, StreamPool},
};
use sightline_proto::verdict::{Level, Score, Timings, Verdict, VerdictSource};
use sightline_telemetry::{child_span, trace::ended};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, instrument};

use crate::{
    cache::{Cache, Key, Origin, Scored},
    cadence::Cadence,
    config::{IngestConfig, PolicyConfig},
    decoders::Decoders,
    error::IngestError,
    events,
    frame::{Caller, Frame},
    infer::{InferLane, infer},
    limits::Limiter,
    models::{Directory, Model, policies},
    picture,
    policy::Policy,
    record::{RecordLane, Recorder},
    shared::Shared,
    spool::Spool,
    traces,
    users::ActiveUsers,
};

/// Connections to the three services that ingest calls, what replicas share, and what bridges the absence of one.
#[derive(Debug)]
pub struct Upstreams {
    /// Replicas of the classifier.
    pub classifier: Cluster,
    /// Replicas of the rate limiter.
    pub ratelimiter: Cluster,
    /// Replicas of the statistics.
    pub stats: Cluster,
    /// How calls to them are made that are no messages of a stream.
    pub calls: CallOptions,
    /// How messages to them are sent.
    pub pools: PoolOptions,
    /// Verdicts that all replicas share, if they do.
    pub shared: Option<Shared>,
    /// Where events wait while the statistics are away; `None`: in memory only.
    pub spool: Option<Spool>,
}

/// Everything a frame passes through. One per process, shared by all calls.
pub struct Pipeline {
    config: IngestConfig,
    limiter: Limiter,
    models: Arc<Directory>,
    cache: Cache,
    classifier: StreamPool<InferLane>,
    stats: StreamPool<RecordLane>,
    decoders: Decoders,
    bytes_in_flight: Arc<Semaphore>,
    policy: Policy,
    cadence: Cadence,
    recorder: Recorder,
    users: Arc<ActiveUsers>,
    _refresh: AbortOnDropHandle<()>,
    _gauge: AbortOnDropHandle<()>,
}

/// Bytes charged against `ingest.max_bytes_in_flight`, until the last clone is dropped.
pub type Held = Arc<OwnedSemaphorePermit>;

/// How long the stages of one frame took.
#[derive(Debug, Default, Clone, Copy)]
struct Stages {
    admit: Option<Duration>,
    decode: Option<Duration>,
    queue: Option<Duration>,
    inference: Option<Duration>,
}

impl Pipeline {
    /// Builds the pipeline and starts connecting, on the current tokio runtime.
    pub fn start(config: &IngestConfig, policy: &PolicyConfig, upstreams: Upstreams) -> Arc<Self> {
        events::describe();
        let users = Arc::new(ActiveUsers::default());
        let options = upstreams.pools;
        let models = Arc::new(Directory::default());
        let refresh = {
            let classifier = Channel::new(upstreams.classifier.clone(), &policies(), upstreams.calls);
            let models = Arc::clone(&models);
            tokio::spawn(async move { models.keep_fresh(&classifier).await })
        };
        let classifier_options = PoolOptions { max_streams: config.classifier_streams, ..options };
        let stats = StreamPool::start(RecordLane, upstreams.stats, options);
        let recorder = Recorder::start(config, stats.clone(), upstreams.spool);
        let bytes_in_flight = config.max_bytes_in_flight.bytes().min(Semaphore::MAX_PERMITS);
        Arc::new(Self {
            limiter: Limiter::start(
                upstreams.ratelimiter,
                config.ratelimiter_timeout,
                config.ratelimiter_away,
                options,
            ),
            models,
            cache: Cache::new(config.cache_entries, config.cache_ttl.0, upstreams.shared),
            classifier: StreamPool::start(InferLane, upstreams.classifier, classifier_options),
            stats,
            decoders: Decoders::new(config.decoders),
            bytes_in_flight: Arc::new(Semaphore::new(bytes_in_flight)),
            policy: Policy::new(policy),
            cadence: Cadence::new(policy),
            recorder,
            _gauge: AbortOnDropHandle::new(tokio::spawn(Arc::clone(&users).keep())),
            users,
            config: config.clone(),
            _refresh: AbortOnDropHandle::new(refresh),
        })
    }

    /// The settings it was built with.
    pub fn config(&self) -> &IngestConfig {
        &self.config
    }

    /// The services that it calls, at this moment.
    pub fn mesh(&self) -> [PoolSnapshot; 3] {
        [self.classifier.snapshot(), self.limiter.snapshot(), self.stats.snapshot()]
    }

    /// Whether a frame could be classified now, or what is waited for.
    ///
    /// # Errors
    /// A text for operators.
    pub fn ready(&self) -> Result<(), String> {
        if self.models.is_empty() || self.classifier.open_streams() == 0 {
            let why = self.models.problem().map_or(String::new(), |problem| format!(": {problem}"));
            return Err(format!("ingest: no classifier has answered yet{why}"));
        }
        Ok(())
    }

    /// Sends the last events to the statistics.
    pub async fn finish(&self, deadline: Deadline) {
        self.recorder.finish(deadline).await;
    }

    /// Takes one frame the whole way. `held`: its bytes were charged already, with those of its batch.
    ///
    /// # Errors
    /// [`IngestError`]; counted by its reason.
    #[instrument(name = "ingest.classify", skip_all, fields(frame = %frame.id))]
    pub async fn classify(
        &self,
        frame: Frame,
        held: Option<Held>,
        caller: &Caller,
        deadline: Deadline,
    ) -> Result<Verdict, IngestError> {
        let trace = caller.trace.clone().begin();
        let span = traces::frame(&frame, &trace);
        let way = self.way(frame, held, caller, deadline).instrument(span.clone());
        let verdict = trace.around(way).await;
        match &verdict {
            Ok(_) => ended(&span, 0, ""),
            Err(error) => {
                let error = RpcError::from(error.clone());
                ended(&span, error.code as i32, &error.reason);
                events::failed(&error.reason);
            }
        }
        verdict
    }

    async fn way(
        &self,
        frame: Frame,
        held: Option<Held>,
        caller: &Caller,
        deadline: Deadline,
    ) -> Result<Verdict, IngestError> {
        let arrived = Instant::now();
        if deadline.passed() {
            return Err(RpcError::deadline("arriving").into());
        }
        picture::recognise(&frame.image)?;
        self.users.seen(caller.tenant(), &frame.user);
        let model = self.models.find(&frame.model)?;
        let held = match held {
            Some(held) => held,
            None => self.hold(frame.image.len())?,
        };
        let mut stages = Stages::default();

        let since = Instant::now();
        self.limiter.admit(&frame, caller, deadline).await?;
        stages.admit = Some(since.elapsed());

        let key = Key::new(caller.tenant(), &model.name, &model.digest, &frame.image);
        let measured = std::sync::Mutex::new(Stages::default());
        let classify = || async {
            let (scored, took) = self.score(&frame, &model, &held, frame.ask(caller, deadline)).await?;
            *measured.lock().expect("no holder panics") = took;
            Ok(scored)
        };
        let is_unsafe =
            |scored: &Scored| self.policy.level(&scored.scores, &model.weights) >= Level::Suggestive;
        let (scored, origin) = self.cache.get_or_classify(key, deadline, is_unsafe, classify).await?;
        let measured = *measured.lock().expect("no holder panics");
        stages = Stages { admit: stages.admit, ..measured };
        Ok(self.verdict(&frame, caller, &model, &scored, origin, arrived, stages))
    }

    /// Decode, resize, infer.
    async fn score(
        &self,
        frame: &Frame,
        model: &Arc<Model>,
        held: &Held,
        ask: Ask,
    ) -> Result<(Scored, Stages), IngestError> {
        // While the classifiers shed, a decode would be for nothing: it costs a third of what an inference does.
        let admitted = self.classifier.admit(ask.deadline)?;
        let limits = picture::Limits { max_pixels: self.config.max_pixels, max_side: self.config.max_side };
        let (image, input) = (frame.image.clone(), Arc::clone(model));
        let work = move || picture::prepare(&image, limits, &input.input);
        let span = child_span!("ingest.decode");
        let (prepared, decode) =
            self.decoders.run(ask.deadline, Arc::clone(held), work).instrument(span).await?;
        // A decoder that panics is the image's fault as far as the client is concerned; nobody else notices (P8).
        let pixels = prepared.map_err(|_| IngestError::ImageCorrupt("image"))??;
        events::decoded(decode);
        let inferred = infer(&self.classifier, admitted, model, &pixels, ask).await?;
        let scored = Scored { anchor: frame.id, scores: inferred.scores.into() };
        let stages = Stages {
            admit: None,
            decode: Some(decode),
            queue: inferred.queue,
            inference: inferred.inference,
        };
        Ok((scored, stages))
    }

    /// Charges bytes of images that are in memory.
    ///
    /// # Errors
    /// `Overloaded`.
    pub fn hold(&self, bytes: usize) -> Result<Held, IngestError> {
        let count = u32::try_from(bytes).map_err(|_| IngestError::Overloaded)?;
        let charged = Arc::clone(&self.bytes_in_flight).try_acquire_many_owned(count);
        Ok(Arc::new(charged.map_err(|_| IngestError::Overloaded)?))
    }

    #[allow(clippy::too_many_arguments)] // the end of the way: everything comes together here
    fn verdict(
        &self,
        frame: &Frame,
        caller: &Caller,
        model: &Model,
        scored: &Scored,
        origin: Origin,
        arrived: Instant,
        stages: Stages,
    ) -> Verdict {
        let level = self.policy.level(&scored.scores, &model.weights);
        let (source, anchor) = match origin {
            Origin::Fresh => (VerdictSource::Model, String::new()),
            Origin::Repeat => (VerdictSource::ExactDuplicate, scored.anchor.to_string()),
        };
        self.recorder.record(frame, caller, level, source, &model.name);
        let next = self.cadence.next(caller.tenant(), &frame.user, &frame.device, level);
        let total = arrived.elapsed();
        events::verdict(level, source, total);
        let wire = |time: Option<Duration>| time.and_then(|time| time.try_into().ok());
        Verdict {
            frame_id: frame.id.to_string(),
            level: level.into(),
            scores: model
                .classes
                .iter()
                .zip(scored.scores.iter())
                .map(|(class, value)| Score { class: class.clone(), value: *value })
                .collect(),
            source: source.into(),
            model: model.name.clone(),
            policy: self.policy.id.clone(),
            anchor_frame_id: anchor,
            timings: Some(Timings {
                total: wire(Some(total)),
                admit: wire(stages.admit),
                decode: wire(stages.decode),
                queue: wire(stages.queue),
                inference: wire(stages.inference),
            }),
            next_capture_after: next.try_into().ok(),
        }
    }
}
