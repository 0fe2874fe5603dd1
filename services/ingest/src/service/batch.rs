//! One `ClassifyBatch`: some frames at a time, each answered as soon as it is ready.

use std::sync::Arc;

use sightline_mesh::{Deadline, RpcError};
use sightline_proto::ingest::{
    ClassifyBatchResponse, Frame as Wire, classify_batch_response::Result as Outcome,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tonic::Status;

use super::count;
use crate::{
    error::IngestError,
    frame::{Caller, Frame},
    pipeline::{Held, Pipeline},
};

/// The frames of one call, and who waits for them.
#[derive(Clone)]
pub(super) struct Batch {
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) caller: Caller,
    pub(super) deadline: Deadline,
    /// The images of all frames: they lie in one message.
    pub(super) held: Held,
    pub(super) answers: mpsc::Sender<Result<ClassifyBatchResponse, Status>>,
}

impl Batch {
    /// Answers every frame. A client that does not read holds back the answers, which are small, but no image beyond
    /// the deadline.
    pub(super) async fn run(self, frames: Vec<Wire>) {
        let places = Arc::new(Semaphore::new(self.pipeline.config().batch_concurrency));
        let mut waiting = frames.into_iter().enumerate();
        loop {
            let place = tokio::select! {
                place = Arc::clone(&places).acquire_owned() => place.expect("it is never closed"),
                () = self.answers.closed() => return,
                () = tokio::time::sleep_until(self.deadline.instant()) => break,
            };
            let Some((index, frame)) = waiting.next() else { return };
            tokio::spawn(self.clone().one(index, frame, place));
        }
        let late: Vec<usize> = waiting.map(|(index, _image_dropped)| index).collect();
        let Self { held, answers, .. } = self;
        drop(held);
        for index in late {
            let error = IngestError::from(RpcError::deadline("waiting in its batch"));
            count(&error);
            if answers.send(Ok(answer(index, Err(error)))).await.is_err() {
                return;
            }
        }
    }

    /// One frame. Its place is given back when its answer is in the channel.
    async fn one(self, index: usize, wire: Wire, place: OwnedSemaphorePermit) {
        let Self { pipeline, caller, deadline, held, answers } = self;
        let work = async {
            let frame = Frame::check(Some(wire), None, &caller, pipeline.config()).inspect_err(count)?;
            pipeline.classify(frame, Some(held), &caller, deadline).await
        };
        let result = tokio::select! {
            result = work => result,
            () = answers.closed() => return,
        };
        answers.send(Ok(answer(index, result))).await.ok();
        drop(place);
    }
}

fn answer(
    index: usize,
    result: Result<sightline_proto::verdict::Verdict, IngestError>,
) -> ClassifyBatchResponse {
    let result = match result {
        Ok(verdict) => Outcome::Verdict(verdict),
        Err(error) => Outcome::Error(RpcError::from(error).into()),
    };
    ClassifyBatchResponse { index: index as u32, result: Some(result) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sightline_mesh::client::{CallOptions, Cluster, ClusterOptions, Fixed, PoolOptions};

    use super::*;
    use crate::{IngestConfig, PolicyConfig, pipeline::Upstreams};

    const FRAMES: usize = 10;
    const BYTES: usize = 1_000;

    /// Nobody answers it: every frame fails at once.
    fn pipeline() -> Arc<Pipeline> {
        let nobody = |service| {
            let fixed = Fixed::from_uris(service, &["127.0.0.1:9".into()]).unwrap();
            Cluster::start(ClusterOptions::new(service, fixed))
        };
        let upstreams = Upstreams {
            classifier: nobody("classifier"),
            ratelimiter: nobody("ratelimiter"),
            stats: nobody("stats"),
            calls: CallOptions::default(),
            pools: PoolOptions::default(),
            shared: None,
            spool: None,
        };
        let config = IngestConfig {
            batch_concurrency: 1,
            max_bytes_in_flight: sightline_config::ByteSize((FRAMES * BYTES) as u64),
            ..IngestConfig::default()
        };
        Pipeline::start(&config, &PolicyConfig::default(), upstreams)
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_does_not_read_pins_no_image_beyond_its_deadline_and_misses_no_answer() {
        let pipeline = pipeline();
        let image = [b"\xff\xd8\xff".to_vec(), vec![0; BYTES - 3]].concat();
        let frame = Wire { user_id: "ada".into(), image: image.into(), ..Wire::default() };
        let held = pipeline.hold(FRAMES * BYTES).unwrap();
        assert!(pipeline.hold(1).is_err());
        let (answers, mut unread) = mpsc::channel(1);
        let deadline = Deadline::after(Duration::from_secs(2));
        let batch =
            Batch { pipeline: Arc::clone(&pipeline), caller: Caller::default(), deadline, held, answers };
        tokio::spawn(batch.run(vec![frame; FRAMES]));
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(pipeline.hold(1).is_err(), "frames wait for a place");
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(pipeline.hold(FRAMES * BYTES).is_ok(), "the deadline has passed");
        let mut seen = Vec::new();
        while let Some(answer) = unread.recv().await {
            let answer = answer.unwrap();
            assert!(matches!(answer.result, Some(Outcome::Error(_))));
            seen.push(answer.index);
        }
        seen.sort_unstable();
        assert!(seen.into_iter().eq(0..FRAMES as u32));
    }
}
