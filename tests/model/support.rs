//! Photographs, expected scores, and meshes that serve given models.

use std::{collections::BTreeMap, path::PathBuf};

use serde_json::Value;
use sightline_proto::{
    ingest::{ClassifyRequest, Frame},
    verdict::Verdict,
};
use sightline_testkit::{MeshSandbox, setup};

/// Scores by class.
pub type Scores = BTreeMap<String, f64>;

/// What nsfwjs itself gives for an image of `tests/vectors/nsfwjs`.
pub fn expected(image: &str) -> Scores {
    let vectors: Value = serde_json::from_str(include_str!("../vectors/nsfwjs/expected.json")).unwrap();
    serde_json::from_value(vectors["MobileNetV2"][image].clone()).unwrap()
}

/// The photographs that `cargo xtask test` fetched, or a visible skip.
pub fn samples() -> Option<PathBuf> {
    setup::path("SIGHTLINE_TEST_SAMPLES")
}

/// A mesh that serves these models and classifies every frame anew.
pub async fn mesh(models: &[PathBuf]) -> MeshSandbox {
    let models = models.to_vec();
    MeshSandbox::start_with(|config| {
        config.classifier.models = models;
        // Measuring which batch is best says nothing about scores.
        config.classifier.max_batch = 8;
        config.classifier.executors = 1;
        config.ingest.cache_ttl = sightline_config::HumanDuration::from_secs(0);
    })
    .await
}

/// One frame of Ada's for `model`; empty for the default one.
pub fn frame(image: Vec<u8>, model: &str) -> Frame {
    Frame { user_id: "ada".into(), image: image.into(), model: model.into(), ..Frame::default() }
}

/// The verdict of a unary call.
pub async fn classify(mesh: &MeshSandbox, image: Vec<u8>, model: &str) -> Result<Verdict, tonic::Status> {
    let request = ClassifyRequest { frame: Some(frame(image, model)) };
    mesh.ingest().await.classify(request).await.map(|answer| answer.into_inner().verdict.unwrap())
}

pub fn scores(verdict: &Verdict) -> Scores {
    verdict.scores.iter().map(|score| (score.class.clone(), f64::from(score.value))).collect()
}

/// The largest difference of one class.
pub fn difference(one: &Scores, other: &Scores) -> f64 {
    assert!(one.keys().eq(other.keys()), "{one:?} and {other:?} have different classes");
    one.iter().map(|(class, score)| (score - other[class]).abs()).fold(0.0, f64::max)
}

/// Fails unless the scores are finite, not negative and sum to one.
pub fn assert_probabilities(scores: &Scores, what: &str) {
    assert!(scores.values().all(|score| (0.0..=1.0).contains(score)), "{what}: {scores:?}");
    let sum: f64 = scores.values().sum();
    assert!((sum - 1.0).abs() < 1e-5, "{what}: {scores:?} sum to {sum}");
}
