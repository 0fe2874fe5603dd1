//! Tokens: minted by the binary, asked for by services that run as processes of their own.

use std::{fs, path::PathBuf, time::Duration};

use sightline_mesh::RpcError;
use sightline_proto::{
    ingest::ClassifyRequest,
    stats::{QueryRequest, stats_service_client::StatsServiceClient},
};
use sightline_testkit::{Process, eventually, frames, models::Small};
use tempfile::TempDir;
use tonic::{Code, Request, transport::Channel};

use crate::support::{frame, ingest, sightline};

/// A shared secret in a file, and tokens signed with it.
struct Keys {
    folder: TempDir,
}

impl Keys {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("secret"), "of all the secrets this is the longest\n").unwrap();
        fs::write(folder.path().join("other"), "and this one is somebody else's secret\n").unwrap();
        Self { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A token signed by `sightline token mint` with these further arguments.
    fn mint(&self, secret: &str, arguments: &[&str]) -> Option<String> {
        let secret = self.path(secret).display().to_string();
        let mint = ["token", "mint", "--secret-file", &secret];
        Some(sightline(&[&mint, arguments].concat())?.ok().trim().to_owned())
    }
}

/// Each service in a process of its own, as the Helm chart starts them.
struct Services {
    ingest: Process,
    stats: Process,
    _ratelimiter: Process,
    _classifier: Process,
}

impl Services {
    fn start(keys: &Keys) -> Option<Self> {
        fs::write(keys.path("service"), keys.mint("secret", &["--scope", "service"])?).unwrap();
        let common = [
            format!("auth.secret_file={}", keys.path("secret").display()),
            format!("auth.service_token_file={}", keys.path("service").display()),
            "auth.leeway=0s".into(),
            format!("node.data_dir={}", keys.path("data").display()),
        ];
        let start = |role: &str, own: &[String]| {
            let settings =
                common.iter().chain(own).flat_map(|setting| ["--set", setting]).collect::<Vec<_>>();
            Process::serve(&[role], &settings)
        };
        let model = Small::default().write(keys.folder.path()).display().to_string();
        let ratelimiter = start("ratelimiter", &["ratelimiter.rules=dev".into()])?;
        let classifier = start("classifier", &[format!("classifier.models=[{model:?}]")])?;
        let stats = start("stats", &[])?;
        let upstreams = [("ratelimiter", &ratelimiter), ("classifier", &classifier), ("stats", &stats)]
            .map(|(role, process)| format!("ingest.{role}=[{:?}]", process.uri(role)));
        let ingest = start("ingest", &[&upstreams[..], &["ingest.ratelimiter_away=closed".into()]].concat())?;
        Some(Self { ingest, stats, _ratelimiter: ratelimiter, _classifier: classifier })
    }

    /// Sends a frame with this `authorization`.
    async fn classify(&self, authorization: Option<&str>) -> Result<(), RpcError> {
        let mut request = Request::new(ClassifyRequest { frame: Some(frame(frames::png(1, 32))) });
        if let Some(authorization) = authorization {
            request.metadata_mut().insert("authorization", authorization.parse().unwrap());
        }
        let answer = ingest(&self.ingest).await.classify(request).await;
        answer.map(drop).map_err(|status| RpcError::from_status(&status))
    }

