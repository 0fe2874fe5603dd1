//! What the classifier serves: asked for at start, and again from time to time.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use sightline_mesh::{Deadline, RpcError, client::Endpoints};
use sightline_proto::classifier::{
    InputSpec, ListModelsRequest, Model as Wire, classifier_service_client::ClassifierServiceClient,
};
use tracing::{info, warn};

use crate::{error::IngestError, policy::Weights};

/// How often the list is asked for again, so that a model added by a rollout is found.
const REFRESH: Duration = Duration::from_secs(15);
/// The pause between two questions while no classifier answers.
const RETRY: Duration = Duration::from_millis(100);
/// How long one question may take.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A model as ingest needs it.
#[derive(Debug)]
pub struct Model {
    /// "name@version".
    pub name: String,
    /// Names of the classes, in the order of the scores.
    pub classes: Vec<String>,
    /// What the policy sums up.
    pub weights: Weights,
    /// What its pixels look like.
    pub input: InputSpec,
    /// Of the file served.
    pub digest: String,
    /// Without the version.
    base: String,
    default: bool,
}

impl Model {
    fn read(wire: Wire) -> Option<Self> {
        Some(Self {
            name: format!("{}@{}", wire.name, wire.version),
            weights: Weights::of(&wire.classes),
            classes: wire.classes.into_iter().map(|class| class.name).collect(),
            input: wire.input?,
            digest: wire.digest,
            base: wire.name,
            default: wire.default,
        })
    }
}

/// The models that are served now.
#[derive(Debug, Default)]
pub struct Directory {
    models: ArcSwap<Vec<Arc<Model>>>,
}

impl Directory {
    /// The model a frame means: "name@version", "name", or "" for the default.
    ///
    /// # Errors
    /// `ModelUnknown`, or `UNAVAILABLE` while no classifier has answered yet.
    pub fn find(&self, asked: &str) -> Result<Arc<Model>, IngestError> {
        let models = self.models.load();
        if models.is_empty() {
            return Err(RpcError::unavailable("no classifier has said which models it serves").into());
        }
        let fits = |model: &&Arc<Model>| match asked {
            "" => model.default,
            asked => model.name == asked || model.base == asked,
        };
        models.iter().find(fits).cloned().ok_or_else(|| IngestError::ModelUnknown {
            asked: asked.to_owned(),
            served: models.iter().map(|model| model.name.as_str()).collect::<Vec<_>>().join(", "),
        })
    }

    /// Whether any model is known.
    pub fn is_empty(&self) -> bool {
        self.models.load().is_empty()
    }

    /// Asks the classifiers for their models, for ever.
    pub async fn keep_fresh(&self, endpoints: &Endpoints) {
        loop {
            match list(endpoints).await {
                Ok(models) => {
                    if self.is_empty() {
                        info!(models = models.len(), "the classifier answered");
                    }
                    self.models.store(Arc::new(models));
                    tokio::time::sleep(REFRESH).await;
                }
                // What was known stays known: the classifier may be restarting.
                Err(error) => {
                    if !self.is_empty() {
                        warn!(reason = error.reason, "no classifier lists its models: {error}");
                    }
                    tokio::time::sleep(if self.is_empty() { RETRY } else { REFRESH }).await;
                }
            }
        }
    }
}

async fn list(endpoints: &Endpoints) -> Result<Vec<Arc<Model>>, RpcError> {
    let mut last = RpcError::unavailable("no classifier is configured");
    for (_, channel) in endpoints.channels() {
        let mut client = ClassifierServiceClient::new(channel);
        let call = client.list_models(endpoints.request(ListModelsRequest {}));
        match Deadline::after(TIMEOUT).bound("listing models", call).await {
            Ok(Ok(response)) => {
                let models = response.into_inner().models;
                return Ok(models.into_iter().filter_map(Model::read).map(Arc::new).collect());
            }
            Ok(Err(status)) => last = RpcError::from_status(&status),
            Err(error) => last = error,
        }
    }
    Err(last)
}
