//! kill -9 of the whole mesh: what the statistics had acknowledged is there again, and counts once however often it is sent.

use sightline_proto::ingest::{ClassifyRequest, Frame};
use sightline_testkit::{Process, eventually, frames};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::support::{counted, frame, ingest, metric};

const FRAMES: usize = 300;
/// How many calls are open at once.
const CLIENTS: usize = 8;

/// A frame with an id of its own; every third image is a repeat.
fn numbered(index: usize) -> Frame {
    let image = frames::mixed(index as u64 * 2 / 3, 48);
    Frame { frame_id: Uuid::new_v4().to_string(), ..frame(image) }
}

/// Sends all of them, several at once; each must get its verdict.
async fn send(process: &Process, frames: &[Frame]) {
    let client = ingest(process).await;
    let mut calls = JoinSet::new();
    for part in frames.chunks(frames.len().div_ceil(CLIENTS)) {
        let (mut client, part) = (client.clone(), part.to_vec());
        calls.spawn(async move {
            for frame in part {
                client.classify(ClassifyRequest { frame: Some(frame) }).await.unwrap();
            }
        });
    }
    calls.join_all().await;
}

/// Events that the statistics of this process have acknowledged since it started.
fn acknowledged(process: &Process) -> usize {
    metric(process.address("metrics"), "ingest_recorded_events_total") as usize
}

#[tokio::test(flavor = "multi_thread")]
async fn counted_frames_survive_kill_9_and_count_once_when_sent_again() {
    let folder = tempfile::tempdir().unwrap();
    let frames: Vec<_> = (0..FRAMES).map(numbered).collect();
    let Some(process) = Process::dev(&folder, &[]) else { return };
    send(&process, &frames).await;
    eventually!(counted(&process) == FRAMES);
    process.kill();

    let process = Process::dev(&folder, &[]).unwrap();
    assert_eq!(counted(&process), FRAMES);

    send(&process, &frames).await;
    eventually!(acknowledged(&process) == FRAMES);
    assert_eq!(counted(&process), FRAMES);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_in_the_middle_loses_nothing_that_was_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let settings = ["ingest.record_batch=10", "ingest.record_linger=1ms"];
    let Some(process) = Process::dev(&folder, &settings) else { return };
    let client = ingest(&process).await;
    // Clients that send until the server is gone, and remember what they sent.
    let mut clients = JoinSet::new();
    for _ in 0..CLIENTS {
        let mut client = client.clone();
        clients.spawn(async move {
            let mut sent = Vec::new();
            loop {
                let next = numbered(sent.len());
                sent.push(next.clone());
                if client.classify(ClassifyRequest { frame: Some(next) }).await.is_err() {
                    return sent;
                }
            }
        });
    }
    eventually!(acknowledged(&process) >= FRAMES);
    let before = counted(&process);
    process.kill();
    let sent = clients.join_all().await.concat();

    let process = Process::dev(&folder, &settings).unwrap();
    let after = counted(&process);
    assert!((before..=sent.len()).contains(&after), "{before} were counted, {after} are after the kill");

    // Clients that send everything again, as they must where no verdict came, end at the exact number.
    send(&process, &sent).await;
    eventually!(acknowledged(&process) == sent.len());
    assert_eq!(counted(&process), sent.len());
}
