//! Keys behind a URL, against a real HTTP server; and guards that take tokens and hand claims on.

#![allow(clippy::unwrap_used)] // helpers of tests: a panic is a failed test

mod certs;
mod keys;

use std::{
    convert::Infallible,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use certs::{Authority, DAY};
use http::{Request, Response};
use http_body_util::Full;
use hyper::{body::Bytes, service::service_fn};
use hyper_util::rt::TokioIo;
use keys::{Issuer, good, set, with};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use serde_json::json;
use sightline_config::{HumanDuration, ServerUrl};
use sightline_mesh::{
    auth::{AuthConfig, CLAIMS_KEY, Claims, ForwardTrust, Guard, Verifier, forward},
    server::PeerIdentity,
};
use sightline_telemetry::dependencies::{Condition, Dependencies};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;
use tonic::{Code, Status, body::Body, metadata::MetadataMap, transport::server::TcpConnectInfo};
use tower::ServiceExt;

/// What the issuer's server answers.
#[derive(Default)]
struct Site {
    status: Mutex<u16>,
    body: Mutex<String>,
    fetches: AtomicUsize,
}

impl Site {
    fn publish(&self, status: u16, body: impl Into<String>) {
        *self.status.lock().unwrap() = status;
        *self.body.lock().unwrap() = body.into();
    }

    fn fetches(&self) -> usize {
        self.fetches.load(Ordering::SeqCst)
    }

    fn answer(&self) -> Response<Full<Bytes>> {
        self.fetches.fetch_add(1, Ordering::SeqCst);
        let body = self.body.lock().unwrap().clone();
        Response::builder().status(*self.status.lock().unwrap()).body(Full::new(body.into())).unwrap()
    }
}

/// Serves a site by HTTP/1.1, over TLS if there is a certificate.
async fn host(
    site: &Arc<Site>,
    tls: Option<tokio_rustls::TlsAcceptor>,
) -> (SocketAddr, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let site = Arc::clone(site);
    let serving = tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let stream: Box<dyn sightline_mesh::io::Io> = match &tls {
                None => Box::new(stream),
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => Box::new(stream),
                    Err(_) => continue,
                },
            };
            let site = Arc::clone(&site);
            let answer = service_fn(move |_| {
                let answer = site.answer();
                async move { Ok::<_, Infallible>(answer) }
            });
            let http = hyper::server::conn::http1::Builder::new();
            tokio::spawn(http.serve_connection(TokioIo::new(stream), answer));
        }
    });
    (address, AbortOnDropHandle::new(serving))
}

fn config(address: SocketAddr) -> AuthConfig {
    AuthConfig {
        jwks_url: Some(ServerUrl::new(format!("http://{address}/keys"))),
        jwks_refresh: HumanDuration::from_secs(3600),
        jwks_min_refresh: HumanDuration::from_millis(200),
        jwks_timeout: HumanDuration::from_millis(500),
        ..AuthConfig::default()
    }
}

fn verifier(config: &AuthConfig) -> Arc<Verifier> {
    Verifier::from_config(config).unwrap().unwrap()
}

