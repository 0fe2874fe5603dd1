//! Bad input: code, reason and message of each, and the server serves on (P8).

use std::time::Duration;

use sightline_proto::ingest::{
    ClassifyBatchRequest, ClassifyRequest, ClassifyStreamRequest, Frame, Heartbeat,
    classify_stream_request::Message,
};
use sightline_testkit::{MeshSandbox, frames};
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// Code, reason and message; the domain is always ours.
pub(super) fn seen(status: &Status) -> (Code, String, String) {
    let details = status.get_error_details();
    let info = details.error_info().unwrap_or_else(|| panic!("no ErrorInfo in {status:?}"));
    assert_eq!(info.domain, "sightline");
    (status.code(), info.reason.clone(), status.message().to_owned())
}

fn good() -> Frame {
    Frame { user_id: "ada".into(), image: frames::jpeg(1, 64).into(), ..Frame::default() }
}

fn with_image(image: impl Into<bytes::Bytes>) -> Frame {
    Frame { image: image.into(), ..good() }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_bad_frame_is_refused_by_name_and_the_next_good_one_is_served() {
    let mesh = MeshSandbox::start().await;
    let truncated = {
        let jpeg = frames::jpeg(1, 256);
        jpeg[..jpeg.len() / 2].to_vec()
    };
    let cut_png = {
        let png = frames::png(1, 256);
        png[..png.len() / 2].to_vec()
    };
    let mut corrupt_png = frames::png(1, 256);
    let middle = corrupt_png.len() / 2;
    corrupt_png[middle..middle + 64].fill(0);
    let table: Vec<(Frame, Code, &str, &str)> = vec![
        (with_image(vec![]), Code::InvalidArgument, "IMAGE_EMPTY", "frame.image: is empty"),
        (
            with_image(b"hello, world".to_vec()),
            Code::InvalidArgument,
            "IMAGE_UNRECOGNISED",
            "frame.image: the bytes are no image; JPEG, PNG, WebP and GIF are taken",
        ),
        (
            with_image(truncated),
            Code::InvalidArgument,
            "IMAGE_TRUNCATED",
            "frame.image: the JPEG ends too early",
        ),
        (
            with_image(cut_png),
            Code::InvalidArgument,
            "IMAGE_TRUNCATED",
            "frame.image: the PNG ends too early",
        ),
        (
            with_image(corrupt_png),
            Code::InvalidArgument,
            "IMAGE_CORRUPT",
            "frame.image: the PNG cannot be decoded",
        ),
        (
            with_image(vec![0xff; 10_000_001]),
            Code::InvalidArgument,
            "IMAGE_TOO_LARGE",
            "frame.image: 10000001 bytes; at most 10000000 are taken (ingest.max_image)",
        ),
        (
            with_image(frames::png_header(65_000, 65_000)),
            Code::InvalidArgument,
            "IMAGE_DIMENSIONS",
            "frame.image: 65000 × 65000 pixels; at most 40000000 and 16384 on a side are taken",
        ),
        (
            with_image(b"BM\x36\0\0\0".to_vec()),
            Code::InvalidArgument,
            "IMAGE_UNSUPPORTED",
            "frame.image: BMP is not supported; JPEG, PNG, WebP and GIF are taken",
        ),
        (
            with_image(frames::gif_bomb(65_000, 20_000)),
            Code::InvalidArgument,
            "IMAGE_DIMENSIONS",
            "frame.image: 65000 × 65000 pixels; at most 40000000 and 16384 on a side are taken",
        ),
        (
            Frame { frame_id: "not-a-uuid".into(), ..good() },
            Code::InvalidArgument,
            "FRAME_ID_INVALID",
            "frame.frame_id: is not a UUID",
        ),
        (
            Frame { user_id: String::new(), ..good() },
            Code::InvalidArgument,
            "USER_MISSING",
            "frame.user_id: is empty, and neither the token nor the stream's hello names the user",
        ),
        (
            Frame { application: "x".repeat(129), ..good() },
            Code::InvalidArgument,
            "FIELD_TOO_LONG",
            "frame.application: longer than 128 characters",
        ),
        (
            Frame { model: "other@9".into(), ..good() },
            Code::NotFound,
            "MODEL_UNKNOWN",
            "frame.model: \"other@9\" is not served; served are: small@1",
        ),
    ];
    let mut client = mesh.ingest().await;
    for (frame, code, reason, message) in table {
        let status = client.classify(ClassifyRequest { frame: Some(frame) }).await.unwrap_err();
        assert_eq!(seen(&status), (code, reason.to_owned(), message.to_owned()));
        let served = client.classify(ClassifyRequest { frame: Some(good()) }).await;
        assert!(served.is_ok(), "after {reason}: {served:?}");
    }
    let status = client.classify(ClassifyRequest { frame: None }).await.unwrap_err();
    assert_eq!(seen(&status).1, "FRAME_MISSING");
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_long_animation_only_the_first_frame_is_decoded() {
    let mesh = MeshSandbox::start().await;
    // 50,000 frames on 16 million pixels: 2.4 TB for who decodes them all.
    let bomb = frames::gif_bomb(4_000, 50_000);
    let within = tokio::time::timeout(Duration::from_secs(5), mesh.classify(bomb)).await;
    assert!(within.unwrap().is_ok());
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_beyond_the_transport_s_limit_has_a_reason_too() {
    let mesh = MeshSandbox::start_with(|config| {
        config.ingest.max_image = sightline_config::ByteSize::mib(1);
        config.ingest.max_message = sightline_config::ByteSize::mib(1);
    })
    .await;
    let status = mesh.classify(vec![0xff; 4 << 20]).await.unwrap_err();
    let (code, reason, message) = seen(&status);
    assert_eq!((code, reason.as_str()), (Code::OutOfRange, "MESSAGE_TOO_LARGE"));
    assert!(message.contains("the limit is"), "{message}");
    let (mut talk, _) = crate::stream::open(mesh.ingest().await, "ada").await;
    talk.say.send(crate::stream::frame(1, vec![0xff; 4 << 20])).await.unwrap();
    let (code, reason, _) = seen(&talk.hear.message().await.unwrap_err());
    assert_eq!((code, reason.as_str()), (Code::OutOfRange, "MESSAGE_TOO_LARGE"));
    assert!(mesh.classify(frames::jpeg(1, 64)).await.is_ok());
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_deadline_is_named() {
    let mesh = MeshSandbox::start_with(|config| {
        config.ingest.max_timeout = sightline_config::HumanDuration::from_millis(0);
    })
    .await;
    let status = mesh.classify(frames::jpeg(1, 64)).await.unwrap_err();
    let expected = (
        Code::DeadlineExceeded,
        "DEADLINE_EXCEEDED".to_owned(),
        "the deadline passed during: arriving".into(),
    );
    assert_eq!(seen(&status), expected);
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_call_frees_its_place() {
    let mesh = MeshSandbox::start_with(|config| {
        config.ingest.max_bytes_in_flight = sightline_config::ByteSize::mib(1);
    })
    .await;
    let client = mesh.ingest().await;
    let image = frames::png(3, 500);
    for _ in 0..200 {
        let (mut client, image) = (client.clone(), image.clone());
        let call =
            tokio::spawn(
                async move { client.classify(ClassifyRequest { frame: Some(with_image(image)) }).await },
            );
        tokio::task::yield_now().await;
        call.abort();
    }
    // Every cancelled frame's bytes were given back, or this would be OVERLOADED for ever.
    sightline_testkit::eventually!(mesh.classify(frames::png(4, 300)).await.is_ok());
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_many_bytes_at_once_are_refused_with_a_time_to_retry() {
    let mesh = MeshSandbox::start_with(|config| {
        config.ingest.max_bytes_in_flight = sightline_config::ByteSize(1_000);
    })
    .await;
    let status = mesh.classify(frames::png(1, 200)).await.unwrap_err();
    assert_eq!(seen(&status).1, "OVERLOADED");
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.get_details_retry_info().unwrap().retry_delay.is_some());
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_is_charged_with_all_its_images_at_once() {
    let mesh = MeshSandbox::start_with(|config| {
        config.ingest.max_bytes_in_flight = sightline_config::ByteSize(10_000);
        config.ingest.batch_concurrency = 1;
    })
    .await;
    let frames: Vec<_> = (0..4).map(|seed| with_image(frames::png(seed, 60))).collect();
    let bytes: usize = frames.iter().map(|frame| frame.image.len()).sum();
    assert!(bytes > 10_000 && frames.iter().all(|frame| frame.image.len() < 5_000), "{bytes}");
    let mut client = mesh.ingest().await;
    let status = client.classify_batch(ClassifyBatchRequest { frames: frames.clone() }).await.unwrap_err();
    assert_eq!((status.code(), seen(&status).1), (Code::ResourceExhausted, "OVERLOADED".into()));
    let fits = ClassifyBatchRequest { frames: frames[..1].to_vec() };
    let mut answers = client.classify_batch(fits).await.unwrap().into_inner();
    assert!(answers.message().await.unwrap().is_some());
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_has_a_size() {
    let mesh = MeshSandbox::start().await;
    let mut client = mesh.ingest().await;
    for (count, reason) in [(0, "BATCH_EMPTY"), (65, "BATCH_TOO_LARGE")] {
        let frames = (0..count).map(|_| good()).collect();
        let status = client.classify_batch(ClassifyBatchRequest { frames }).await.unwrap_err();
        assert_eq!(seen(&status).1, reason);
    }
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_begins_with_hello() {
    let mesh = MeshSandbox::start().await;
    let beat = ClassifyStreamRequest { message: Some(Message::Heartbeat(Heartbeat { number: 1 })) };
    let empty = ClassifyStreamRequest { message: None };
    for (request, message) in
        [(beat, "message: the first one must be hello"), (empty, "message: the first one must be hello")]
    {
        let mut answers =
            mesh.ingest().await.classify_stream(tokio_stream::iter([request])).await.unwrap().into_inner();
        let status = answers.message().await.unwrap_err();
        assert_eq!(seen(&status), (Code::InvalidArgument, "STREAM_PROTOCOL".into(), message.into()));
    }
    mesh.stop().await;
}
