//! Tokens that are refused, each for its own reason, and keys that change while tokens are checked.

#![allow(clippy::unwrap_used)] // helpers of tests: a panic is a failed test

#[path = "keys/bad.rs"]
mod bad;
mod keys;

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use bad::Bad;
use jsonwebtoken::{EncodingKey, Header};
use keys::{Issuer, good, set, with};
use serde_json::json;
use sightline_config::HumanDuration;
use sightline_mesh::auth::{AuthConfig, Verifier};
use sightline_telemetry::dependencies::{Condition, Dependencies};
use tempfile::TempDir;
use tonic::Code;

const ISSUER: &str = "https://issuer.example";

/// A folder with a key set, and a verifier of it.
struct Keys {
    folder: TempDir,
    config: AuthConfig,
}

impl Keys {
    fn new(issuers: &[&Issuer]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = AuthConfig {
            jwks_file: Some(folder.path().join("keys.json")),
            issuer: Some(ISSUER.into()),
            reload_interval: HumanDuration::from_millis(20),
            ..AuthConfig::default()
        };
        let keys = Self { folder, config };
        keys.write(&set(issuers));
        keys
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("keys.json")
    }

    /// In one step, as whoever rotates keys should.
    fn write(&self, text: &str) {
        let fresh = self.folder.path().join("fresh");
        fs::write(&fresh, text).unwrap();
        fs::rename(fresh, self.path()).unwrap();
    }

    fn verifier(&self) -> Arc<Verifier> {
        Verifier::from_config(&self.config).unwrap().unwrap()
    }
}

#[test]
fn every_bad_token_is_refused_for_its_own_reason() {
    let (rsa, ec, ed) = (Issuer::rsa("rsa"), Issuer::p256("ec"), Issuer::ed25519("ed"));
    let verifier = Keys::new(&[&rsa, &ec, &ed]).verifier();
    for issuer in [&rsa, &ec, &ed] {
        let claims = verifier.verify(&issuer.sign(&good())).unwrap();
        assert_eq!((claims.sub.as_str(), claims.tenant.as_str()), ("ada", "acme"), "{}", issuer.kid);
    }
    assert!(verifier.verify(&ed.sign(&with("aud", json!(["other", "sightline"])))).is_ok());
    let mut told = BTreeSet::new();
    for Bad { what, token, reason, says } in bad::table(&rsa, &ec, &ed) {
        let error = verifier.verify(&token).expect_err(what);
        assert_eq!((error.code, error.reason.as_str()), (Code::Unauthenticated, reason), "{what}: {error}");
        assert!(error.message.contains(says), "{what}: {error}");
        assert!(!error.message.contains(&token), "{what}: the message repeats the token");
        told.insert((error.reason, error.message));
    }
    assert!(told.len() >= 20, "{} different answers: {told:#?}", told.len());
    let reasons: BTreeSet<_> = told.iter().map(|(reason, _)| reason).collect();
    assert!(reasons.len() >= 12, "{reasons:?}");
}

#[test]
fn a_shared_secret_takes_hs256_and_nothing_else_does() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    fs::write(&path, "of all the secrets this is the longest").unwrap();
    let config = AuthConfig { secret_file: Some(path.clone()), ..AuthConfig::default() };
    let verifier = Verifier::from_config(&config).unwrap().unwrap();
    let secret = EncodingKey::from_secret(b"of all the secrets this is the longest");
    let token = |header| jsonwebtoken::encode(&header, &good(), &secret).unwrap();
    assert!(verifier.verify(&token(Header::default())).is_ok());
    let error = verifier.verify(&Issuer::rsa("a").sign(&good())).unwrap_err();
    assert_eq!(error.reason, "TOKEN_ALGORITHM");
    // Where no key has a name, those of tokens say nothing.
    let forged = EncodingKey::from_secret(b"another secret that is as long as that");
    let named = Header { kid: Some("any".into()), ..Header::default() };
    let forged = jsonwebtoken::encode(&named, &good(), &forged).unwrap();
    assert_eq!(verifier.verify(&forged).unwrap_err().reason, "TOKEN_SIGNATURE");
    // The secret must not be a public key, which is none.
    fs::write(path, "-----BEGIN PUBLIC KEY-----\nand so on and so on").unwrap();
    let said = Verifier::from_config(&config).unwrap_err().to_string();
    assert!(said.starts_with("`auth.secret_file` (") && said.contains("`auth.public_key_file`"), "{said}");
}

/// Waits until the dependency is as `wanted`.
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
async fn keys_in_a_file_are_exchanged_while_tokens_are_checked() {
    let (old, new) = (Issuer::ed25519("old"), Issuer::p256("new"));
    let keys = Keys::new(&[&old]);
    let verifier = keys.verifier();
    let all = Dependencies::default();
    let _watch = verifier.watch(all.register("auth"));
    let [of_old, of_new] = [&old, &new].map(|issuer| issuer.sign(&good()));
    assert_eq!(verifier.verify(&of_new).unwrap_err().reason, "TOKEN_KEY");
    let mut refused = 0;
    // First the new key beside the old one; then issuers sign with it; then the old one goes.
    keys.write(&set(&[&old, &new]));
    let late = Instant::now() + Duration::from_secs(10);
    while verifier.verify(&of_new).is_err() {
        assert!(Instant::now() < late, "the new key is taken");
        refused += usize::from(verifier.verify(&of_old).is_err());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    keys.write(&set(&[&new]));
    while verifier.verify(&of_old).is_ok() {
        assert!(Instant::now() < late, "the old key goes");
        refused += usize::from(verifier.verify(&of_new).is_err());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(refused, 0);
    // A set gone wrong changes nothing, and is said.
    for broken in ["{\"keys\":[]}", "{\"keys\":[", ""] {
        keys.write(broken);
        until(
            &all,
            |condition| matches!(condition, Condition::Degraded(why) if why.contains("`auth.jwks_file`")),
        )
        .await;
        assert!(verifier.verify(&of_new).is_ok(), "{broken}");
    }
    keys.write(&set(&[&old]));
    until(&all, |condition| *condition == Condition::Healthy).await;
    assert!(verifier.verify(&of_old).is_ok());
}