async fn until(all: &Dependencies, wanted: impl Fn(&Condition) -> bool) {
    let mut changes = all.subscribe();
    let waiting = async {
        while !wanted(&all.all()["auth"]) {
            changes.changed().await.unwrap();
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(10), waiting).await;
    waited.unwrap_or_else(|_| panic!("{:?}", all.all()));
}

#[tokio::test]
async fn a_token_with_a_new_key_has_the_url_asked_again_and_not_too_often() {
    let (old, new, stranger) = (Issuer::ed25519("old"), Issuer::p256("new"), Issuer::ed25519("stranger"));
    let site = Arc::new(Site::default());
    site.publish(200, set(&[&old]));
    let (address, _host) = host(&site, None).await;
    let verifier = verifier(&config(address));
    // Nothing was fetched yet: that is not the token's fault.
    let error = verifier.verify(&old.sign(&good())).unwrap_err();
    assert_eq!((error.code, error.reason.as_str()), (Code::Unavailable, "TOKEN_KEYS_UNAVAILABLE"));
    assert!(error.retry_after.is_some());

    let all = Dependencies::default();
    let _watch = verifier.watch(all.register("auth"));
    assert!(verifier.verify_fresh(&old.sign(&good())).await.is_ok());
    assert_eq!(site.fetches(), 1);
    // The issuer signs with a key that we have not seen. Many calls at once cause one fetch.
    site.publish(200, set(&[&old, &new]));
    let token = new.sign(&good());
    let calls: Vec<_> = (0..32)
        .map(|_| {
            let (verifier, token) = (Arc::clone(&verifier), token.clone());
            tokio::spawn(async move { verifier.verify_fresh(&token).await.is_ok() })
        })
        .collect();
    for call in calls {
        assert!(call.await.unwrap());
    }
    assert_eq!(site.fetches(), 2);
    // Made-up keys cause no more than the bound allows, and are refused at once in between.
    let since = Instant::now();
    while since.elapsed() < Duration::from_millis(900) {
        let error = verifier.verify_fresh(&stranger.sign(&good())).await.unwrap_err();
        assert_eq!(error.reason, "TOKEN_KEY");
        assert!(verifier.verify_fresh(&token).await.is_ok());
    }
    let caused = site.fetches() - 2;
    assert!((1..=5).contains(&caused), "{caused} fetches in 0.9 s");
}

#[tokio::test]
async fn the_last_good_keys_stay_while_the_url_fails() {
    let issuer = Issuer::ed25519("a");
    let site = Arc::new(Site::default());
    site.publish(200, set(&[&issuer]));
    let (address, serving) = host(&site, None).await;
    let config = AuthConfig {
        jwks_refresh: HumanDuration::from_millis(30),
        jwks_min_refresh: HumanDuration::from_millis(10),
        ..config(address)
    };
    let all = Dependencies::default();
    let verifier = verifier(&config);
    let _watch = verifier.watch(all.register("auth"));
    let token = issuer.sign(&good());
    assert!(verifier.verify_fresh(&token).await.is_ok());
    let huge = format!("{{\"keys\":[],\"x\":\"{}\"}}", "x".repeat(300_000));
    for (status, body, says) in [
        (500, String::new(), "the answer is 500"),
        (302, String::new(), "the answer is 302"),
        (200, "<html>".into(), "no JSON Web Key Set"),
        (200, "{\"keys\":[]}".into(), "none of its 0 keys"),
        (200, huge, "over 262144 bytes"),
    ] {
        site.publish(status, body);
        until(&all, |condition| matches!(condition, Condition::Degraded(why) if why.contains(says))).await;
        assert!(verifier.verify(&token).is_ok(), "{says}");
    }
    site.publish(200, set(&[&issuer]));
    until(&all, |condition| *condition == Condition::Healthy).await;
    drop(serving);
    until(&all, |condition| matches!(condition, Condition::Degraded(why) if why.contains("`auth.jwks_url`")))
        .await;
    assert!(verifier.verify(&token).is_ok());
}

#[tokio::test]
async fn without_any_keys_the_door_is_shut_and_it_is_said() {
    // Somebody listens and never answers.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let all = Dependencies::default();
    let verifier = verifier(&config(listener.local_addr().unwrap()));
    let _watch = verifier.watch(all.register("auth"));
    let error = verifier.verify_fresh(&Issuer::ed25519("a").sign(&good())).await.unwrap_err();
    assert_eq!((error.code, error.reason.as_str()), (Code::Unavailable, "TOKEN_KEYS_UNAVAILABLE"));
    until(
        &all,
        |condition| matches!(condition, Condition::Down(why) if why.contains("no answer within 500ms")),
    )
    .await;
}

/// A key of a file has no name: it is tried for every token, and stands for no name that a token gives.
#[tokio::test]
async fn a_new_key_is_fetched_although_a_file_has_one_without_a_name() {
    let (of_file, old, new) = (Issuer::ed25519("file"), Issuer::ed25519("old"), Issuer::ed25519("new"));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("public.pem");
    std::fs::write(&path, &of_file.pem).unwrap();
    let site = Arc::new(Site::default());
    site.publish(200, set(&[&old]));
    let (address, _host) = host(&site, None).await;
    let verifier = verifier(&AuthConfig { public_key_file: Some(path), ..config(address) });
    let error = verifier.verify(&new.sign(&good())).unwrap_err();
    assert_eq!(error.reason, "TOKEN_KEYS_UNAVAILABLE", "its key may be behind the URL");
    let _watch = verifier.watch(Dependencies::default().register("auth"));
    for issuer in [&of_file, &old] {
        assert!(verifier.verify_fresh(&issuer.sign(&good())).await.is_ok(), "{}", issuer.kid);
    }
    assert_eq!(verifier.verify(&new.sign(&good())).unwrap_err().reason, "TOKEN_KEY");
    site.publish(200, set(&[&old, &new]));
    assert!(verifier.verify_fresh(&new.sign(&good())).await.is_ok());
    let impostor = Issuer::ed25519("old").sign(&good());
    assert_eq!(verifier.verify(&impostor).unwrap_err().reason, "TOKEN_SIGNATURE");
}

/// Each call that waits for the issuer has a place at the server.
#[tokio::test]
async fn while_the_issuer_hangs_few_calls_wait_for_it_and_good_tokens_for_nothing() {
    const CALLS: usize = 400;
    let (known, stranger) = (Issuer::ed25519("known"), Issuer::ed25519("stranger"));
    let site = Arc::new(Site::default());
    site.publish(200, set(&[&known]));
    let (address, serving) = host(&site, None).await;
    let timeout = HumanDuration::from_secs(2);
    let verifier = verifier(&AuthConfig { jwks_timeout: timeout, ..config(address) });
    let _watch = verifier.watch(Dependencies::default().register("auth"));
    assert!(verifier.verify_fresh(&known.sign(&good())).await.is_ok());
    drop(serving);
    // Somebody else listens there, as soon as the site is gone.
    let _silent = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(_) => tokio::task::yield_now().await,
        }
    };
    let began = Instant::now();
    let token = stranger.sign(&good());
    let calls = (0..CALLS).map(|_| async {
        let error = verifier.verify_fresh(&token).await.unwrap_err();
        (error.reason == "TOKEN_KEYS_UNAVAILABLE" && error.retry_after.is_some(), began.elapsed())
    });
    let (calls, good_one) = tokio::join!(futures_util::future::join_all(calls), async {
        (verifier.verify_fresh(&known.sign(&good())).await.is_ok(), began.elapsed())
    });
    assert!(good_one.0 && good_one.1 < Duration::from_secs(1), "{good_one:?}");
    let at_once = calls.iter().filter(|(_, after)| *after < Duration::from_secs(1)).count();
    assert_eq!(at_once, CALLS - 256);
    assert!(
        calls.iter().all(|(asked_to_return, after)| *asked_to_return == (*after < Duration::from_secs(1)))
    );
}

