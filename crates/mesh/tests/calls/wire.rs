//! Peers that speak HTTP/2 by hand: what they did not act on is sent again, also when it is not safe.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::io::DuplexStream;
use tonic::{Code, Request, Status, body::Body};
use tower::Service;

use crate::echo::{Net, SAFE, UNSAFE, hello, unary};

/// What a peer does with a call.
#[derive(Clone, Copy)]
enum Act {
    /// Resets its stream with this reason.
    Reset(h2::Reason),
    /// Answers.
    Answer,
}

/// The beginning of an answer, or with a status all of it.
fn head(status: Option<&'static str>) -> Response<()> {
    let mut head = Response::new(());
    head.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    if let Some(status) = status {
        head.headers_mut().insert("grpc-status", HeaderValue::from_static(status));
    }
    head
}

/// A server that does with the calls of the test service what `script` says, one after the other, and answers those
/// that come then. All else it has not.
async fn serve(io: DuplexStream, script: &'static [Act], calls: Arc<AtomicUsize>) {
    let mut connection = h2::server::handshake(io).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        if !request.uri().path().starts_with("/test.Echo/") {
            respond.send_response(head(Some("12")), true).unwrap();
            continue;
        }
        match script.get(calls.fetch_add(1, Ordering::Relaxed)).copied().unwrap_or(Act::Answer) {
            Act::Reset(reason) => respond.send_reset(reason),
            Act::Answer => {
                let mut stream = respond.send_response(head(None), false).unwrap();
                // A message with the text "x" in its field 1.
                stream.send_data(Bytes::from_static(b"\0\0\0\0\x03\x0a\x01x"), false).unwrap();
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", HeaderValue::from_static("0"));
                stream.send_trailers(trailers).unwrap();
            }
        }
    }
}

/// One call of an unsafe method to such a server: its answer, and how often it was sent.
async fn call(script: &'static [Act]) -> (Result<String, Code>, usize) {
    let net = Net::default();
    let (mut incoming, calls) = (net.listen("a:1"), Arc::<AtomicUsize>::default());
    let counted = Arc::clone(&calls);
    tokio::spawn(async move {
        while let Some(io) = incoming.recv().await {
            tokio::spawn(serve(io, script, Arc::clone(&counted)));
        }
    });
    let answer = unary(&net.ordinary(&["a:1"]), UNSAFE, hello()).await.map_err(|status| status.code());
    (answer, calls.load(Ordering::Relaxed))
}

#[tokio::test(start_paused = true)]
async fn a_refused_call_is_sent_again_and_a_broken_one_is_not() {
    const REFUSED: Act = Act::Reset(h2::Reason::REFUSED_STREAM);
    assert_eq!(call(&[REFUSED]).await, (Ok("x".into()), 2));
    assert_eq!(call(&[REFUSED, REFUSED, REFUSED]).await, (Ok("x".into()), 4));
    assert_eq!(call(&[REFUSED; 20]).await, (Err(Code::Unavailable), 8), "with an end");
    let (answer, sent) = call(&[Act::Reset(h2::Reason::INTERNAL_ERROR)]).await;
    assert!(answer.is_err() && sent == 1, "{answer:?}");
}

/// Whether the request of each call came to its end.
async fn read(io: DuplexStream, ended: Arc<Mutex<Vec<bool>>>) {
    let mut connection = h2::server::handshake(io).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        if !request.uri().path().starts_with("/test.Echo/") {
            respond.send_response(head(Some("12")), true).unwrap();
            continue;
        }
        let ended = Arc::clone(&ended);
        tokio::spawn(async move {
            let mut body = request.into_body();
            let last = loop {
                match body.data().await {
                    Some(Ok(_)) => {}
                    last => break last,
                }
            };
            ended.lock().unwrap().push(last.is_none());
            respond.send_reset(h2::Reason::CANCEL);
        });
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_that_fails_is_not_sent_as_if_it_were_whole_nor_again() {
    let net = Net::default();
    let (mut incoming, ended) = (net.listen("a:1"), Arc::<Mutex<Vec<bool>>>::default());
    let seen = Arc::clone(&ended);
    tokio::spawn(async move {
        while let Some(io) = incoming.recv().await {
            tokio::spawn(read(io, Arc::clone(&seen)));
        }
    });
    let mut channel = net.ordinary(&["a:1"]);
    let message = Bytes::from_static(b"\0\0\0\0\x03\x0a\x01x");
    let frames = [Ok(Frame::data(message)), Err(Status::out_of_range("too large"))];
    let body = Body::new(StreamBody::new(tokio_stream::iter(frames)));
    let status = channel.call(http::Request::post(SAFE).body(body).unwrap()).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::OutOfRange, "too large"), "the caller's own error");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let ended = ended.lock().unwrap().clone();
    assert!(ended.len() <= 1 && !ended.contains(&true), "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_comes_back_within_the_patience_is_waited_for() {
    let net = Net::default();
    let channel = net.ordinary(&["a:1"]);
    let later = net.clone();
    tokio::spawn(async move {
        tokio::time::sleep(Duration::from_millis(700)).await;
        later.serve("a:1", |_| async { crate::echo::one("here") });
    });
    assert_eq!(unary(&channel, UNSAFE, hello()).await.unwrap(), "here");
    let nobody = net.ordinary(&["z:1"]);
    let request: Request<String> = hello();
    assert_eq!(unary(&nobody, UNSAFE, request).await.unwrap_err().code(), Code::Unavailable);
}
