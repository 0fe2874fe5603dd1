//! `ClassifyStream`: ten thousand frames, their ids, their anchors, their count, and the memory they take.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use sightline_proto::{
    ingest::{
        ClassifyStreamRequest, Frame, Heartbeat, Hello, StreamFrame, classify_stream_request::Message as Say,
        classify_stream_response::Message as Hear, ingest_service_client::IngestServiceClient,
    },
    stats::{QueryRequest, stats_service_client::StatsServiceClient},
    verdict::{Verdict, VerdictSource},
};
use sightline_testkit::{MeshSandbox, Process, eventually, frames};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Streaming, transport::Channel};

pub(super) fn say(message: Say) -> ClassifyStreamRequest {
    ClassifyStreamRequest { message: Some(message) }
}

pub(super) fn hello(user: &str) -> ClassifyStreamRequest {
    say(Say::Hello(Hello { user_id: user.into(), ..Hello::default() }))
}

pub(super) fn frame(id: u64, image: Vec<u8>) -> ClassifyStreamRequest {
    let frame = Frame { image: image.into(), ..Frame::default() };
    say(Say::Frame(StreamFrame { id, frame: Some(frame), ..StreamFrame::default() }))
}

pub(super) struct Talk {
    pub(super) say: mpsc::Sender<ClassifyStreamRequest>,
    pub(super) hear: Streaming<sightline_proto::ingest::ClassifyStreamResponse>,
}

/// Opens a stream, says hello and hears the welcome.
pub(super) async fn open(mut client: IngestServiceClient<Channel>, user: &str) -> (Talk, u32) {
    let (say, receiver) = mpsc::channel(1);
    let (opened, ()) = tokio::join!(client.classify_stream(ReceiverStream::new(receiver)), async {
        say.send(hello(user)).await.unwrap();
    });
    let mut hear = opened.unwrap().into_inner();
    match hear.message().await.unwrap().unwrap().message.unwrap() {
        Hear::Welcome(welcome) => (Talk { say, hear }, welcome.max_in_flight),
        other => panic!("not a welcome: {other:?}"),
    }
}

const FRAMES: u64 = 10_000;
/// Frames that RSS may grow by after the first thousand: caches fill up to their bounds, counters grow.
const MAX_GROWTH: u64 = 48 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_mixed_frames_half_of_them_repeats() {
    let folder = tempfile::tempdir().unwrap();
    let Some(process) = Process::dev(&folder, &[]) else { return };
    let client = IngestServiceClient::connect(process.uri("ingest")).await.unwrap();
    let (talk, max_in_flight) = open(client, "ada").await;
    assert!(max_in_flight > 1);
    let Talk { say, mut hear } = talk;

    // Frame 2n+1 is a repeat of frame 2n, sent a little later.
    let sender = tokio::spawn(async move {
        for pair in 0..FRAMES / 2 {
            let image = frames::mixed(pair, 40);
            say.send(frame(2 * pair, image.clone())).await.unwrap();
            say.send(frame(2 * pair + 1, image)).await.unwrap();
        }
    });
    let mut verdicts: HashMap<u64, Verdict> = HashMap::new();
    let mut after_first_thousand = 0;
    while let Some(heard) = hear.message().await.unwrap() {
        match heard.message.unwrap() {
            Hear::Verdict(answer) => {
                let again = verdicts.insert(answer.id, answer.verdict.unwrap());
                assert!(again.is_none(), "frame {} was answered twice", answer.id);
            }
            other => panic!("{other:?}"),
        }
        if verdicts.len() == 1_000 {
            after_first_thousand = process.resident();
        }
    }
    sender.await.unwrap();
    let at_the_end = process.resident();

    assert_eq!(verdicts.len() as u64, FRAMES);
    let mut anchors = HashSet::new();
    for pair in 0..FRAMES / 2 {
        let (a, b) = (&verdicts[&(2 * pair)], &verdicts[&(2 * pair + 1)]);
        // Whichever came first was classified; the other one names it.
        let (first, repeat) = if a.source() == VerdictSource::Model { (a, b) } else { (b, a) };
        assert_eq!(first.source(), VerdictSource::Model);
        assert_eq!(repeat.source(), VerdictSource::ExactDuplicate);
        assert_eq!(repeat.anchor_frame_id, first.frame_id);
        assert_eq!(repeat.scores, first.scores);
        anchors.insert(first.frame_id.clone());
    }
    assert_eq!(anchors.len() as u64, FRAMES / 2);
    let growth = at_the_end.saturating_sub(after_first_thousand);
    println!(
        "RSS {} MiB after 1,000 frames, {} MiB after {FRAMES}",
        after_first_thousand >> 20,
        at_the_end >> 20
    );
    assert!(growth < MAX_GROWTH, "memory grew by {} MiB over 9,000 frames", growth >> 20);

    let mut stats = StatsServiceClient::connect(process.uri("stats")).await.unwrap();
    eventually!(total(&mut stats).await == FRAMES);
    process.kill();
    let again = Process::dev(&folder, &[]).unwrap();
    let mut stats = StatsServiceClient::connect(again.uri("stats")).await.unwrap();
    assert_eq!(total(&mut stats).await, FRAMES, "after kill -9 and a restart");
    assert!(again.terminate(Duration::from_secs(20)).success());
}