#[tokio::test]
async fn https_is_verified_against_the_authorities_that_are_named() {
    let (authority, other) = (Authority::new("web"), Authority::new("other"));
    let (cert, key) = authority.issue(&["127.0.0.1"], DAY);
    let chain = vec![CertificateDer::from_pem_slice(cert.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let issuer = Issuer::rsa("a");
    let site = Arc::new(Site::default());
    site.publish(200, set(&[&issuer]));
    let (address, _host) = host(&site, Some(Arc::new(tls).into())).await;
    let folder = tempfile::tempdir().unwrap();
    let trusting = |authority: &Authority| {
        let path = folder.path().join("ca.pem");
        std::fs::write(&path, authority.pem()).unwrap();
        let url = ServerUrl::new(format!("https://{address}/keys"));
        verifier(&AuthConfig { jwks_url: Some(url), jwks_ca_file: Some(path), ..config(address) })
    };
    let all = Dependencies::default();
    let good_one = trusting(&authority);
    let _watch = good_one.watch(all.register("auth"));
    assert!(good_one.verify_fresh(&issuer.sign(&good())).await.is_ok());
    let wrong = trusting(&other);
    let _watch = wrong.watch(all.register("auth"));
    until(&all, |condition| matches!(condition, Condition::Down(why) if why.contains("UnknownIssuer"))).await;
}

#[test]
fn settings_that_cannot_work_are_refused() {
    type Change = fn(&mut AuthConfig);
    let changes: [(&str, Change); 5] = [
        ("`auth.jwks_url` (keys)", |config| config.jwks_url = Some(ServerUrl::new("keys"))),
        ("`auth.jwks_url` (http://me:***@a/)", |config| {
            config.jwks_url = Some(ServerUrl::new("http://me:secret@a/"));
        }),
        ("`auth.jwks_timeout`", |config| config.jwks_timeout = HumanDuration::from_secs(0)),
        ("`auth.jwks_refresh`", |config| config.jwks_refresh = HumanDuration::from_millis(1)),
        ("`auth.jwks_url` (https://a/)", |config| {
            config.jwks_url = Some(ServerUrl::new("https://a/"));
            config.jwks_ca_file = Some("/nowhere/ca.pem".into());
        }),
    ];
    for (expected, change) in changes {
        let mut config = config(SocketAddr::from((Ipv4Addr::LOCALHOST, 1)));
        change(&mut config);
        let said = Verifier::from_config(&config).unwrap_err().to_string();
        assert!(said.starts_with(expected), "{said}");
    }
}

/// What a service behind `guard` sees of the caller.
async fn admitted(
    guard: &Guard,
    metadata: MetadataMap,
    extensions: impl Fn(&mut http::Extensions),
) -> Result<Option<Claims>, (Code, String)> {
    let (seen, saw) = tokio::sync::oneshot::channel();
    let seen = Arc::new(Mutex::new(Some(seen)));
    let service = tower::service_fn(move |request: Request<Body>| {
        let claims = request.extensions().get::<Claims>().cloned();
        assert!(request.headers().get(CLAIMS_KEY).is_none(), "forwarded claims stay with the guard");
        seen.lock().unwrap().take().unwrap().send(claims).unwrap();
        async { Ok::<_, Infallible>(Response::new(Body::empty())) }
    });
    let mut request = Request::new(Body::empty());
    *request.headers_mut() = metadata.into_headers();
    extensions(request.extensions_mut());
    let response = guard.clone().protect(service).oneshot(request).await.unwrap();
    match Status::from_header_map(response.headers()) {
        Some(status) => Err((status.code(), sightline_mesh::RpcError::from_status(&status).reason)),
        None => Ok(saw.await.unwrap()),
    }
}

fn claims(user: &str, tenant: &str, scope: &str) -> Claims {
    Claims { sub: user.into(), tenant: tenant.into(), scope: scope.into() }
}

#[tokio::test]
async fn claims_come_from_tokens_and_proven_services_only() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keys.json");
    let issuer = Issuer::ed25519("a");
    std::fs::write(&path, set(&[&issuer])).unwrap();
    let config = AuthConfig { jwks_file: Some(path), ..AuthConfig::default() };
    let keys = Some(verifier(&config));

    let metadata = |token: Option<String>, forwarded: Option<&Claims>| {
        let mut metadata = MetadataMap::new();
        if let Some(token) = token {
            metadata.insert("authorization", format!("bearer {token}").parse().unwrap());
        }
        if let Some(claims) = forwarded {
            forward(claims, &mut metadata);
        }
        metadata
    };
    let stranger = |_: &mut http::Extensions| {};
    let proven = |extensions: &mut http::Extensions| {
        extensions.insert(PeerIdentity("spiffe://mesh.example/ingest".into()));
    };
    let local = |extensions: &mut http::Extensions| {
        let remote_addr = Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 1)));
        extensions.insert(TcpConnectInfo { local_addr: None, remote_addr });
    };
    let (ada, bob) = (claims("ada", "acme", "classify"), claims("bob", "acme", "classify"));
    let of_ada = || Some(issuer.sign(&good()));
    let service = |tenant: &str| {
        let mut content = with("scope", json!("service"));
        content["sub"] = "".into();
        content["tenant"] = tenant.into();
        Some(issuer.sign(&content))
    };

    // At the edge only the token counts, whatever the metadata and the extensions say.
    let edge = Guard::new(keys.clone(), "classify");
    assert_eq!(admitted(&edge, metadata(of_ada(), Some(&bob)), stranger).await, Ok(Some(ada.clone())));
    assert_eq!(admitted(&edge, metadata(of_ada(), Some(&bob)), proven).await, Ok(Some(ada.clone())));
    let missing = Err((Code::Unauthenticated, "TOKEN_MISSING".to_owned()));
    assert_eq!(admitted(&edge, metadata(None, Some(&bob)), proven).await, missing);
    let scope = Err((Code::PermissionDenied, "TOKEN_SCOPE".to_owned()));
    assert_eq!(admitted(&edge, metadata(service(""), None), stranger).await, scope);
    let open = Guard::new(None, "classify");
    let planted = |extensions: &mut http::Extensions| drop(extensions.insert(claims("eve", "", "service")));
    assert_eq!(admitted(&open, metadata(None, Some(&bob)), planted).await, Ok(None));

    // Between services a certificate opens, and what its bearer forwards is believed.
    let inside = Guard::inside(keys.clone(), "service", ForwardTrust::Mtls);
    assert_eq!(admitted(&inside, metadata(None, Some(&bob)), proven).await, Ok(Some(bob.clone())));
    assert_eq!(admitted(&inside, metadata(None, None), proven).await, Ok(None));
    assert_eq!(admitted(&inside, metadata(None, Some(&bob)), local).await, missing);
    assert_eq!(admitted(&inside, metadata(of_ada(), None), stranger).await, scope);
    // A service's token opens too, but forwarding on it is not believed by default.
    let own = claims("", "", "service");
    assert_eq!(admitted(&inside, metadata(service(""), Some(&bob)), local).await, Ok(Some(own.clone())));
    let trusting = Guard::inside(keys.clone(), "service", ForwardTrust::Loopback);
    assert_eq!(admitted(&trusting, metadata(service(""), Some(&bob)), local).await, Ok(Some(bob.clone())));
    assert_eq!(admitted(&trusting, metadata(service(""), Some(&bob)), stranger).await, Ok(Some(own)));
    let all = Guard::inside(keys, "service", ForwardTrust::Insecure);
    assert_eq!(admitted(&all, metadata(service("acme"), Some(&bob)), stranger).await, Ok(Some(bob.clone())));
    let other = Err((Code::PermissionDenied, "TOKEN_TENANT".to_owned()));
    assert_eq!(admitted(&all, metadata(service("other"), Some(&bob)), stranger).await, other);

    // Two of them, or something else in their place, is not read at all.
    let mut twice = metadata(None, Some(&bob));
    twice.append_bin(CLAIMS_KEY, twice.get_bin(CLAIMS_KEY).unwrap().clone());
    let mut broken = MetadataMap::new();
    broken.insert_bin(CLAIMS_KEY, tonic::metadata::MetadataValue::from_bytes(b"{\"sub\":1}"));
    for metadata in [twice, broken] {
        let unreadable = Err((Code::Unauthenticated, "TOKEN_INVALID".to_owned()));
        assert_eq!(admitted(&inside, metadata, proven).await, unreadable);
    }
}