    /// Asks the statistics for the total.
    async fn counted(&self, token: &str) -> Result<u64, RpcError> {
        let channel = Channel::from_shared(self.stats.uri("stats")).unwrap().connect().await.unwrap();
        let mut request = Request::new(QueryRequest::default());
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        let answer = StatsServiceClient::new(channel).query(request).await;
        answer
            .map(|page| page.into_inner().rows.iter().map(|row| row.frames).sum())
            .map_err(|status| RpcError::from_status(&status))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn services_in_four_processes_let_in_who_has_the_right_token_and_say_why_not() {
    let keys = Keys::new();
    let Some(services) = Services::start(&keys) else { return };
    let mint = |secret, arguments: &[&str]| keys.mint(secret, arguments).unwrap();

    let good = mint("secret", &["--user", "ada"]);
    let bearer = format!("Bearer {good}");
    eventually!(services.classify(Some(&bearer)).await.is_ok());
    // The frame went through rate limiter, classifier and statistics, which the services' own token opens.
    let service = mint("secret", &["--scope", "service"]);
    eventually!(services.counted(&service).await == Ok(1));

    let forged = mint("other", &[]);
    let elsewhere = mint("secret", &["--set", "auth.audience=another-mesh"]);
    for (authorization, code, reason) in [
        (None, Code::Unauthenticated, "TOKEN_MISSING"),
        (Some("Basic YWRhOmFkYQ=="), Code::Unauthenticated, "TOKEN_MISSING"),
        (Some("Bearer nonsense"), Code::Unauthenticated, "TOKEN_INVALID"),
        (Some(&*format!("Bearer {forged}")), Code::Unauthenticated, "TOKEN_SIGNATURE"),
        (Some(&*format!("Bearer {elsewhere}")), Code::Unauthenticated, "TOKEN_AUDIENCE"),
        (Some(&*format!("Bearer {service}")), Code::PermissionDenied, "TOKEN_SCOPE"),
    ] {
        let error = services.classify(authorization).await.unwrap_err();
        assert_eq!((error.code, error.reason.as_str()), (code, reason), "{error}");
        let secret = authorization.unwrap_or("Bearer x").split_once(' ').unwrap().1;
        assert!(
            secret.len() < 2 || !error.message.contains(secret),
            "the message repeats the token: {error}"
        );
    }

    // A token that is good for no time at all passes until the clock's second is over, then never again.
    let brief = format!("Bearer {}", mint("secret", &["--lifetime", "0s"]));
    eventually!(
        matches!(services.classify(Some(&brief)).await, Err(error) if error.reason == "TOKEN_EXPIRED"
            && error.code == Code::Unauthenticated)
    );

    let error = services.counted(&good).await.unwrap_err();
    assert_eq!((error.code, error.reason.as_str()), (Code::PermissionDenied, "TOKEN_SCOPE"));

    // A user may not send frames as somebody else.
    let bob = format!("Bearer {}", mint("secret", &["--user", "bob"]));
    let error = services.classify(Some(&bob)).await.unwrap_err();
    assert_eq!((error.code, error.reason.as_str()), (Code::PermissionDenied, "USER_MISMATCH"));

    // The command line shows a token too.
    fs::write(keys.path("token"), &good).unwrap();
    fs::write(keys.path("photo.png"), frames::png(2, 32)).unwrap();
    let [token, photo] = ["token", "photo.png"].map(|name| keys.path(name).display().to_string());
    let endpoint = services.ingest.uri("ingest");
    let classify = ["classify", "--user", "ada", "--endpoint", &endpoint, &photo];
    sightline(&[&classify[..], &["--token-file", &token]].concat()).unwrap().ok();
    let said = sightline(&classify).unwrap();
    assert!(said.code == 1 && said.out.contains("TOKEN_MISSING"), "{said:?}");
}

#[test]
fn a_key_that_cannot_sign_is_named() {
    let keys = Keys::new();
    let secret = keys.path("secret").display().to_string();
    let Some(said) = sightline(&["token", "mint", "--key-file", &secret]) else { return };
    said.refused(&[&secret, "not a PEM private key"]);
    sightline(&["token", "mint", "--secret-file", "/nowhere/secret"]).unwrap().refused(&["/nowhere/secret"]);
    sightline(&["token", "mint"]).unwrap().refused(&["--key-file"]);
}

#[test]
fn serving_beyond_loopback_without_keys_is_refused_with_the_way_out() {
    let beyond = ["--set", "ingest.listen=0.0.0.0:0", "--set", "telemetry.admin_listen=127.0.0.1:0"];
    let Some(said) = sightline(&[&["serve", "ingest"][..], &beyond].concat()) else { return };
    said.refused(&["`ingest.listen` is 0.0.0.0:0, beyond loopback", "`auth.public_key_file`", "--insecure"]);
}

#[test]
fn serving_beyond_loopback_is_let_through_when_told_so_or_with_keys() {
    // Nothing is ever sent to these ports: they are closed as soon as they are open.
    let keys = Keys::new();
    let secret = format!("auth.secret_file={}", keys.path("secret").display());
    for permission in [&["--insecure"][..], &["--set", &secret]] {
        let arguments = [&["--set", "ingest.listen=0.0.0.0:0"][..], permission].concat();
        let Some(process) = Process::serve(&["ingest"], &arguments) else { return };
        assert!(process.address("ingest").ip().is_unspecified());
        assert_eq!(process.terminate(Duration::from_secs(5)).code(), Some(0));
    }
}
