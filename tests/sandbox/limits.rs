//! A user over its rate.

use std::time::Duration;

use sightline_proto::ingest::{ClassifyRequest, Frame};
use sightline_testkit::{MeshSandbox, frames};
use tonic::Code;
use tonic_types::StatusExt;

use crate::errors::seen;

#[tokio::test(flavor = "multi_thread")]
async fn a_user_over_its_rate_is_told_when_to_come_again() {
    let mesh = MeshSandbox::start_with(|config| config.ratelimiter.rules = "production".into()).await;
    mesh.classify(frames::jpeg(1, 64)).await.unwrap();
    let status = mesh.classify(frames::jpeg(2, 64)).await.unwrap_err();
    assert_eq!(
        seen(&status),
        (Code::ResourceExhausted, "RATE_LIMITED".into(), "over the rate limit \"user-interval\"".into())
    );
    let retry = status.get_details_retry_info().unwrap().retry_delay.unwrap();
    assert!(retry > Duration::from_secs(4) && retry <= Duration::from_secs(5), "{retry:?}");

    let other = Frame { user_id: "bob".into(), image: frames::jpeg(3, 64).into(), ..Frame::default() };
    assert!(mesh.ingest().await.classify(ClassifyRequest { frame: Some(other) }).await.is_ok());
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_frame_costs_nothing_of_the_rate() {
    let mesh = MeshSandbox::start_with(|config| config.ratelimiter.rules = "production".into()).await;
    for _ in 0..5 {
        let status = mesh.classify(b"no image".to_vec()).await.unwrap_err();
        assert_eq!(seen(&status).1, "IMAGE_UNRECOGNISED");
    }
    assert!(mesh.classify(frames::jpeg(1, 64)).await.is_ok());
    mesh.stop().await;
}
