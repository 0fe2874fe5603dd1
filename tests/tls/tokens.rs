//! Tokens at a real process: each bad one is refused with its reason, and keys change while calls go on.

use std::{
    collections::{BTreeSet, HashMap},
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use serde_json::{Value, json};
use sightline_mesh::RpcError;
use sightline_proto::ratelimiter::{CheckRequest, rate_limiter_service_client::RateLimiterServiceClient};
use sightline_testkit::{Process, eventually};
use tokio::task::JoinSet;
use tonic::{Code, Request, transport::Channel};

use crate::{
    bad::{self, Bad},
    keys::{Issuer, good, set, with},
};

/// A rate limiter that checks tokens.
struct Limiter {
    process: Process,
}

impl Limiter {
    fn start(settings: &[String]) -> Option<Self> {
        let common = [
            "ratelimiter.rules=dev".to_owned(),
            "auth.issuer=https://issuer.example".into(),
            "auth.reload_interval=1s".into(),
        ];
        let arguments: Vec<&str> =
            common.iter().chain(settings).flat_map(|setting| ["--set", setting]).collect();
        Some(Self { process: Process::serve(&["ratelimiter"], &arguments)? })
    }

    async fn client(&self) -> RateLimiterServiceClient<Channel> {
        let channel = Channel::from_shared(self.process.uri("ratelimiter")).unwrap().connect().await.unwrap();
        RateLimiterServiceClient::new(channel)
    }
}

/// One check with this token.
async fn check(client: &mut RateLimiterServiceClient<Channel>, token: &str) -> Result<(), RpcError> {
    let keys = HashMap::from([("user".to_owned(), "ada".to_owned())]);
    let mut request = Request::new(CheckRequest { tenant: "acme".into(), keys, hits: 1 });
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    client.check(request).await.map(drop).map_err(|status| RpcError::from_status(&status))
}

/// Claims that open a service.
fn service() -> Value {
    with("scope", json!("service"))
}

/// In one step, as whoever rotates keys should.
fn write(path: &Path, text: &str) {
    let fresh = path.with_extension("fresh");
    fs::write(&fresh, text).unwrap();
    fs::rename(fresh, path).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_refuses_every_bad_token_with_its_reason() {
    let (rsa, ec, ed) = (Issuer::rsa("rsa"), Issuer::p256("ec"), Issuer::ed25519("ed"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.json");
    write(&path, &set(&[&rsa, &ec, &ed]));
    let Some(limiter) = Limiter::start(&[format!("auth.jwks_file={}", path.display())]) else { return };
    let mut client = limiter.client().await;
    for issuer in [&rsa, &ec, &ed] {
        assert_eq!(check(&mut client, &issuer.sign(&service())).await, Ok(()), "{}", issuer.kid);
    }
    let mut told = BTreeSet::new();
    for Bad { what, token, reason, says } in bad::table(&rsa, &ec, &ed) {
        let error = check(&mut client, &token).await.expect_err(what);
        assert_eq!((error.code, error.reason.as_str()), (Code::Unauthenticated, reason), "{what}: {error}");
        assert!(error.message.contains(says), "{what}: {error}");
        told.insert((error.reason, error.message));
    }
    let reasons: BTreeSet<_> = told.iter().map(|(reason, _)| reason).collect();
    assert!(told.len() >= 20 && reasons.len() >= 13, "{} answers, {reasons:?}", told.len());
    // A good token that may do something else.
    let error = check(&mut client, &ed.sign(&good())).await.unwrap_err();
    assert_eq!((error.code, error.reason.as_str()), (Code::PermissionDenied, "TOKEN_SCOPE"), "{error}");
}

/// What clients show, and how it went.
struct Load {
    token: Mutex<String>,
    stop: AtomicBool,
    checks: AtomicU64,
}

impl Load {
    fn new(token: String) -> Arc<Self> {
        Arc::new(Self { token: Mutex::new(token), stop: AtomicBool::new(false), checks: AtomicU64::new(0) })
    }

    async fn run(self: Arc<Self>, mut client: RateLimiterServiceClient<Channel>) -> Result<(), RpcError> {
        while !self.stop.load(Ordering::SeqCst) {
            let token = self.token.lock().unwrap().clone();
            check(&mut client, &token).await?;
            self.checks.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }

    async fn progress(&self) {
        let before = self.checks.load(Ordering::SeqCst);
        eventually!(self.checks.load(Ordering::SeqCst) > before + 20);
    }
}

/// Exchanges keys three times under load, as an issuer does: the new one beside the old one, then tokens of the new one,
/// then without the old one.
async fn rotate(limiter: &Limiter, first: Issuer, publish: impl Fn(&str)) {
    let mut client = limiter.client().await;
    let mut old = first;
    let load = Load::new(old.sign(&service()));
    let mut clients = JoinSet::new();
    for _ in 0..3 {
        clients.spawn(Arc::clone(&load).run(limiter.client().await));
    }
    for name in ["second", "third", "fourth"] {
        let new = if name == "third" { Issuer::p256(name) } else { Issuer::ed25519(name) };
        load.progress().await;
        publish(&set(&[&old, &new]));
        let token = new.sign(&service());
        eventually!(check(&mut client, &token).await.is_ok());
        *load.token.lock().unwrap() = token;
        load.progress().await;
        publish(&set(&[&new]));
        let late = old.sign(&service());
        eventually!(check(&mut client, &late).await.is_err_and(|error| error.reason == "TOKEN_KEY"));
        old = new;
    }
    // What cannot be read changes nothing.
    publish("{\"keys\":[");
    load.progress().await;
    load.stop.store(true, Ordering::SeqCst);
    assert_eq!(clients.join_all().await, vec![Ok(()); 3]);
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_in_a_file_are_exchanged_under_load() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.json");
    let first = Issuer::ed25519("first");
    write(&path, &set(&[&first]));
    let Some(limiter) = Limiter::start(&[format!("auth.jwks_file={}", path.display())]) else { return };
    rotate(&limiter, first, |text| write(&path, text)).await;
}

/// An issuer's web server; it ends with the test.
struct Site {
    address: SocketAddr,
    body: Arc<Mutex<String>>,
}

impl Site {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let body = Arc::<Mutex<String>>::default();
        let published = Arc::clone(&body);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.read(&mut [0; 4096]);
                let body = published.lock().unwrap().clone();
                let head =
                    format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
                stream.write_all((head + &body).as_bytes()).ok();
            }
        });
        Self { address, body }
    }

    fn publish(&self, text: &str) {
        text.clone_into(&mut self.body.lock().unwrap());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_behind_a_url_are_exchanged_under_load() {
    let site = Site::start();
    let first = Issuer::ed25519("first");
    site.publish(&set(&[&first]));
    let settings = [
        format!("auth.jwks_url=http://{}/keys", site.address),
        "auth.jwks_refresh=1s".into(),
        "auth.jwks_min_refresh=200ms".into(),
    ];
    let Some(limiter) = Limiter::start(&settings) else { return };
    let mut client = limiter.client().await;
    let token = first.sign(&service());
    eventually!(check(&mut client, &token).await.is_ok());
    rotate(&limiter, first, |text| site.publish(text)).await;
}