async fn total(stats: &mut StatsServiceClient<Channel>) -> u64 {
    let page = stats.query(QueryRequest::default()).await.unwrap().into_inner();
    page.rows.iter().map(|row| row.frames).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_frame_does_not_end_the_stream_and_heartbeats_come_back() {
    let mesh = MeshSandbox::start().await;
    let (mut talk, _) = open(mesh.ingest().await, "ada").await;
    talk.say.send(frame(7, b"no image".to_vec())).await.unwrap();
    talk.say.send(say(Say::Heartbeat(Heartbeat { number: 42 }))).await.unwrap();
    talk.say.send(frame(8, frames::png(1, 40))).await.unwrap();
    let (mut errors, mut verdicts, mut beats) = (Vec::new(), Vec::new(), Vec::new());
    drop(talk.say);
    while let Some(heard) = talk.hear.message().await.unwrap() {
        match heard.message.unwrap() {
            Hear::Error(error) => errors.push((error.id, error.error.unwrap().reason)),
            Hear::Verdict(verdict) => verdicts.push(verdict.id),
            Hear::Heartbeat(beat) => beats.push(beat.number),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(errors, [(7, "IMAGE_UNRECOGNISED".to_owned())]);
    assert_eq!((verdicts, beats), (vec![8], vec![42]));
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_has_three_streams_and_a_closed_one_makes_room() {
    let mesh = MeshSandbox::start().await;
    let mut open_streams = Vec::new();
    for _ in 0..3 {
        open_streams.push(open(mesh.ingest().await, "ada").await);
    }
    let mut client = mesh.ingest().await;
    let mut refused = client.classify_stream(tokio_stream::iter([hello("ada")])).await.unwrap().into_inner();
    let status = refused.message().await.unwrap_err();
    assert_eq!(crate::errors::seen(&status).1, "TOO_MANY_STREAMS");
    let retry = tonic_types::StatusExt::get_details_retry_info(&status);
    assert!(retry.unwrap().retry_delay.is_some());
    open_streams.pop();
    eventually!({
        let mut stream =
            client.classify_stream(tokio_stream::iter([hello("ada")])).await.unwrap().into_inner();
        stream.message().await.is_ok()
    });
    drop(open_streams);
    mesh.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_silent_stream_is_ended() {
    let mesh = MeshSandbox::start_with(|config| {
        config.ingest.stream_idle_timeout = sightline_config::HumanDuration::from_millis(50);
    })
    .await;
    let (mut talk, _) = open(mesh.ingest().await, "ada").await;
    let status = talk.hear.message().await.unwrap_err();
    assert_eq!(crate::errors::seen(&status).1, "STREAM_IDLE");
    mesh.stop().await;
}
