//! `Classify` and `ClassifyBatch`.

use std::collections::BTreeSet;

use sightline_proto::{
    ingest::{ClassifyBatchRequest, ClassifyRequest, Frame, classify_batch_response::Result as Item},
    verdict::{Level, VerdictSource},
};
use sightline_testkit::{MeshSandbox, eventually, frames};
use uuid::Uuid;

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_of_image_gets_a_verdict() {
    let mesh = MeshSandbox::start().await;
    for image in [frames::jpeg(1, 96), frames::png(2, 96), frames::webp(3, 96), frames::gif(4, 96)] {
        let verdict = mesh.classify(image).await.unwrap();
        assert_eq!(verdict.source(), VerdictSource::Model);
        assert_ne!(verdict.level(), Level::Unspecified);
        assert_eq!(verdict.model, "small@1");
        assert_eq!(verdict.policy, "default@1");
        assert!(Uuid::try_parse(&verdict.frame_id).is_ok());
        let sum: f32 = verdict.scores.iter().map(|score| score.value).sum();
        assert!((sum - 1.0).abs() < 1e-4, "{:?}", verdict.scores);
        let timings = verdict.timings.unwrap();
        assert!(timings.total.is_some() && timings.admit.is_some() && timings.inference.is_some());
        assert!(verdict.next_capture_after.is_some());
    }
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_names_its_anchor() {
    let mesh = MeshSandbox::start().await;
    let first = mesh.classify(frames::jpeg(1, 64)).await.unwrap();
    let again = mesh.classify(frames::jpeg(1, 64)).await.unwrap();
    assert_eq!(again.source(), VerdictSource::ExactDuplicate);
    assert_eq!(again.anchor_frame_id, first.frame_id);
    assert_eq!(again.scores, first.scores);
    assert_ne!(again.frame_id, first.frame_id);
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_twins_share_one_inference() {
    let mesh = MeshSandbox::start().await;
    let client = mesh.ingest().await;
    let calls: Vec<_> = (0..32)
        .map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move {
                let frame =
                    Frame { user_id: "ada".into(), image: frames::jpeg(5, 256).into(), ..Frame::default() };
                client.classify(ClassifyRequest { frame: Some(frame) }).await.unwrap().into_inner().verdict
            })
        })
        .collect();
    let mut by_model = 0;
    for call in calls {
        by_model += usize::from(call.await.unwrap().unwrap().source() == VerdictSource::Model);
    }
    assert_eq!(by_model, 1);
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_answers_every_item_and_a_bad_one_costs_only_itself() {
    let mesh = MeshSandbox::start().await;
    let mut batch: Vec<Frame> = (0..20)
        .map(|seed| Frame {
            user_id: "ada".into(),
            image: frames::mixed(seed, 48).into(),
            ..Frame::default()
        })
        .collect();
    batch[7].image = b"not an image".to_vec().into();
    let request = ClassifyBatchRequest { frames: batch };
    let mut answers = mesh.ingest().await.classify_batch(request).await.unwrap().into_inner();
    let mut seen = BTreeSet::new();
    while let Some(answer) = answers.message().await.unwrap() {
        assert!(seen.insert(answer.index), "index {} twice", answer.index);
        match answer.result.unwrap() {
            Item::Verdict(_) => assert_ne!(answer.index, 7),
            Item::Error(error) => {
                assert_eq!((answer.index, error.reason.as_str()), (7, "IMAGE_UNRECOGNISED"));
            }
        }
    }
    assert_eq!(seen, (0..20).collect());
    eventually!(mesh.counted().await == 19);
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frame_sent_twice_counts_once() {
    let mesh = MeshSandbox::start().await;
    let id = Uuid::now_v7().to_string();
    for _ in 0..3 {
        let frame = Frame {
            frame_id: id.clone(),
            user_id: "ada".into(),
            image: frames::png(1, 48).into(),
            ..Frame::default()
        };
        let answer = mesh.ingest().await.classify(ClassifyRequest { frame: Some(frame) }).await.unwrap();
        assert_eq!(answer.into_inner().verdict.unwrap().frame_id, id);
    }
    mesh.classify(frames::png(2, 48)).await.unwrap();
    eventually!(mesh.counted().await == 2);
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn safe_frames_slow_the_client_down() {
    let mesh = MeshSandbox::start_with(|config| {
        // Whatever the small model says counts as safe.
        config.policy.severe = 1.0;
        config.policy.explicit = 1.0;
        config.policy.suggestive = 1.0;
        config.policy.mild = 1.0;
    })
    .await;
    let mut waits = Vec::new();
    for seed in 0..13 {
        let verdict = mesh.classify(frames::png(seed, 32)).await.unwrap();
        waits.push(verdict.next_capture_after.unwrap().seconds);
    }
    assert_eq!(waits, [5, 5, 5, 5, 5, 10, 10, 10, 10, 10, 10, 15, 15]);
    mesh.stop().await;
}
