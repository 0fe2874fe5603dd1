//! Bad tokens of every kind: for the verifier by itself, and for a real server.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Value, json};

use crate::keys::{Issuer, good, with};

/// All of them, for a key set of these three and the issuer `https://issuer.example`.
pub fn table(rsa: &Issuer, ec: &Issuer, ed: &Issuer) -> Vec<Bad> {
    badly_signed(rsa, ec, ed).into_iter().chain(badly_claimed(ed)).collect()
}

fn encode(part: &Value) -> String {
    URL_SAFE_NO_PAD.encode(part.to_string())
}

/// Something that nobody signed.
fn unsigned(header: &Value, claims: &Value) -> String {
    format!("{}.{}.", encode(header), encode(claims))
}

/// A token, and what is said of it.
pub struct Bad {
    pub what: &'static str,
    pub token: String,
    pub reason: &'static str,
    /// Part of the message, which tells cases of one reason apart.
    pub says: &'static str,
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
