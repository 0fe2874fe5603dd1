//! Handshakes over real sockets: who is let in, who is not, and certificates that change meanwhile.

#![allow(clippy::unwrap_used)] // helpers of tests: a panic is a failed test

mod certs;
mod secret;

use std::{
    convert::Infallible,
    error::Error,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use certs::{Authority, DAY};
use http::{Request, Response};
use http_body_util::{BodyExt, Empty, Full};
use hyper::{body::Bytes, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo};
use secret::Secret;
use sightline_mesh::identity::{Acceptor, AllowList, Connector, HandshakeLimits, Identity, Validity};
use sightline_telemetry::dependencies::{Condition, Dependencies};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::task::AbortOnDropHandle;

const INGEST: &str = "spiffe://mesh.example/ns/prod/sa/ingest";
const STATS: &str = "spiffe://mesh.example/ns/prod/sa/stats";
const LIMITS: HandshakeLimits = HandshakeLimits { timeout: Duration::from_secs(5), at_once: 64 };

fn list(setting: &str, entries: &[&str]) -> AllowList {
    AllowList::new(setting, entries).unwrap()
}

fn load(secret: &Secret) -> Arc<Identity> {
    Identity::load("mesh", secret.files()).unwrap()
}

/// The server of `stats`, for whoever may be ingest.
fn acceptor(identity: &Arc<Identity>) -> Acceptor {
    Acceptor::mutual("stats", identity, list("tls.callers.stats", &[INGEST]), LIMITS).unwrap()
}

/// A caller of `stats`.
fn connector(identity: &Arc<Identity>) -> Connector {
    Connector::mutual(identity, Some(list("tls.servers.stats", &[STATS])), LIMITS.timeout).unwrap()
}

/// Answers each request with the caller's identity.
async fn serve(acceptor: Acceptor) -> (SocketAddr, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move {
        loop {
            let (stream, peer) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok((stream, identity)) = acceptor.handshake(stream, peer).await else { return };
                let name = identity.map_or_else(String::new, |identity| identity.0.to_string());
                let answer = service_fn(move |_| {
                    let body = Full::new(Bytes::from(name.clone()));
                    async move { Ok::<_, Infallible>(Response::new(body)) }
                });
                if stream.get_ref().1.alpn_protocol() == Some(b"http/1.1") {
                    let http = hyper::server::conn::http1::Builder::new();
                    return drop(http.serve_connection(TokioIo::new(stream), answer).await);
                }
                let h2 = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                h2.serve_connection(TokioIo::new(stream), answer).await.ok();
            });
        }
    });
    (address, AbortOnDropHandle::new(serving))
}

