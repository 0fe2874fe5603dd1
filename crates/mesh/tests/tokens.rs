//! Tokens that are refused, each for its own reason, and keys that change while tokens are checked.

#![allow(clippy::unwrap_used)] // helpers of tests: a panic is a failed test

mod keys;

use std::{
    collections::BTreeSet,
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{EncodingKey, Header};
use keys::{Issuer, good, set, with};
use serde_json::{Value, json};
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

fn encode(part: &Value) -> String {
    URL_SAFE_NO_PAD.encode(part.to_string())
}

/// Something that nobody signed.
fn unsigned(header: &Value, claims: &Value) -> String {
    format!("{}.{}.", encode(header), encode(claims))
}

struct Bad {
    what: &'static str,
    token: String,
    reason: &'static str,
    /// Part of the message, which tells cases of one reason apart.
    says: &'static str,
}

fn bad(what: &'static str, token: String, reason: &'static str, says: &'static str) -> Bad {
    Bad { what, token, reason, says }
}

/// Tokens that cannot be read, or whose signature is not to be believed.
fn badly_signed(rsa: &Issuer, ec: &Issuer, ed: &Issuer) -> Vec<Bad> {
    let token = ed.sign(&good());
    let parts: Vec<&str> = token.split('.').collect();
    let swapped = format!("{}.{}.{}", parts[0], encode(&with("sub", json!("bob"))), parts[2]);
    // A shared secret made of what everybody knows: the public key.
    let public = EncodingKey::from_secret(rsa.jwk()["n"].as_str().unwrap().as_bytes());
    let confused = Header { kid: Some(rsa.kid.into()), ..Header::default() };
    let confused = jsonwebtoken::encode(&confused, &good(), &public).unwrap();
    let crit = json!({"alg": "EdDSA", "kid": ed.kid, "crit": ["b64"], "b64": false});
    let stranger = Issuer::ed25519("stranger");
    let impostor = Issuer::ed25519(ed.kid);
    vec![
        bad("one word", "nonsense".into(), "TOKEN_INVALID", "three parts"),
        bad("five parts, as if encrypted", "a.b.c.d.e".into(), "TOKEN_INVALID", "three parts"),
        bad("a header of nothing", format!("..{}", parts[2]), "TOKEN_INVALID", "header is not JSON"),
        bad("claims that are no JSON", ed.sign(&json!("text")), "TOKEN_INVALID", "claims are not JSON"),
        bad(
            "a kid that is a number",
            unsigned(&json!({"alg":"EdDSA","kid":1}), &good()),
            "TOKEN_INVALID",
            "`kid`",
        ),
        bad("far too long", "x".repeat(9000), "TOKEN_TOO_LARGE", "8192 bytes"),
        bad("alg none", unsigned(&json!({"alg": "none"}), &good()), "TOKEN_ALGORITHM", "not signed"),
        bad("alg nOnE", unsigned(&json!({"alg": "nOnE"}), &good()), "TOKEN_ALGORITHM", "not signed"),
        bad("no alg", unsigned(&json!({"kid": ed.kid}), &good()), "TOKEN_ALGORITHM", "no `alg`"),
        bad(
            "alg PS512",
            unsigned(&json!({"alg": "PS512"}), &good()),
            "TOKEN_ALGORITHM",
            "\"PS512\" is not supported",
        ),
        bad("HS256 with the public key", confused, "TOKEN_ALGORITHM", "HS256, which is not what"),
        bad(
            "another key's algorithm",
            ec.sign_as(rsa.kid, &good()),
            "TOKEN_ALGORITHM",
            "ES256, which is not what",
        ),
        bad("crit", unsigned(&crit, &good()), "TOKEN_CRITICAL", "`crit`"),
        bad("a kid nobody has", stranger.sign(&good()), "TOKEN_KEY", "\"stranger\""),
        bad("another key under our kid", impostor.sign(&good()), "TOKEN_SIGNATURE", "does not fit"),
        bad("other claims under the signature", swapped, "TOKEN_SIGNATURE", "does not fit"),
        bad("no signature", format!("{}.{}.", parts[0], parts[1]), "TOKEN_SIGNATURE", "does not fit"),
        bad("half a signature", token[..token.len() - 20].into(), "TOKEN_SIGNATURE", "does not fit"),
    ]
}

/// Tokens that are signed well and say the wrong thing.
fn badly_claimed(ed: &Issuer) -> Vec<Bad> {
    let now = jsonwebtoken::get_current_timestamp();
    let claim = |name: &str, value: Value| ed.sign(&with(name, value));
    vec![
        bad("expired", claim("exp", json!(now - 31)), "TOKEN_EXPIRED", "`exp` has passed"),
        bad("without exp", claim("exp", Value::Null), "TOKEN_CLAIM_MISSING", "no `exp`"),
        bad("exp in words", claim("exp", json!("tomorrow")), "TOKEN_CLAIM", "`exp` is not a number"),
        bad("not yet valid", claim("nbf", json!(now + 60)), "TOKEN_NOT_YET_VALID", "`nbf`"),
        bad("nbf in words", claim("nbf", json!("now")), "TOKEN_CLAIM", "`nbf` is not a number"),
        bad("issued tomorrow", claim("iat", json!(now + 86_400)), "TOKEN_ISSUED_LATER", "`iat`"),
        bad(
            "another audience",
            claim("aud", json!("somebody")),
            "TOKEN_AUDIENCE",
            "does not name \"sightline\"",
        ),
        bad(
            "other audiences",
            claim("aud", json!(["a", "b"])),
            "TOKEN_AUDIENCE",
            "does not name \"sightline\"",
        ),
        bad("without aud", claim("aud", Value::Null), "TOKEN_CLAIM_MISSING", "no `aud`"),
        bad("another issuer", claim("iss", json!("https://evil.example")), "TOKEN_ISSUER", "`iss` is not"),
        bad("without iss", claim("iss", Value::Null), "TOKEN_CLAIM_MISSING", "no `iss`"),
        bad("a sub that is a list", claim("sub", json!(["ada", "bob"])), "TOKEN_CLAIM", "is not a text"),
    ]
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
    let table: Vec<Bad> = badly_signed(&rsa, &ec, &ed).into_iter().chain(badly_claimed(&ed)).collect();
    for Bad { what, token, reason, says } in table {
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
