//! What a start refuses, and what it says of the models it serves.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::sync::{Arc, atomic::Ordering};

use sightline_classifier::{ClassifierConfig, Service};
use sightline_config::ByteSize;
use sightline_mesh::server::Lifecycle;
use sightline_model::manifest::Manifest;
use sightline_proto::classifier::{ListModelsRequest, Model, classifier_service_server::ClassifierService};
use support::{Script, cpu_variant, manifest, registry, write};
use tonic::Request;

fn config() -> ClassifierConfig {
    ClassifierConfig { executors: 1, max_batch: 1, ..ClassifierConfig::default() }
}

/// What a classifier says of this one model.
async fn listed(manifest: &Manifest, mut config: ClassifierConfig, script: &Arc<Script>) -> Model {
    let folder = tempfile::tempdir().unwrap();
    config.models = vec![write(manifest, &folder)];
    let registry = Arc::new(registry(&config, script).await.unwrap());
    let service = Service::new(&config, Arc::clone(&registry), Lifecycle::default());
    let list = service.list_models(Request::new(ListModelsRequest {})).await.unwrap().into_inner();
    list.models.into_iter().next().unwrap()
}

#[tokio::test]
async fn a_model_whose_input_fits_no_message_is_refused_with_both_settings() {
    let mut large = manifest();
    (large.input.width, large.input.height) = (100, 100);
    let folder = tempfile::tempdir().unwrap();
    let models = vec![write(&large, &folder)];
    // The pixels alone would fit.
    let config = ClassifierConfig { models, max_message: ByteSize(30_500), ..config() };
    let script = Arc::new(Script::default());
    let error = registry(&config, &script).await.err().unwrap().to_string();
    for part in
        ["fake@1", "30000 bytes", "`classifier.max_message` (30500B)", "31024B", "`classifier.models`"]
    {
        assert!(error.contains(part), "{part} in {error}");
    }
    assert_eq!(script.loads.load(Ordering::SeqCst), 0, "nothing was loaded for it");
    let config = ClassifierConfig { max_message: ByteSize(31_024), ..config };
    assert!(registry(&config, &Arc::new(Script::default())).await.is_ok());
}

#[tokio::test]
async fn executors_end_when_one_after_them_cannot_start() {
    let folder = tempfile::tempdir().unwrap();
    let models = vec![write(&manifest(), &folder)];
    let config = ClassifierConfig { models, executors: 3, ..config() };
    let script = Arc::new(Script::default());
    script.fails_to_load.store(3, Ordering::SeqCst);
    let error = registry(&config, &script).await.err().unwrap().to_string();
    assert_eq!(error, "model fake@1: no memory for another copy");
    assert_eq!(script.loads.load(Ordering::SeqCst), 3);
    assert_eq!(script.loaded.load(Ordering::SeqCst), 0, "each has given its copy back");
}

#[tokio::test]
async fn a_batch_size_that_fails_at_start_is_not_used() {
    let measured = ClassifierConfig { max_batch: 0, executors: 2, ..config() };
    let script = Arc::new(Script::default());
    script.largest.store(4, Ordering::SeqCst);
    let model = listed(&manifest(), measured, &script).await;
    assert!((1..=4).contains(&model.max_batch), "{}", model.max_batch);
}

#[tokio::test]
async fn the_digest_is_of_the_manifest_and_of_the_archive_that_runs() {
    let script = Arc::new(Script::default());
    let digest = async |manifest: &Manifest| listed(manifest, config(), &script).await.digest;
    let portable = digest(&manifest()).await;
    assert!(portable.starts_with("sha256:") && portable.len() == 7 + 64, "{portable}");
    assert_eq!(digest(&manifest()).await, portable, "the same anywhere");

    // The same file, read in another way: other scores.
    let mut scaled = manifest();
    scaled.input.scale = 0.5;
    assert_ne!(digest(&scaled).await, portable);

    // The processor's own file, which is the one that runs here; the manifest's text names both.
    let with_variant = Manifest { variants: vec![cpu_variant()], ..manifest() };
    assert_ne!(digest(&with_variant).await, portable);
    let folder = tempfile::tempdir().unwrap();
    let folder = write(&with_variant, &folder);
    let of = |device| with_variant.served_digest(&folder, device).unwrap();
    use sightline_model::manifest::Device::{Cpu, Cuda};
    assert_eq!(digest(&with_variant).await, of(Cpu).to_string());
    assert_ne!(of(Cpu), of(Cuda));
}