/// An error with all its causes.
fn chain(error: impl Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

/// One call over a connection of its own.
async fn call(connector: &Connector, address: SocketAddr) -> Result<String, String> {
    let stream = TcpStream::connect(address).await.map_err(chain)?;
    let stream = connector.handshake(&address.to_string(), stream).await.map_err(chain)?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(chain)?;
    let driver = AbortOnDropHandle::new(tokio::spawn(connection));
    let request = Request::get("http://stats/").body(Empty::<Bytes>::new()).unwrap();
    let response = match sender.send_request(request).await {
        Ok(response) => response,
        // The connection itself knows best why it ended.
        Err(error) => return Err(driver.await.unwrap().map_err(chain).err().unwrap_or_else(|| chain(error))),
    };
    let body = response.into_body().collect().await.map_err(chain)?.to_bytes();
    Ok(String::from_utf8(body.to_vec()).unwrap())
}

#[tokio::test]
async fn a_caller_on_the_list_is_let_in_and_known_by_name() {
    let authority = Authority::new("mesh");
    let stats = load(&Secret::new(authority.issue(&[STATS], DAY), &[&authority]));
    let ingest = load(&Secret::new(authority.issue(&[INGEST], DAY), &[&authority]));
    let (address, _server) = serve(acceptor(&stats)).await;
    assert_eq!(call(&connector(&ingest), address).await.as_deref(), Ok(INGEST));
    // By the host's name, where no list says who must answer.
    let named = load(&Secret::new(authority.issue(&[STATS, "127.0.0.1"], DAY), &[&authority]));
    let (address, _server) = serve(acceptor(&named)).await;
    let by_name = Connector::mutual(&ingest, None, LIMITS.timeout).unwrap();
    assert_eq!(call(&by_name, address).await.as_deref(), Ok(INGEST));
    let elsewhere = by_name.asking_for("stats.example").unwrap();
    let said = call(&elsewhere, address).await.unwrap_err();
    assert!(said.contains("stats.example") && said.contains("a certificate for the host's name"), "{said}");
}

#[tokio::test]
async fn callers_without_the_right_identity_are_refused_and_told_why() {
    let metrics = sightline_telemetry::metrics::recorder();
    let (authority, other) = (Authority::new("mesh"), Authority::new("other"));
    let stats = load(&Secret::new(authority.issue(&[STATS, "stats"], DAY), &[&authority]));
    let (address, _server) = serve(acceptor(&stats)).await;
    let classifier = "spiffe://mesh.example/ns/prod/sa/classifier";
    for (signer, names, expected) in [
        (
            &authority,
            &[classifier][..],
            "we are spiffe://mesh.example/ns/prod/sa/classifier, and it is not on",
        ),
        (&authority, &["spiffe://mesh.example/ns/prod/sa/ingest/x"], "not on the server's list"),
        (&authority, &[INGEST, classifier], "a certificate without a SPIFFE id"),
        (&authority, &["ingest.prod"], "a certificate without a SPIFFE id"),
        (&other, &[INGEST], "the server does not hold our authority"),
    ] {
        let caller = load(&Secret::new(signer.issue(names, DAY), &[&authority]));
        let said = call(&connector(&caller), address).await.unwrap_err();
        assert!(said.contains(expected), "{names:?}: {said}");
    }
    // Without any certificate, as browsers do it.
    let stream = TcpStream::connect(address).await.unwrap();
    let mut stream = nameless(&authority).connect("stats".try_into().unwrap(), stream).await.unwrap();
    let said = stream.read_u8().await.unwrap_err().to_string();
    assert!(said.contains("CertificateRequired"), "{said}");
    let seen = metrics.render();
    for series in [
        format!(
            r#"mesh_identity_refused_total{{server="stats",identity="{classifier}",list="tls.callers.stats"}} 1"#
        ),
        r#"mesh_identity_refused_total{server="stats",identity="none",list="tls.callers.stats"} 2"#
            .to_owned(),
    ] {
        assert!(seen.contains(&series), "{series} is not in\n{seen}");
    }
}

/// A client that shows no certificate.
fn nameless(authority: &Authority) -> tokio_rustls::TlsConnector {
    use rustls::pki_types::{CertificateDer, pem::PemObject};
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config).into()
}

#[tokio::test]
async fn servers_without_the_right_identity_are_refused_and_named() {
    let (authority, other) = (Authority::new("mesh"), Authority::new("other"));
    let ingest = load(&Secret::new(authority.issue(&[INGEST], DAY), &[&authority]));
    let impostor = "spiffe://mesh.example/ns/prod/sa/classifier";
    for (signer, names, expected) in [
        (
            &authority,
            &[impostor][..],
            "the peer is spiffe://mesh.example/ns/prod/sa/classifier, which is not on",
        ),
        (&authority, &["127.0.0.1"], "names 0 URIs"),
        (&other, &[STATS], "an authority that our `ca_file` does not hold"),
    ] {
        let server = load(&Secret::new(signer.issue(names, DAY), &[&authority, &other]));
        let (address, _server) = serve(acceptor(&server)).await;
        let said = call(&connector(&ingest), address).await.unwrap_err();
        assert!(said.contains(expected) && said.contains(&address.to_string()), "{said}");
        assert!(said.contains("`tls.servers.stats` [spiffe://mesh.example/ns/prod/sa/stats]"), "{said}");
    }
}

