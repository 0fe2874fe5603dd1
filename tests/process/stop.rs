//! SIGTERM: health says so, what is in flight is answered, what was counted is kept, and the exit code is 0.

use std::time::Duration;

use sightline_proto::ingest::{
    ClassifyStreamRequest, ClassifyStreamResponse, Frame, Heartbeat, Hello, StreamFrame,
    classify_stream_request::Message as Say, classify_stream_response::Message as Answer,
};
use sightline_testkit::{Process, frames};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};

use crate::support::{counted, ingest};

/// `ingest.drain_timeout` and the others', as they are by default.
const BOUND: Duration = Duration::from_secs(10);
/// Frames in flight when the signal comes.
const FRAMES: usize = 24;

async fn watch(process: &Process) -> Streaming<HealthCheckResponse> {
    let channel = Channel::from_shared(process.uri("ingest")).unwrap().connect().await.unwrap();
    let request = HealthCheckRequest { service: "sightline.ingest.v1.IngestService".into() };
    HealthClient::new(channel).watch(request).await.unwrap().into_inner()
}

async fn status(health: &mut Streaming<HealthCheckResponse>) -> ServingStatus {
    health.message().await.unwrap().unwrap().status()
}

async fn next(answers: &mut Streaming<ClassifyStreamResponse>) -> Option<Answer> {
    answers.message().await.unwrap().map(|answer| answer.message.unwrap())
}

/// The same photograph with a comment in it: other bytes, so no repeat.
fn stamped(jpeg: &[u8], comment: u8) -> Vec<u8> {
    let (start_of_image, rest) = jpeg.split_at(2);
    [start_of_image, &[0xff, 0xfe, 0, 3, comment], rest].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_asked_to_stop_answers_what_is_in_flight_and_exits_with_0() {
    let folder = tempfile::tempdir().unwrap();
    // One decoder and photographs this large: most still wait when the signal comes.
    let Some(process) = Process::dev(&folder, &["ingest.decoders=1"]) else { return };
    let mut health = watch(&process).await;
    assert_eq!(status(&mut health).await, ServingStatus::Serving);

    let photo = frames::jpeg(1, 2000);
    let (say, said) = mpsc::channel(FRAMES + 2);
    let say = |message| {
        say.try_send(ClassifyStreamRequest { message: Some(message) }).unwrap();
    };
    say(Say::Hello(Hello { user_id: "ada".into(), ..Hello::default() }));
    for id in 0..FRAMES as u64 {
        let frame = Frame { image: stamped(&photo, id as u8).into(), ..Frame::default() };
        say(Say::Frame(StreamFrame { id, frame: Some(frame), ..StreamFrame::default() }));
    }
    say(Say::Heartbeat(Heartbeat { number: 1 }));
    let mut answers =
        ingest(&process).await.classify_stream(ReceiverStream::new(said)).await.unwrap().into_inner();

    // The heartbeat comes back after every frame before it was taken.
    let mut verdicts = Vec::new();
    loop {
        match next(&mut answers).await.unwrap() {
            Answer::Welcome(_) => {}
            Answer::Verdict(verdict) => verdicts.push(verdict.id),
            Answer::Heartbeat(_) => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(verdicts.len() < FRAMES, "nothing was in flight any more: the test proves nothing");

    process.ask_to_stop();
    assert_eq!(status(&mut health).await, ServingStatus::NotServing);
    let mut drained = false;
    while let Some(answer) = next(&mut answers).await {
        match answer {
            Answer::Verdict(verdict) => verdicts.push(verdict.id),
            Answer::Drain(drain) => {
                assert_eq!(drain.grace.unwrap().seconds, 10);
                drained = true;
            }
            other => panic!("{other:?}"),
        }
    }
    verdicts.sort_unstable();
    assert!(drained, "the stream was not told");
    assert_eq!(verdicts, (0..FRAMES as u64).collect::<Vec<_>>());
    drop((answers, health));
    assert_eq!(process.ended(BOUND).code(), Some(0));

    // Every one of them was counted before the process ended.
    let process = Process::dev(&folder, &[]).unwrap();
    assert_eq!(counted(&process), FRAMES);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_hang_up_holds_nothing_back() {
    let folder = tempfile::tempdir().unwrap();
    let Some(process) = Process::dev(&folder, &[]) else { return };
    let mut health = watch(&process).await;
    assert_eq!(status(&mut health).await, ServingStatus::Serving);
    let (say, said) = mpsc::channel(1);
    let hello = Say::Hello(Hello { user_id: "ada".into(), ..Hello::default() });
    say.send(ClassifyStreamRequest { message: Some(hello) }).await.unwrap();
    let mut answers =
        ingest(&process).await.classify_stream(ReceiverStream::new(said)).await.unwrap().into_inner();
    assert!(matches!(next(&mut answers).await, Some(Answer::Welcome(_))));

    // Both the watch and the stream stay open on the client's side.
    let ended = process.terminate(BOUND / 2);
    assert_eq!(ended.code(), Some(0));
}
