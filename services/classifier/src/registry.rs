//! The models this process serves.

use std::{
    path::Path,
    sync::{Arc, Mutex},
    thread::JoinHandle,
};

use sightline_config::ByteSize;
use sightline_mesh::stream::LoadMeter;
use sightline_model::manifest::{self, Digest, Manifest};
use sightline_proto::classifier as wire;
use tracing::info;

use crate::{
    backend::Backend,
    config::{ClassifierConfig, MESSAGE_OVERHEAD},
    error::{ClassifierError, StartError},
    executor::{self, Plan},
    pixels::Scaling,
    queue::Queue,
};

/// One model and its executors.
pub(crate) struct Served {
    plan: Arc<Plan>,
    /// Of the manifest and of the archive that runs here.
    digest: Digest,
    executors: usize,
    max_batch: usize,
    meter: LoadMeter,
}

impl Served {
    /// "name@version".
    pub(crate) fn name(&self) -> &str {
        &self.plan.name
    }

    pub(crate) fn queue(&self) -> &Queue {
        &self.plan.queue
    }

    /// Full when every executor has a whole batch.
    pub(crate) fn meter(&self) -> &LoadMeter {
        &self.meter
    }

    /// The encoding and the number of bytes of one input.
    pub(crate) fn pixels(&self) -> (wire::PixelFormat, usize) {
        (self.plan.scaling.format(), self.plan.scaling.bytes())
    }
}

/// All models, the default one first.
pub struct Registry {
    models: Vec<Served>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    device: String,
}

impl Registry {
    /// Loads every configured model and starts its executors. Blocks for as long as loading takes.
    ///
    /// # Errors
    /// [`StartError`]; executors already started end.
    pub fn start(config: &ClassifierConfig, backend: &Arc<dyn Backend>) -> Result<Self, StartError> {
        if config.models.is_empty() {
            return Err(StartError::NoModels);
        }
        let device = backend.device();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let executors = if config.executors == 0 { cores } else { config.executors };
        let mut registry = Self { models: Vec::new(), threads: Mutex::default(), device };
        for folder in &config.models {
            let (manifest, digest) = read(folder, backend.kind())
                .map_err(|source| StartError::Manifest { folder: folder.clone(), source })?;
            let plan = plan(manifest, folder, config, backend);
            check_input(&plan, config.max_message)?;
            if registry.models.iter().any(|served| served.name() == plan.name) {
                return Err(StartError::Duplicate(plan.name.clone()));
            }
            let (threads, max_batch) = executor::start(&plan, executors, config.max_batch)?;
            info!(model = plan.name, executors, max_batch, device = registry.device, "model ready");
            registry.threads.lock().expect("no holder panics").extend(threads);
            let meter = LoadMeter::new(executors * max_batch);
            registry.models.push(Served { plan, digest, executors, max_batch, meter });
        }
        Ok(registry)
    }

    /// The model a request means: "name@version", "name" (the first of that name), or "" (the default).
    pub(crate) fn find(&self, asked: &str) -> Result<&Served, ClassifierError> {
        let matches = |served: &&Served| {
            asked.is_empty() || served.name() == asked || served.plan.manifest.name == asked
        };
        self.models.iter().find(matches).ok_or_else(|| {
            let served: Vec<_> = self.models.iter().map(Served::name).collect();
            ClassifierError::ModelUnknown { name: asked.to_owned(), served: served.join(", ") }
        })
    }

    /// Every model as the protocol shows it.
    pub(crate) fn list(&self) -> Vec<wire::Model> {
        self.models.iter().enumerate().map(|(index, served)| self.describe(served, index == 0)).collect()
    }

    fn describe(&self, served: &Served, default: bool) -> wire::Model {
        let manifest = &served.plan.manifest;
        wire::Model {
            name: manifest.name.clone(),
            version: manifest.version.clone(),
            default,
            classes: manifest
                .classes
                .iter()
                .map(|class| wire::Class { name: class.name.clone(), role: role(class.role).into() })
                .collect(),
            input: Some(input_spec(&manifest.input)),
            tolerance: manifest.tolerance,
            license: manifest.license.clone(),
            source: manifest.source.clone(),
            digest: served.digest.to_string(),
            device: self.device.clone(),
            executors: served.executors as u32,
            max_batch: served.max_batch as u32,
        }
    }
}

impl Drop for Registry {
    /// Lets the executors finish what waits, then ends them.
    fn drop(&mut self) {
        for served in &self.models {
            served.plan.queue.close();
        }
        for thread in self.threads.lock().expect("no holder panics").drain(..) {
            thread.join().ok();
        }
    }
}

/// A model's manifest, its archives checked, and the digest of what runs on this kind of device.
fn read(folder: &Path, device: manifest::Device) -> Result<(Manifest, Digest), manifest::ManifestError> {
    let manifest = Manifest::load(folder)?;
    manifest.verify(folder)?;
    let digest = manifest.served_digest(folder, device)?;
    Ok((manifest, digest))
}

/// Refuses a model whose every tensor the transport would turn away, each time with the stream it came on.
fn check_input(plan: &Plan, limit: ByteSize) -> Result<(), StartError> {
    let input = plan.scaling.bytes() as u64;
    let needed = ByteSize(input.saturating_add(MESSAGE_OVERHEAD));
    if needed > limit {
        return Err(StartError::InputTooLarge { model: plan.name.clone(), input, limit, needed });
    }
    Ok(())
}

fn plan(
    manifest: Manifest,
    folder: &Path,
    config: &ClassifierConfig,
    backend: &Arc<dyn Backend>,
) -> Arc<Plan> {
    let name = format!("{}@{}", manifest.name, manifest.version);
    Arc::new(Plan {
        scaling: Scaling::new(&manifest.input),
        queue: Arc::new(Queue::new(name.clone(), config.queue_capacity)),
        backend: Arc::clone(backend),
        folder: folder.to_owned(),
        manifest,
        name,
    })
}

fn role(role: manifest::Role) -> wire::ClassRole {
    match role {
        manifest::Role::Safe => wire::ClassRole::Safe,
        manifest::Role::Suggestive => wire::ClassRole::Suggestive,
        manifest::Role::Explicit => wire::ClassRole::Explicit,
    }
}

fn input_spec(input: &manifest::Input) -> wire::InputSpec {
    wire::InputSpec {
        width: input.width,
        height: input.height,
        channels: input.channels,
        colour: match input.colour {
            manifest::Colour::Rgb => wire::ColourOrder::Rgb,
            manifest::Colour::Bgr => wire::ColourOrder::Bgr,
        }
        .into(),
        resize: match input.resize {
            manifest::Resize::Nearest => wire::ResizeFilter::Nearest,
            manifest::Resize::Bilinear => wire::ResizeFilter::Bilinear,
        }
        .into(),
        corners: match input.corners {
            manifest::Corners::Align => wire::CornerRule::Align,
            manifest::Corners::HalfPixel => wire::CornerRule::HalfPixel,
        }
        .into(),
        antialias: input.antialias,
        format: match input.transport {
            manifest::Transport::U8 => wire::PixelFormat::U8,
            manifest::Transport::U16 => wire::PixelFormat::U16,
            manifest::Transport::F32 => wire::PixelFormat::F32,
        }
        .into(),
    }
}