#[tokio::test]
async fn certificates_that_expire_while_in_use_are_refused_both_ways() {
    let authority = Authority::new("mesh");
    let soon = Duration::from_secs(3);
    let [stats, ingest] = [STATS, INGEST]
        .map(|id| [DAY, soon].map(|life| load(&Secret::new(authority.issue(&[id], life), &[&authority]))));
    let ([stats, old_stats], [ingest, old_ingest]) = (stats, ingest);
    let (good, _server) = serve(acceptor(&stats)).await;
    let (old, _old_server) = serve(acceptor(&old_stats)).await;
    assert!(
        call(&connector(&old_ingest), good).await.is_ok() && call(&connector(&ingest), old).await.is_ok()
    );
    tokio::time::sleep(soon + Duration::from_secs(1)).await;
    let said = call(&connector(&old_ingest), good).await.unwrap_err();
    assert!(said.contains("our certificate has expired"), "{said}");
    let said = call(&connector(&ingest), old).await.unwrap_err();
    assert!(said.contains("its certificate has expired"), "{said}");
    // Nor does a process start with one.
    let late = Secret::new(authority.issue(&[STATS], Duration::from_secs(1)), &[&authority]);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let said = Identity::load("mesh", late.files()).unwrap_err().to_string();
    assert!(said.starts_with("`tls.cert_file`: ") && said.contains("expired"), "{said}");
}

