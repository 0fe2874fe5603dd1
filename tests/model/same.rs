//! P7: the same image gets the same scores, alone or among others, over any path.

use std::collections::HashMap;

use sightline_model::manifest::Manifest;
use sightline_proto::{
    ingest::{
        ClassifyBatchRequest, ClassifyStreamRequest, Frame, Hello, StreamFrame,
        classify_batch_response::Result as BatchResult, classify_stream_request::Message as Say,
        classify_stream_response::Message as Answer,
    },
    verdict::{Verdict, VerdictSource},
};
use sightline_telemetry::metrics::recorder;
use sightline_testkit::{MeshSandbox, frames, setup};

use crate::support::{Scores, classify, difference, frame, mesh, samples, scores};

/// How many others go with it.
const OTHERS: usize = 15;

/// Images that all differ.
fn others() -> Vec<Frame> {
    (0..OTHERS as u64).map(|seed| frame(frames::jpeg(seed, 224), "")).collect()
}

/// The image at this place among the others.
fn among(others: &[Frame], image: &[u8], place: usize) -> Vec<Frame> {
    let mut frames = others.to_vec();
    frames.insert(place, frame(image.to_vec(), ""));
    frames
}

async fn in_a_batch(mesh: &MeshSandbox, frames: Vec<Frame>, place: usize) -> Verdict {
    let mut answers =
        mesh.ingest().await.classify_batch(ClassifyBatchRequest { frames }).await.unwrap().into_inner();
    let mut verdicts = HashMap::new();
    while let Some(answer) = answers.message().await.unwrap() {
        let Some(BatchResult::Verdict(verdict)) = answer.result else { panic!("{answer:?}") };
        verdicts.insert(answer.index as usize, verdict);
    }
    assert_eq!(verdicts.len(), OTHERS + 1);
    verdicts.remove(&place).unwrap()
}

async fn in_a_stream(mesh: &MeshSandbox, frames: Vec<Frame>, place: usize) -> Verdict {
    let hello = Say::Hello(Hello::default());
    let frames = frames
        .into_iter()
        .zip(0..)
        .map(|(frame, id)| Say::Frame(StreamFrame { id, frame: Some(frame), ..StreamFrame::default() }));
    let said: Vec<_> = std::iter::once(hello)
        .chain(frames)
        .map(|message| ClassifyStreamRequest { message: Some(message) })
        .collect();
    let mut answers =
        mesh.ingest().await.classify_stream(tokio_stream::iter(said)).await.unwrap().into_inner();
    let mut verdicts = HashMap::new();
    while let Some(answer) = answers.message().await.unwrap() {
        match answer.message.unwrap() {
            Answer::Welcome(_) => {}
            Answer::Verdict(answer) => drop(verdicts.insert(answer.id as usize, answer.verdict.unwrap())),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(verdicts.len(), OTHERS + 1);
    verdicts.remove(&place).unwrap()
}

/// A value of `/metrics` for a model.
fn metric(name: &str, model: &str) -> f64 {
    let page = recorder().render();
    let start = format!("{name}{{model=\"{model}\"}} ");
    page.lines().find_map(|line| line.strip_prefix(&start)).map_or(0.0, |value| value.parse().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_image_gets_the_same_scores_alone_and_among_others_over_every_path() {
    let (Some(model), Some(photos)) = (setup::model(), samples()) else { return };
    let manifest = Manifest::load(&model).unwrap();
    let mesh = mesh(&[model]).await;
    let others = others();
    for (photo, place) in [("astronaut.png", 0), ("astronaut.png", OTHERS), ("rocket.jpg", OTHERS / 2)] {
        let image = std::fs::read(photos.join(photo)).unwrap();
        let alone: Scores = scores(&classify(&mesh, image.clone(), "").await.unwrap());
        let batch = in_a_batch(&mesh, among(&others, &image, place), place).await;
        let stream = in_a_stream(&mesh, among(&others, &image, place), place).await;
        let again = classify(&mesh, image, "").await.unwrap();
        for (path, verdict) in [("batch", batch), ("stream", stream), ("unary", again)] {
            assert_eq!(verdict.source(), VerdictSource::Model, "{path}: a cache proves nothing");
            let difference = difference(&scores(&verdict), &alone);
            assert!(difference <= manifest.tolerance, "{photo} at {place} by {path} is off by {difference}");
        }
    }
    // The executor really ran several at once.
    let name = format!("{}@{}", manifest.name, manifest.version);
    let [frames, batches] =
        ["ml_batch_size_sum", "ml_batch_size_count"].map(|metric_name| metric(metric_name, &name));
    assert!(batches > 0.0 && frames > batches, "{frames} frames ran in {batches} batches");
    mesh.stop().await;
}
