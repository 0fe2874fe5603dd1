//! Clients of the edge: single calls and long streams, over TLS.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use sightline_mesh::{
    RpcError,
    client::{Address, Transport, TransportError, TransportOptions},
    identity::{ClientTls, Connector},
};
use sightline_proto::ingest::{
    ClassifyRequest, ClassifyStreamRequest, Frame, Hello, StreamFrame,
    classify_stream_request::Message as Say, classify_stream_response::Message as Answer,
    ingest_service_client::IngestServiceClient,
};
use sightline_testkit::frames;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// A machine that builds beside the tests is slow.
const PATIENCE: Duration = Duration::from_secs(10);

/// Somebody who trusts these authorities.
#[derive(Clone)]
pub struct Client {
    pub address: String,
    pub ca: PathBuf,
}

/// What a load has seen.
#[derive(Default)]
pub struct Seen {
    pub stop: AtomicBool,
    /// Answers, each a verdict.
    pub verdicts: AtomicU64,
    /// Connections made.
    pub connections: AtomicU64,
    /// Streams that ended because they were asked to.
    pub drained: AtomicU64,
}

impl Seen {
    pub fn verdicts(&self) -> u64 {
        self.verdicts.load(Ordering::SeqCst)
    }

    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::SeqCst)
    }

    fn one(&self, what: &AtomicU64) {
        what.fetch_add(1, Ordering::SeqCst);
    }
}

fn explain(status: &Status) -> String {
    let error = RpcError::from_status(status);
    format!("{:?} {}: {}", error.code, error.reason, error.message)
}

impl Client {
    pub fn new(address: &str, ca: &Path) -> Self {
        Self { address: address.into(), ca: ca.into() }
    }

    pub async fn connect(&self) -> Result<Transport, String> {
        let tls = ClientTls { ca: Some(self.ca.clone()), ..ClientTls::default() };
        let connector = Connector::client(&tls, b"h2", PATIENCE)?;
        let options = TransportOptions { connect_timeout: PATIENCE, ..TransportOptions::default() };
        let address = Address::new(&self.address).unwrap();
        Transport::connect(&connector, &address, &options).await.map_err(|status| explain(&status))
    }

    /// Classifies a picture of its own over a connection.
    pub async fn classify(&self, transport: &Transport, number: u64) -> Result<(), Status> {
        let frame = Frame { user_id: "ada".into(), ..picture(number) };
        let mut request = tonic::Request::new(ClassifyRequest { frame: Some(frame) });
        request.set_timeout(PATIENCE);
        IngestServiceClient::new(transport.clone()).classify(request).await.map(drop)
    }

    /// Calls until told to stop, each call over a new connection.
    pub async fn call_anew(self, seen: Arc<Seen>) -> Result<(), String> {
        while seen.goes_on() {
            let transport = self.connect().await?;
            seen.one(&seen.connections);
            self.classify(&transport, next()).await.map_err(|status| explain(&status))?;
            seen.one(&seen.verdicts);
        }
        Ok(())
    }

    /// Calls until told to stop, over one connection for as long as the server keeps it. A call that the server has not
    /// looked at is sent again, as gRPC's clients do.
    pub async fn call(self, seen: Arc<Seen>) -> Result<(), String> {
        let mut transport = self.connect().await?;
        while seen.goes_on() {
            if !transport.is_open() {
                transport = self.connect().await?;
                seen.one(&seen.connections);
            }
            match self.classify(&transport, next()).await {
                Ok(()) => seen.one(&seen.verdicts),
                Err(status) if TransportError::of(&status).is_some_and(TransportError::is_unsent) => {}
                Err(status) => return Err(explain(&status)),
            }
        }
        Ok(())
    }

    /// Sends frames on a stream until told to stop, one after another; a stream that drains is followed by another.
    pub async fn stream(self, seen: Arc<Seen>) -> Result<(), String> {
        while seen.goes_on() {
            let transport = self.connect().await?;
            seen.one(&seen.connections);
            if self.one_stream(&transport, &seen).await? {
                seen.one(&seen.drained);
            }
        }
        Ok(())
    }

    /// Whether it was drained; also false for a connection that was asked to end before it had a stream.
    async fn one_stream(&self, transport: &Transport, seen: &Seen) -> Result<bool, String> {
        let (say, said) = mpsc::channel(4);
        let say = async |message| {
            say.send(ClassifyStreamRequest { message: Some(message) }).await.map_err(|_| "the stream is gone")
        };
        say(Say::Hello(Hello { user_id: "ada".into(), ..Hello::default() })).await?;
        let mut client = IngestServiceClient::new(transport.clone());
        let mut answers = match client.classify_stream(ReceiverStream::new(said)).await {
            Ok(answers) => answers.into_inner(),
            Err(status) if TransportError::of(&status).is_some_and(TransportError::is_unsent) => {
                return Ok(false);
            }
            Err(status) => return Err(format!("no stream: {}", explain(&status))),
        };
        let mut drained = false;
        while seen.goes_on() && !drained {
            let id = next();
            let frame = StreamFrame { id, frame: Some(picture(id)), ..StreamFrame::default() };
            say(Say::Frame(frame)).await?;
            loop {
                let answer = answers.message().await;
                let answer = answer.map_err(|status| format!("frame {id}: {}", explain(&status)))?;
                match answer.and_then(|answer| answer.message) {
                    Some(Answer::Verdict(verdict)) if verdict.id == id => break seen.one(&seen.verdicts),
                    Some(Answer::Drain(_)) => drained = true,
                    // It crossed the notice: the stream's protocol has it sent again on the next one.
                    Some(Answer::Error(error)) if drained && error.id == id => break,
                    Some(Answer::Welcome(_)) => {}
                    other => return Err(format!("frame {id} was answered {other:?}")),
                }
            }
        }
        Ok(drained)
    }
}

/// A number that no other picture has.
fn next() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

fn picture(number: u64) -> Frame {
    Frame { image: frames::png(number, 32).into(), ..Frame::default() }
}