/// Waits until another certificate is in use.
async fn renewed(identity: &Identity, before: Validity) {
    let waiting = async {
        while identity.validity() == before {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("the new files are taken");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_rotations_under_load_cost_no_call() {
    const ROTATIONS: usize = 10;
    let (first, second) = (Authority::new("first"), Authority::new("second"));
    let mut stats = Secret::new(first.issue(&[STATS], DAY), &[&first]);
    let mut ingest = Secret::new(first.issue(&[INGEST], DAY), &[&first]);
    let all = Dependencies::default();
    let watched = |secret: &Secret, name| {
        let identity = load(secret);
        let watch = identity.watch(Duration::from_millis(20), all.register(name));
        (identity, watch)
    };
    let (server, _watch) = watched(&stats, "server");
    let (client, _watch) = watched(&ingest, "client");
    let (address, _server) = serve(acceptor(&server)).await;

    let (calls, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicBool::new(false)));
    let callers: Vec<_> = (0..8)
        .map(|_| {
            let (connector, calls, stop) = (connector(&client), Arc::clone(&calls), Arc::clone(&stop));
            tokio::spawn(async move {
                let mut errors = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    errors.extend(call(&connector, address).await.err());
                    calls.fetch_add(1, Ordering::Relaxed);
                }
                errors
            })
        })
        .collect();
    for round in 0..ROTATIONS {
        // Half-way the authority changes too, in the order in which that works: first everybody takes both.
        let signer = if round < 5 { &first } else { &second };
        let before = [server.validity(), client.validity()];
        for (secret, id) in [(&mut stats, STATS), (&mut ingest, INGEST)] {
            // Each lives a little longer than the one before, so that they can be told apart.
            let life = DAY + Duration::from_secs(3600) * (round as u32 + 1);
            secret.replace(signer.issue(&[id], life), &[&first, &second]);
        }
        tokio::join!(renewed(&server, before[0]), renewed(&client, before[1]));
        let since = calls.load(Ordering::Relaxed);
        tokio::time::sleep(Duration::from_millis(150)).await;
        assert!(calls.load(Ordering::Relaxed) > since, "nothing was called in round {round}");
    }
    stop.store(true, Ordering::Relaxed);
    let mut errors = Vec::new();
    for caller in callers {
        errors.extend(caller.await.unwrap());
    }
    assert_eq!(errors, Vec::<String>::new());
    assert_eq!(all.overall(), "healthy");
    let total = calls.load(Ordering::Relaxed);
    println!("{total} calls, each over a new connection, during {ROTATIONS} rotations");
    // The old authority is gone at last: whoever still shows its certificate is refused.
    stats.replace(second.issue(&[STATS], DAY), &[&second]);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let late = load(&Secret::new(first.issue(&[INGEST], DAY), &[&first, &second]));
    assert!(call(&connector(&late), address).await.unwrap_err().contains("does not hold our authority"));
    assert!(call(&connector(&client), address).await.is_ok());
}

#[tokio::test]
async fn bad_new_files_keep_the_old_ones_and_are_said() {
    let metrics = sightline_telemetry::metrics::recorder();
    let authority = Authority::new("mesh");
    let mut secret = Secret::new(authority.issue(&[STATS], DAY), &[&authority]);
    let stats = load(&secret);
    let ingest = load(&Secret::new(authority.issue(&[INGEST], DAY), &[&authority]));
    let all = Dependencies::default();
    let _watch = stats.watch(Duration::from_secs(3600), all.register("tls"));
    let (address, _server) = serve(acceptor(&stats)).await;
    let first = stats.validity();

    let (cert, key) = authority.issue(&[STATS], 2 * DAY);
    let (_, strange) = authority.issue(&[STATS], DAY);
    let broken = key.replace("MIGH", "!!!!");
    for (bad, expected) in [
        ((cert.clone(), strange), "is not the key of"),
        ((String::new(), key.clone()), "holds no certificate"),
        ((cert.clone(), broken), "holds no private key"),
        (authority.issue(&["stats.example"], DAY), "the certificate before it names one"),
    ] {
        secret.replace(bad, &[&authority]);
        stats.look_now();
        let mut changes = all.subscribe();
        let seen = |all: &Dependencies| match &all.all()["tls"] {
            Condition::Degraded(why) => why.contains(expected),
            _ => false,
        };
        tokio::time::timeout(Duration::from_secs(5), async {
            while !seen(&all) {
                changes.changed().await.unwrap();
            }
        })
        .await
        .unwrap_or_else(|_| panic!("{expected}: {:?}", all.all()));
        assert_eq!(stats.validity(), first);
        assert!(call(&connector(&ingest), address).await.is_ok());
    }
    secret.replace((cert, key), &[&authority]);
    stats.look_now();
    renewed(&stats, first).await;
    let mut changes = all.subscribe();
    while all.overall() != "healthy" {
        changes.changed().await.unwrap();
    }
    assert!(call(&connector(&ingest), address).await.is_ok());
    let seen = metrics.render();
    assert!(seen.contains(r#"mesh_certificate_reloads_total{identity="mesh",outcome="bad"} 4"#), "{seen}");
    assert!(seen.contains(r#"mesh_certificate_expires_seconds{identity="mesh"}"#), "{seen}");
}

#[tokio::test]
async fn handshakes_are_bounded_in_time_and_number() {
    let authority = Authority::new("mesh");
    let stats = load(&Secret::new(authority.issue(&[STATS], DAY), &[&authority]));
    let limits = HandshakeLimits { timeout: Duration::from_secs(1), at_once: 2 };
    let acceptor = Acceptor::edge("slow", &stats, limits);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let hello = client_hello(&authority).await;
    let mut open = Vec::new();
    let mut handshakes = Vec::new();
    // Whoever says nothing, or half of its first message, has no place: two others that stop there have both.
    for said in [&[], &hello[..hello.len() / 2], &hello, &[], &hello, &hello] {
        let mut client = TcpStream::connect(address).await.unwrap();
        let (stream, peer) = listener.accept().await.unwrap();
        client.write_all(said).await.unwrap();
        let acceptor = acceptor.clone();
        handshakes.push(tokio::spawn(async move { acceptor.handshake(stream, peer).await.map(drop) }));
        // Its handshake has begun when the server has answered.
        if said.len() == hello.len() {
            client.read_u8().await.ok();
        }
        open.push(client);
    }
    let mut kinds = Vec::new();
    for handshake in handshakes {
        kinds.push(handshake.await.unwrap().unwrap_err().kind());
    }
    use std::io::ErrorKind::{ConnectionRefused, TimedOut};
    assert_eq!(kinds, [TimedOut, TimedOut, TimedOut, TimedOut, TimedOut, ConnectionRefused]);
}

/// What a client says first.
async fn client_hello(authority: &Authority) -> Vec<u8> {
    let (ours, mut theirs) = tokio::io::duplex(16 << 10);
    let connecting = nameless(authority).connect("stats".try_into().unwrap(), ours);
    let mut hello = vec![0; 16 << 10];
    let read = tokio::select! {
        _ = connecting => panic!("nobody answers"),
        read = theirs.read(&mut hello) => read.unwrap(),
    };
    hello.truncate(read);
    hello
}

/// Parting from a peer that was refused takes as long as the peer likes, and no place.
#[tokio::test]
async fn whoever_is_refused_holds_no_place_while_it_stays() {
    let authority = Authority::new("mesh");
    let stats = load(&Secret::new(authority.issue(&["stats", STATS], DAY), &[&authority]));
    let ingest = load(&Secret::new(authority.issue(&[INGEST], DAY), &[&authority]));
    let limits = HandshakeLimits { timeout: Duration::from_secs(5), at_once: 1 };
    let list = list("tls.callers.stats", &[INGEST]);
    let (address, _server) = serve(Acceptor::mutual("stats", &stats, list, limits).unwrap()).await;
    let stream = TcpStream::connect(address).await.unwrap();
    let mut refused = nameless(&authority).connect("stats".try_into().unwrap(), stream).await.unwrap();
    refused.read_u8().await.unwrap_err();
    // It does not close its end.
    assert_eq!(call(&connector(&ingest), address).await.as_deref(), Ok(INGEST));
}

#[tokio::test]
async fn plain_text_is_no_way_in() {
    let authority = Authority::new("mesh");
    let stats = load(&Secret::new(authority.issue(&[STATS], DAY), &[&authority]));
    let acceptor = acceptor(&stats);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut plain = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (stream, peer) = listener.accept().await.unwrap();
    plain.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    assert!(acceptor.handshake(stream, peer).await.is_err());
    // The other way round: the caller is told what it met.
    let ingest = load(&Secret::new(authority.issue(&[INGEST], DAY), &[&authority]));
    let speaking = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        (listener, stream)
    });
    let address = plain.peer_addr().unwrap();
    let said = call(&connector(&ingest), address).await.unwrap_err();
    assert!(said.contains("does not speak TLS"), "{said}");
    drop(speaking.await.unwrap());
}

/// What a program prints, both ways; `None` where it is not installed.
async fn run(program: &'static str, arguments: &[&str]) -> Option<String> {
    let arguments: Vec<_> = arguments.iter().map(ToString::to_string).collect();
    let running = tokio::task::spawn_blocking(move || {
        let mut command = std::process::Command::new(program);
        command.args(arguments).stdin(std::process::Stdio::null()).output()
    });
    let output = running.await.unwrap().ok()?;
    Some([output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openssl_and_curl_understand_us() {
    let authority = Authority::new("mesh");
    let edge = Secret::new(authority.issue(&["localhost", STATS], DAY), &[&authority]);
    let identity = load(&edge);
    let (address, _server) = serve(Acceptor::edge("ingest", &identity, LIMITS)).await;
    let (connect, ca) = (address.to_string(), edge.path("ca.crt").display().to_string());
    let client = ["s_client", "-connect", &connect, "-servername", "localhost", "-CAfile", &ca];
    for (version, alpn) in [("-tls1_3", "h2"), ("-tls1_2", "h2"), ("-tls1_3", "http/1.1")] {
        let arguments = [&client[..], &["-verify_hostname", "localhost", "-alpn", alpn, version]].concat();
        let Some(said) = run("openssl", &arguments).await else { break };
        let ok = said.contains("Verify return code: 0 (ok)");
        assert!(ok && said.contains(&format!("ALPN protocol: {alpn}")), "{version} {alpn}:\n{said}");
    }
    let url = format!("https://localhost:{}/", address.port());
    for (flag, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
        let curl = ["-sS", "-w", "%{http_code} %{http_version}", "--cacert", &ca, flag, &url];
        let Some(said) = run("curl", &curl).await else { break };
        assert_eq!(said, format!("200 {version}"));
    }
    // Between services: openssl may call with a certificate on the list, and not without.
    let caller = Secret::new(authority.issue(&[INGEST], DAY), &[&authority]);
    let (address, _server) = serve(acceptor(&identity)).await;
    let [cert, key] = ["tls.crt", "tls.key"].map(|name| caller.path(name).display().to_string());
    let url = format!("https://localhost:{}/", address.port());
    let curl = ["-sS", "-w", " %{http_version}", "--cacert", &ca, "--http2", &url];
    if let Some(said) = run("curl", &[&curl[..], &["--cert", &cert, "--key", &key]].concat()).await {
        assert_eq!(said, format!("{INGEST} 2"));
        let said = run("curl", &curl).await.unwrap();
        assert!(said.starts_with(" 0curl: ("), "{said}");
    }
}
