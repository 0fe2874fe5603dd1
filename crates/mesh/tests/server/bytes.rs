//! Large messages, slow messages, and what all of them may take together.

use std::{
    future::poll_fn,
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::{SendStream, client::ResponseFuture};
use sightline_config::{ByteSize, HumanDuration};
use sightline_mesh::{RpcError, reason, server::WebOptions};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt, wrappers::ReceiverStream};
use tonic::Code;

use crate::support::{
    MAX_MESSAGE, Running, Setup, framed, greeter::HelloRequest, h2, head, hello, hello_framed, said, soon,
    start,
};

const GIFT: usize = 10_000_000;
/// What the edge lets one stream send ahead of its reader.
const WINDOW: usize = 256 << 10;

/// A client that sends what it may of a message of [`GIFT`] bytes and then pauses.
struct Sender {
    answer: ResponseFuture,
    body: SendStream<Bytes>,
    sent: usize,
    bytes: Bytes,
}

impl Sender {
    async fn new(server: &Running) -> Self {
        let mut client = h2(server.address).await;
        let (answer, body) = client.send_request(head("Greeter/Hello", None), false).unwrap();
        let message = HelloRequest { name: "x".into(), gift: vec![7; GIFT].into() };
        let bytes = framed(&message, prost::Message::encoded_len(&message)).into();
        Self { answer, body, sent: 0, bytes }
    }

    /// Sends until `until` bytes are sent, or the server takes no more for a while.
    async fn send(&mut self, until: usize) {
        while self.sent < until {
            self.body.reserve_capacity((until - self.sent).min(64 << 10));
            let capacity = poll_fn(|context| self.body.poll_capacity(context));
            let Ok(Some(Ok(capacity))) = tokio::time::timeout(Duration::from_millis(300), capacity).await
            else {
                return;
            };
            let next = self.sent + capacity.min(until - self.sent);
            if self.body.send_data(self.bytes.slice(self.sent..next), next == self.bytes.len()).is_err() {
                return;
            }
            self.sent = next;
        }
    }
}

fn budget(setup: &mut Setup, mb: u64, wait_ms: u64) {
    setup.web = Some(WebOptions::default());
    setup.config.max_receive_bytes = ByteSize(mb * 1_000_000);
    setup.config.receive_wait = HumanDuration::from_millis(wait_ms);
}

#[tokio::test]
async fn all_that_is_half_received_is_bounded_over_all_connections() {
    let server = start(|setup| budget(setup, 25, 400)).await;
    let mut senders = Vec::new();
    for _ in 0..6 {
        senders.push(Sender::new(&server).await);
    }
    let began = Instant::now();
    let mut sending = tokio::task::JoinSet::new();
    for mut sender in senders {
        sending.spawn(async move {
            sender.send(GIFT).await;
            sender
        });
    }
    let mut senders = sending.join_all().await;
    let taken: usize = senders.iter().map(|sender| sender.sent).sum();
    // Two fit; of the others one window is on its way, and as much in the client's own buffers.
    assert!((2 * GIFT..=2 * GIFT + 4 * 2 * WINDOW).contains(&taken), "{taken}");
    senders.sort_by_key(|sender| sender.sent);
    let finishing = senders.split_off(4);
    for sender in senders {
        let answer = soon(sender.answer).await.unwrap();
        let error = said(answer.headers());
        assert_eq!((error.code, error.reason.as_str()), (Code::ResourceExhausted, reason::OVERLOADED));
        assert!(error.message.contains("unfinished messages"), "{}", error.message);
        assert!(error.retry_after.is_some());
    }
    assert!(began.elapsed() >= Duration::from_millis(400));
    for mut sender in finishing {
        sender.send(sender.bytes.len()).await;
        let answer = soon(sender.answer).await.unwrap();
        assert!(answer.headers().get("grpc-status").is_none(), "{:?}", answer.headers());
    }
    // What they held is free again.
    let mut greeter = server.greeter().await;
    for _ in 0..3 {
        let gift = vec![7; GIFT].into();
        greeter.hello(HelloRequest { name: "x".into(), gift }).await.unwrap();
    }
}

#[tokio::test]
async fn a_message_that_waits_for_others_to_end_is_received_when_they_have() {
    let server = start(|setup| budget(setup, 11, 10_000)).await;
    let mut first = Sender::new(&server).await;
    first.send(GIFT).await;
    let mut greeter = server.greeter().await;
    let second = tokio::spawn(async move {
        let request = HelloRequest { name: "x".into(), gift: vec![7; GIFT].into() };
        greeter.hello(request).await
    });
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!second.is_finished());
    // Small ones need none of it.
    server.greeter().await.hello(hello("ann")).await.unwrap();
    first.send(first.bytes.len()).await;
    soon(second).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_message_that_never_ends_is_ended() {
    let server = start(|setup| {
        budget(setup, 25, 1000);
        setup.config.receive_timeout = HumanDuration::from_millis(200);
    })
    .await;
    let mut slow = Sender::new(&server).await;
    slow.send(1_000_000).await;
    let answer = soon(slow.answer).await.unwrap();
    let error = said(answer.headers());
    assert_eq!((error.code, error.reason.as_str()), (Code::DeadlineExceeded, reason::RECEIVE_TIMEOUT));
}

/// The head of a call has its place already.
#[tokio::test]
async fn a_call_that_never_begins_or_ends_its_message_is_ended_and_a_stream_may_be_silent() {
    let server = start(|setup| setup.config.receive_timeout = HumanDuration::from_millis(200)).await;
    let mut client = h2(server.address).await;
    for sent in ["", "ann"] {
        let (answer, mut body) = client.send_request(head("Greeter/Hello", None), false).unwrap();
        if !sent.is_empty() {
            // Whole, and yet not the end.
            body.send_data(hello_framed(sent), false).unwrap();
        }
        let error = said(soon(answer).await.unwrap().headers());
        assert_eq!((error.code, error.reason.as_str()), (Code::DeadlineExceeded, reason::RECEIVE_TIMEOUT));
        client = client.ready().await.unwrap();
    }
    let (guests, inbound) = mpsc::channel(1);
    let mut chat = server.party().await.chat(ReceiverStream::new(inbound)).await.unwrap().into_inner();
    tokio::time::sleep(Duration::from_millis(500)).await;
    guests.send(hello("ann")).await.unwrap();
    assert_eq!(soon(chat.next()).await.unwrap().unwrap().greeting, "hello ann");
}

#[tokio::test]
async fn a_message_over_the_services_limit_is_refused_as_before() {
    let server = start(|_| {}).await;
    let request = HelloRequest { name: "x".into(), gift: vec![7; MAX_MESSAGE + 1].into() };
    let refused = server.greeter().await.hello(request).await.unwrap_err();
    let error = RpcError::from_status(&refused);
    assert_eq!((error.code, error.reason.as_str()), (Code::OutOfRange, reason::MESSAGE_TOO_LARGE));
}
