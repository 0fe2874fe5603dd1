//! What the classifier serves: asked for at start, and again from time to time.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use arc_swap::ArcSwap;
use sightline_mesh::{
    RpcError,
    client::{Channel, MethodPolicies},
};
use sightline_proto::classifier::{
    InputSpec, ListModelsRequest, Model as Wire, classifier_service_client::ClassifierServiceClient,
};
use tonic::{Code, Request};
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
    /// Why the list could not be had when it was asked for last.
    problem: Mutex<Option<RpcError>>,
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

    /// Why the list of models could not be had when it was asked for last, for operators.
    pub fn problem(&self) -> Option<String> {
        self.problem.lock().expect("no holder panics").as_ref().map(explain)
    }

    /// Asks the classifiers for their models, for ever.
    pub async fn keep_fresh(&self, classifier: &Channel) {
        loop {
            let listed = list(classifier).await;
            let pause = if listed.is_ok() || !self.is_empty() { REFRESH } else { RETRY };
            self.note(listed);
            tokio::time::sleep(pause).await;
        }
    }

    /// Keeps an answer, or what went wrong; logs each once. What was known stays known: the classifier may be restarting.
    fn note(&self, listed: Result<Vec<Arc<Model>>, RpcError>) {
        let before = &mut *self.problem.lock().expect("no holder panics");
        match listed {
            Ok(models) => {
                if before.take().is_some() || self.is_empty() {
                    info!(models = models.len(), "the classifier answered");
                }
                self.models.store(Arc::new(models));
            }
            Err(error) => {
                let same = before.as_ref().is_some_and(|before| {
                    (before.code, &before.reason, &before.message)
                        == (error.code, &error.reason, &error.message)
                });
                if !same {
                    warn!(reason = error.reason, "no classifier lists its models: {}", explain(&error));
                }
                *before = Some(error);
            }
        }
    }
}

/// What went wrong, and the way out where it is known.
fn explain(error: &RpcError) -> String {
    let hint = match error.code {
        Code::Unauthenticated | Code::PermissionDenied => {
            "; a classifier that asks for tokens needs `auth.service_token_file` to be set here"
        }
        _ => "",
    };
    format!("{} ({}){hint}", error.message, error.reason)
}

/// What may be done with calls to the services behind ingest: what their protos say.
pub(crate) fn policies() -> MethodPolicies {
    MethodPolicies::from_protos(sightline_proto::FILE_DESCRIPTOR_SET)
        .expect("our own descriptors can be read")
}

/// Asks one replica, and another when it does not answer.
async fn list(classifier: &Channel) -> Result<Vec<Arc<Model>>, RpcError> {
    let mut request = Request::new(ListModelsRequest {});
    request.set_timeout(TIMEOUT);
    let answer = ClassifierServiceClient::new(classifier.clone()).list_models(request).await;
    let models = answer.map_err(|status| RpcError::from_status(&status))?.into_inner().models;
    Ok(models.into_iter().filter_map(Model::read).map(Arc::new).collect())
}

#[cfg(test)]
mod tests {
    use sightline_mesh::{
        client::{CallOptions, Cluster, ClusterOptions, Fixed, Lane},
        server::{Lifecycle, Server, bind},
    };
    use tonic::service::Routes;

    use super::*;
    use crate::{infer::InferLane, limits::CheckLane, record::RecordLane};

    #[test]
    fn what_may_run_twice_is_what_somebody_looked_at() {
        let policies = policies();
        let mut table: Vec<_> = policies
            .iter()
            .map(|(path, policy)| (path.rsplit('.').next().unwrap(), policy.idempotent))
            .collect();
        table.sort_unstable();
        let wanted = [
            ("ClassifierService/Infer", true),
            ("ClassifierService/ListModels", true),
            // A frame without an id of its caller's is another one each time.
            ("IngestService/Classify", false),
            ("IngestService/ClassifyBatch", false),
            ("IngestService/ClassifyStream", false),
            // A check is charged.
            ("RateLimitService/ShouldRateLimit", false),
            ("RateLimiterService/Check", false),
            ("RateLimiterService/CheckStream", false),
            ("StatsService/Query", true),
            ("StatsService/Record", true),
        ];
        assert_eq!(table, wanted);
        // The streams of messages go by the same table.
        let repeatable = [InferLane.repeatable(), CheckLane.repeatable(), RecordLane.repeatable()];
        assert_eq!(repeatable, [true, false, true]);
    }

    #[tokio::test]
    async fn while_no_model_is_known_the_reason_is() {
        let listener = bind("test", ([127, 0, 0, 1], 0).into()).await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap());
        let server = Server {
            name: "no classifier",
            listener,
            routes: Routes::default(),
            service_names: vec![],
            web: None,
            drain_timeout: TIMEOUT,
        };
        tokio::spawn(server.run(Lifecycle::default()));
        let directory = Directory::default();
        assert_eq!(directory.problem(), None);
        let fixed = Fixed::from_uris("classifier", &[uri]).unwrap();
        let cluster = Cluster::start(ClusterOptions::new("classifier", fixed));
        let classifier = Channel::new(cluster, &policies(), CallOptions::default());
        let asking = directory.keep_fresh(&classifier);
        let noted = async {
            while directory.problem().is_none() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            () = asking => {}
            () = noted => {}
            () = tokio::time::sleep(Duration::from_secs(10)) => {}
        }
        assert!(directory.problem().unwrap().contains("(UNIMPLEMENTED)"), "{:?}", directory.problem());
        directory.note(Err(RpcError::new(Code::Unauthenticated, "TOKEN_MISSING", "a token is required")));
        assert_eq!(
            directory.problem().unwrap(),
            "a token is required (TOKEN_MISSING); a classifier that asks for tokens needs \
             `auth.service_token_file` to be set here"
        );
        directory.note(Ok(vec![]));
        assert_eq!(directory.problem(), None);
    }
}
