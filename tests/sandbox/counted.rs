//! What ingest takes the statistics count (P2): the values at the very edge of what is allowed.

use std::time::{Duration, SystemTime};

use sightline_proto::ingest::{ClassifyRequest, Frame};
use sightline_testkit::{MeshSandbox, eventually, frames, models::Small};
use tonic::Code;

use crate::errors::seen;

/// Enough for the way from here to the check of the statistics.
const SLACK: Duration = Duration::from_secs(60);

fn captured(at: SystemTime) -> Frame {
    Frame { user_id: "ada".into(), captured_at: Some(at.into()), ..Frame::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn frames_at_the_edge_of_what_is_taken_are_counted() {
    // Together 129 characters: longer than any other name may be.
    const NAME: &str = "nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn";
    const VERSION: &str = "1111111111111111111111111111111111111111111111111111111111111111";
    let model = format!("{NAME}@{VERSION}");
    let mesh = MeshSandbox::start_with(|config| {
        let folder = config.node.data_dir.clone();
        std::fs::create_dir_all(&folder).unwrap();
        config.classifier.models =
            vec![Small { name: NAME, version: VERSION, ..Small::default() }.write(&folder)];
    })
    .await;
    let now = SystemTime::now();
    let longest = "ü".repeat(128);
    let edge = [
        captured(now + sightline_ingest::frame::MAX_AHEAD - SLACK),
        captured(now - sightline_ingest::MAX_AGE + SLACK),
        Frame {
            user_id: longest.clone(),
            device_id: longest.clone(),
            application: longest,
            ..Frame::default()
        },
        Frame { frame_id: uuid::Uuid::max().to_string(), model: model.clone(), ..captured(now) },
    ];
    let beyond = [
        (captured(now + sightline_ingest::frame::MAX_AHEAD + SLACK), "CAPTURED_AT_INVALID"),
        (captured(now - sightline_ingest::MAX_AGE - SLACK), "CAPTURED_AT_INVALID"),
        (Frame { user_id: "ü".repeat(129), ..Frame::default() }, "FIELD_TOO_LONG"),
        (Frame { frame_id: uuid::Uuid::nil().to_string(), ..captured(now) }, "FRAME_ID_INVALID"),
    ];
    let mut client = mesh.ingest().await;
    let taken = edge.len() as u64;
    for (seed, frame) in edge.into_iter().enumerate() {
        let frame = Frame { image: frames::jpeg(seed as u64, 64).into(), ..frame };
        let answer = client.classify(ClassifyRequest { frame: Some(frame) }).await.unwrap().into_inner();
        assert_eq!(answer.verdict.unwrap().model, model);
    }
    for (frame, expected) in beyond {
        let frame = Frame { image: frames::jpeg(9, 64).into(), ..frame };
        let status = client.classify(ClassifyRequest { frame: Some(frame) }).await.unwrap_err();
        let (code, reason, _) = seen(&status);
        assert_eq!((code, reason.as_str()), (Code::InvalidArgument, expected));
    }
    eventually!(mesh.counted().await == taken);
    mesh.stop().await;
}
