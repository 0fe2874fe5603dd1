//! The `Infer` protocol over real sockets, in front of a model that does as it is told.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod support;

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use sightline_config::{ByteSize, HumanDuration};
use sightline_mesh::RpcError;
use sightline_model::manifest::Transport;
use sightline_proto::classifier::{InferResult, PixelFormat, Tensor, infer_response::Message};
use support::{FAILS, NOT_A_NUMBER, PATIENCE, VALUES, manifest, start, start_model, tensor};
use tonic::Code;

fn score(result: &InferResult) -> u8 {
    (result.scores[0] * 255.0).round() as u8
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_grants_its_credits_first_and_answers_what_it_read_after_a_half_close() {
    let running = start(|config| config.stream_credits = 7).await;
    let mut stream = running.open().await;
    assert_eq!(stream.credits, 7);
    running.script.hold();
    for id in 1..=7 {
        stream.tensor(tensor(id, id as u8 * 10)).await;
    }
    stream.close();
    running.script.begun(1).await;
    running.script.release();
    let mut answered = HashMap::new();
    for _ in 1..=7 {
        let (id, answer) = stream.answer().await;
        let answer = answer.unwrap();
        assert_eq!((answer.model.as_str(), answer.batch_size), ("fake@1", 1));
        answered.insert(id, score(&answer));
    }
    assert_eq!(answered, (1..=7).map(|id| (id, id as u8 * 10)).collect());
    assert_eq!(stream.next().await, None, "a clean end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_tensor_is_answered_and_not_run() {
    let running = start(|_| {}).await;
    let mut stream = running.open().await;
    running.script.hold();
    stream.tensor(tensor(1, 1)).await;
    running.script.begun(1).await;
    stream.tensor(tensor(2, 2)).await;
    stream.cancel(2).await;
    stream.cancel(99).await;
    stream.read_by_the_server().await;
    running.script.release();
    assert!(stream.answer().await.1.is_ok());
    assert_eq!(stream.refusal().await, (2, "CANCELLED".into()));
    assert_eq!(running.script.runs(), [[1]]);
}

/// P4: whether the client closed its side before or not.
#[tokio::test(flavor = "multi_thread")]
async fn the_tensors_of_a_client_that_is_gone_are_not_run() {
    for half_closed in [false, true] {
        let running = start(|_| {}).await;
        let (mut gone, mut stays) = (running.open().await, running.open().await);
        running.script.hold();
        gone.tensor(tensor(1, 1)).await;
        running.script.begun(1).await;
        for id in 2..=4 {
            gone.tensor(tensor(id, id as u8)).await;
        }
        gone.read_by_the_server().await;
        if half_closed {
            gone.close();
            // Both ends of the half-closed stream have seen that before the rest of it goes.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        drop(gone);
        // The same connection carries this after the end of the other stream.
        stays.tensor(tensor(5, 5)).await;
        stays.read_by_the_server().await;
        tokio::time::sleep(Duration::from_millis(200)).await;
        running.script.release();
        assert!(stays.answer().await.1.is_ok());
        assert_eq!(running.script.runs(), [[1], [5]], "half closed: {half_closed}");
    }
}

fn within(id: u64, seconds: i64, nanos: i32) -> Tensor {
    Tensor { timeout: Some(prost_types::Duration { seconds, nanos }), ..tensor(id, id as u8) }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tensor_whose_time_passed_in_the_queue_is_answered_and_not_run() {
    let running = start(|_| {}).await;
    let mut stream = running.open().await;
    running.script.hold();
    stream.tensor(tensor(1, 1)).await;
    running.script.begun(1).await;
    stream.tensor(within(2, 0, 50_000_000)).await;
    // A time that was over before it was sent.
    stream.tensor(within(3, -5, 0)).await;
    stream.read_by_the_server().await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    running.script.release();
    assert!(stream.answer().await.1.is_ok());
    for id in [2, 3] {
        assert_eq!(stream.refusal().await, (id, "DEADLINE_EXCEEDED".into()));
    }
    assert_eq!(running.script.runs(), [[1]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_tensor_waits_longer_than_the_setting_says() {
    let running = start(|config| config.max_timeout = HumanDuration::from_millis(200)).await;
    let mut stream = running.open().await;
    running.script.hold();
    stream.tensor(tensor(1, 1)).await;
    running.script.begun(1).await;
    stream.tensor(within(2, 3_600, 0)).await;
    stream.tensor(tensor(3, 3)).await;
    stream.read_by_the_server().await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    running.script.release();
    assert!(stream.answer().await.1.is_ok());
    for id in [2, 3] {
        assert_eq!(stream.refusal().await, (id, "DEADLINE_EXCEEDED".into()));
    }
    assert_eq!(running.script.runs(), [[1]]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drain_is_announced_and_what_crosses_the_notice_is_still_served() {
    let mut running = start(|_| {}).await;
    let mut stream = running.open().await;
    running.script.hold();
    stream.tensor(tensor(1, 1)).await;
    running.script.begun(1).await;
    running.lifecycle.drain();
    match stream.next().await {
        Some(Message::Drain(notice)) => assert!(notice.grace.is_some()),
        other => panic!("{other:?}"),
    }
    stream.tensor(tensor(2, 2)).await;
    stream.read_by_the_server().await;
    running.script.release();
    for id in [1, 2] {
        let (answered, answer) = stream.answer().await;
        assert_eq!((answered, answer.is_ok()), (id, true));
    }
    stream.close();
    assert_eq!(stream.next().await, None, "a clean end");
    drop(stream);
    let served = running.served.take().unwrap();
    tokio::time::timeout(PATIENCE, served).await.expect("the server ends").unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_ignores_its_credits_waits_and_loses_no_answer() {
    const SENT: u64 = 200;
    let running = start(|config| (config.stream_credits, config.max_batch) = (2, 256)).await;
    let (mut greedy, mut other) = (running.open().await, running.open().await);
    running.script.hold();
    for id in 1..=SENT {
        greedy.tensor(tensor(id, 9)).await;
    }
    running.script.begun(1).await;
    // Its place in the queue is bounded, so there is one for others.
    other.tensor(tensor(1, 8)).await;
    other.read_by_the_server().await;
    running.script.release();
    assert!(other.answer().await.1.is_ok());
    let mut answered = HashSet::new();
    for _ in 1..=SENT {
        let (id, answer) = greedy.answer().await;
        assert!(answered.insert(id), "{id} was answered twice");
        assert!(answer.is_ok(), "{answer:?}");
    }
    assert!(
        running.script.runs().iter().all(|run| run.len() <= 2 + 2 + 1),
        "no more than credits are queued"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_queue_says_when_to_come_back() {
    let running = start(|config| config.queue_capacity = 1).await;
    let mut stream = running.open().await;
    running.script.hold();
    stream.tensor(tensor(1, 1)).await;
    running.script.begun(1).await;
    stream.tensor(tensor(2, 2)).await;
    stream.tensor(tensor(3, 3)).await;
    let (id, answer) = stream.answer().await;
    let error = answer.unwrap_err();
    assert_eq!((id, error.code, error.reason.as_str()), (3, Code::ResourceExhausted, "QUEUE_FULL"));
    assert!(error.retry_after.is_some());
    running.script.release();
    for id in [1, 2] {
        assert_eq!(stream.answer().await.0, id);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_tensor_is_refused_by_field_and_the_stream_goes_on() {
    let running = start(|_| {}).await;
    let mut stream = running.open().await;
    let format = |format| Tensor { format, ..tensor(1, 1) };
    for (bad, reason, message) in [
        (
            format(PixelFormat::U16.into()),
            "PIXEL_FORMAT_MISMATCH",
            "tensor.format: PIXEL_FORMAT_U16 where fake@1 takes PIXEL_FORMAT_U8",
        ),
        (
            format(0),
            "PIXEL_FORMAT_UNKNOWN",
            "tensor.format: PIXEL_FORMAT_UNSPECIFIED where fake@1 takes PIXEL_FORMAT_U8",
        ),
        (
            format(77),
            "PIXEL_FORMAT_UNKNOWN",
            "tensor.format: 77, which is no pixel format, where fake@1 takes PIXEL_FORMAT_U8",
        ),
        (
            Tensor { pixels: vec![0; VALUES - 1].into(), ..tensor(1, 1) },
            "TENSOR_SIZE",
            "tensor.pixels: 11 bytes where fake@1 takes 12",
        ),
    ] {
        stream.tensor(bad).await;
        let error = stream.answer().await.1.unwrap_err();
        assert_eq!((error.code, error.reason.as_str()), (Code::InvalidArgument, reason));
        assert_eq!(error.message, message);
    }
    stream.tensor(Tensor { model: "other".into(), ..tensor(1, 1) }).await;
    let error = stream.answer().await.1.unwrap_err();
    assert_eq!((error.code, error.reason.as_str()), (Code::NotFound, "MODEL_UNKNOWN"));
    stream.tensor(tensor(1, 3)).await;
    assert_eq!(score(&stream.answer().await.1.unwrap()), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_id_is_free_again_once_its_tensor_is_answered() {
    let running = start(|_| {}).await;
    let mut stream = running.open().await;
    running.script.hold();
    stream.tensor(tensor(1, 1)).await;
    stream.tensor(tensor(1, 2)).await;
    assert_eq!(stream.refusal().await, (1, "TENSOR_ID_REUSED".into()));
    running.script.release();
    assert_eq!(score(&stream.answer().await.1.unwrap()), 1);
    stream.tensor(tensor(1, 3)).await;
    assert_eq!(score(&stream.answer().await.1.unwrap()), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_over_the_limit_ends_the_stream_with_an_error_after_the_answers_before_it() {
    let running = start(|config| config.max_message = ByteSize(4096)).await;
    let mut stream = running.open().await;
    running.script.hold();
    stream.tensor(tensor(1, 1)).await;
    running.script.begun(1).await;
    stream.tensor(Tensor { pixels: vec![0; 5000].into(), ..tensor(2, 2) }).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    running.script.release();
    let (id, answer) = stream.answer().await;
    assert_eq!((id, answer.is_ok()), (1, true));
    let error = RpcError::from_status(&stream.try_next().await.unwrap_err());
    assert_eq!((error.code, error.reason.as_str()), (Code::OutOfRange, "MESSAGE_TOO_LARGE"));
    assert!(error.message.contains("4096"), "{}", error.message);
}

/// P8: whatever one tensor does to the model, those that share its run are answered.
#[tokio::test(flavor = "multi_thread")]
async fn a_tensor_that_breaks_its_batch_costs_only_itself() {
    for (bad, runs) in [(NOT_A_NUMBER, 1), (FAILS, 5)] {
        let running = start(|config| config.max_batch = 8).await;
        let mut stream = running.open().await;
        running.script.hold();
        stream.tensor(tensor(1, 1)).await;
        running.script.begun(1).await;
        for (id, byte) in [(2, 2), (3, bad), (4, 4), (5, 5)] {
            stream.tensor(tensor(id, byte)).await;
        }
        stream.read_by_the_server().await;
        running.script.release();
        assert!(stream.answer().await.1.is_ok());
        for _ in 2..=5 {
            match stream.answer().await {
                (3, answer) => assert_eq!(answer.unwrap_err().reason, "MODEL_FAILED"),
                (id, answer) => assert_eq!(u64::from(score(&answer.unwrap())), id),
            }
        }
        assert_eq!(running.script.runs()[1], [2, bad, 4, 5]);
        assert_eq!(running.script.runs().len(), 1 + runs);
    }
}

/// Callers leave a replica whose model fails: nobody may bring that about by what is sent.
#[tokio::test(flavor = "multi_thread")]
async fn pixels_that_no_model_could_take_are_the_callers_own_fault() {
    let mut floats = manifest();
    floats.input.transport = Transport::F32;
    let running = start_model(&floats, |_| {}).await;
    let mut stream = running.open().await;
    let tensor = |id, value: f32| Tensor {
        format: PixelFormat::F32.into(),
        pixels: value.to_le_bytes().repeat(VALUES).into(),
        ..tensor(id, 0)
    };
    for (id, value) in [(1, f32::NAN), (2, f32::INFINITY)] {
        stream.tensor(tensor(id, value)).await;
        let error = stream.answer().await.1.unwrap_err();
        assert_eq!((error.code, error.reason.as_str()), (Code::InvalidArgument, "PIXEL_OUT_OF_RANGE"));
    }
    stream.tensor(tensor(3, NOT_A_NUMBER.into())).await;
    assert_eq!(stream.refusal().await, (3, "MODEL_FAILED".into()), "what it should have taken");
    // A little out of range, as resampling gives it.
    stream.tensor(tensor(4, 256.0)).await;
    assert!(stream.answer().await.1.is_ok());
}
