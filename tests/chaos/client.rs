//! A client of `ClassifyStream` that keeps to the protocol: at `Drain` it sends nothing more, reads what it is owed, sends
//! what came back as not read to another replica, and never anything else twice.

use std::{
    collections::{HashSet, VecDeque},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use sightline_proto::ingest::{
    ClassifyStreamRequest, ClassifyStreamResponse, Frame, Hello, StreamFrame,
    classify_stream_request::Message as Say, classify_stream_response::Message as Answer,
    ingest_service_client::IngestServiceClient,
};
use tokio::{
    sync::{mpsc, watch},
    time::Interval,
};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Streaming, transport::Endpoint};
use uuid::Uuid;

use crate::{book::Book, support::APPLICATION};

/// Frames that a client leaves unanswered: fewer than ingest takes.
const IN_FLIGHT: usize = 32;
/// A replica that is away is not tried again sooner.
const PAUSE: Duration = Duration::from_millis(20);
/// What a server says of a frame that it did not read.
const DRAINING: &str = "DRAINING";

/// One client, and what it has to send.
pub struct Client {
    pub number: usize,
    pub replicas: Vec<SocketAddr>,
    pub image: Arc<Vec<u8>>,
    pub book: Arc<Book>,
    pub ticks: Interval,
    /// Turns true when no more frames are to be sent.
    pub stop: watch::Receiver<bool>,
    pub todo: VecDeque<u64>,
}

/// An open stream.
struct Stream {
    /// Until we or the server end it.
    say: Option<mpsc::Sender<ClassifyStreamRequest>>,
    answers: Streaming<ClassifyStreamResponse>,
    welcome: bool,
    drained: bool,
    owed: HashSet<u64>,
}

impl Client {
    /// Sends frames as they fall due, until it is told to stop and all are answered.
    pub async fn run(mut self) {
        let mut replica = self.number;
        while !self.is_done() {
            let address = self.replicas[replica % self.replicas.len()];
            match self.open(address).await {
                Some(stream) => self.talk(stream).await,
                None => tokio::time::sleep(PAUSE).await,
            }
            replica += 1;
        }
    }

    fn is_done(&self) -> bool {
        *self.stop.borrow() && self.todo.is_empty()
    }

    /// `None`: the replica is away.
    async fn open(&self, address: SocketAddr) -> Option<Stream> {
        let endpoint = Endpoint::from_shared(format!("http://{address}")).unwrap();
        let channel = endpoint.connect_timeout(Duration::from_secs(1)).connect().await.ok()?;
        let (say, said) = mpsc::channel(IN_FLIGHT + 2);
        let hello = Hello {
            user_id: format!("user-{}", self.number),
            application: APPLICATION.into(),
            ..Hello::default()
        };
        say.try_send(ClassifyStreamRequest { message: Some(Say::Hello(hello)) }).unwrap();
        let opened = IngestServiceClient::new(channel).classify_stream(ReceiverStream::new(said)).await;
        let answers = match opened {
            Ok(answers) => answers.into_inner(),
            Err(status) if status.code() == Code::Unavailable => return None,
            Err(status) => {
                self.book.failed(format!("opening a stream: {status}"));
                return None;
            }
        };
        Some(Stream { say: Some(say), answers, welcome: false, drained: false, owed: HashSet::new() })
    }

    async fn talk(&mut self, mut stream: Stream) {
        loop {
            self.send(&mut stream);
            if stream.owed.is_empty() && self.is_done() {
                return;
            }
            let stopped = *self.stop.borrow();
            tokio::select! {
                due = self.ticks.tick(), if !stopped => self.todo.push_back(self.book.born(due)),
                _ = self.stop.changed(), if !stopped => {}
                heard = stream.answers.message() => match heard {
                    Ok(Some(answer)) => self.hear(&mut stream, answer.message.unwrap()),
                    // Before the welcome nothing was sent.
                    Ok(None) | Err(_) if !stream.welcome => return,
                    Ok(None) if stream.drained && stream.owed.is_empty() => return,
                    over => return self.lose(&stream, &format!("{over:?}")),
                },
            }
        }
    }

    fn send(&mut self, stream: &mut Stream) {
        let Some(say) = stream.say.as_ref().filter(|_| stream.welcome) else { return };
        while stream.owed.len() < IN_FLIGHT
            && let Some(id) = self.todo.pop_front()
        {
            let frame = Frame {
                frame_id: Uuid::now_v7().to_string(),
                captured_at: Some(SystemTime::now().into()),
                image: stamped(&self.image, id).into(),
                ..Frame::default()
            };
            let frame = StreamFrame { id, frame: Some(frame), ..StreamFrame::default() };
            if say.try_send(ClassifyStreamRequest { message: Some(Say::Frame(frame)) }).is_err() {
                // It has ended, as the next answer will say.
                self.todo.push_front(id);
                return;
            }
            stream.owed.insert(id);
        }
    }

    fn hear(&mut self, stream: &mut Stream, answer: Answer) {
        match answer {
            Answer::Welcome(_) => stream.welcome = true,
            Answer::Verdict(verdict) => {
                self.book.answered(verdict.id);
                if !stream.owed.remove(&verdict.id) {
                    self.book.failed(format!("frame {} is answered and was not asked here", verdict.id));
                }
            }
            Answer::Error(error) => {
                stream.owed.remove(&error.id);
                let why = error.error.unwrap_or_default();
                if why.reason == DRAINING && stream.drained {
                    self.book.moved();
                    self.todo.push_front(error.id);
                } else {
                    self.book.failed(format!("frame {}: {} {}", error.id, why.reason, why.message));
                }
            }
            Answer::Heartbeat(_) => {}
            Answer::Drain(_) => {
                stream.drained = true;
                stream.say = None;
            }
        }
    }

    /// The stream ended otherwise than the protocol says.
    fn lose(&self, stream: &Stream, how: &str) {
        let (drained, owed) = (stream.drained, stream.owed.len());
        self.book.failed(format!("a stream (drained: {drained}) ended with {how}, {owed} frames unanswered"));
    }
}

/// The same picture with a comment in it: other bytes, so no repeat.
pub fn stamped(jpeg: &[u8], stamp: u64) -> Vec<u8> {
    let (start_of_image, rest) = jpeg.split_at(2);
    [start_of_image, &[0xff, 0xfe, 0, 10], &stamp.to_be_bytes(), rest].concat()
}
