//! Keys that sign tokens in tests.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode, jwk::Jwk};
use rcgen::KeyPair;
use serde_json::{Value, json};

/// Made for these tests and used nowhere else: rcgen cannot make RSA keys with ring.
const RSA: &str = include_str!("rsa-for-tests.pem");

/// An issuer's key.
pub struct Issuer {
    pub kid: &'static str,
    algorithm: Algorithm,
    key: EncodingKey,
    /// The public key.
    jwk: Value,
    /// The same, of an Ed25519 pair, as a file holds it.
    #[allow(dead_code)] // not every test that includes this file writes one
    pub pem: String,
}

impl Issuer {
    pub fn rsa(kid: &'static str) -> Self {
        Self::of(kid, Algorithm::RS256, EncodingKey::from_rsa_pem(RSA.as_bytes()).unwrap())
    }

    pub fn p256(kid: &'static str) -> Self {
        let pair = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        Self::of(kid, Algorithm::ES256, EncodingKey::from_ec_pem(pair.serialize_pem().as_bytes()).unwrap())
    }

    pub fn ed25519(kid: &'static str) -> Self {
        let pair = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let key = EncodingKey::from_ed_pem(pair.serialize_pem().as_bytes()).unwrap();
        let x = URL_SAFE_NO_PAD.encode(pair.public_key_raw());
        Self {
            kid,
            algorithm: Algorithm::EdDSA,
            key,
            jwk: json!({"kty": "OKP", "crv": "Ed25519", "kid": kid, "x": x}),
            pem: pair.public_key_pem(),
        }
    }

    fn of(kid: &'static str, algorithm: Algorithm, key: EncodingKey) -> Self {
        let mut jwk = serde_json::to_value(Jwk::from_encoding_key(&key, algorithm).unwrap()).unwrap();
        jwk["kid"] = kid.into();
        Self { kid, algorithm, key, jwk, pem: String::new() }
    }

    /// The public key as an issuer publishes it.
    pub fn jwk(&self) -> Value {
        self.jwk.clone()
    }

    /// A token under this issuer's own name.
    pub fn sign(&self, claims: &Value) -> String {
        self.sign_as(self.kid, claims)
    }

    /// A token under a name.
    pub fn sign_as(&self, kid: &str, claims: &Value) -> String {
        let header = Header { kid: Some(kid.into()), ..Header::new(self.algorithm) };
        encode(&header, claims, &self.key).unwrap()
    }
}

/// A key set as an issuer publishes it.
pub fn set(issuers: &[&Issuer]) -> String {
    json!({ "keys": issuers.iter().map(|issuer| issuer.jwk()).collect::<Vec<_>>() }).to_string()
}

/// Claims that are good for an hour.
pub fn good() -> Value {
    let now = jsonwebtoken::get_current_timestamp();
    json!({
        "sub": "ada", "tenant": "acme", "scope": "classify",
        "aud": "sightline", "iss": "https://issuer.example",
        "iat": now, "nbf": now, "exp": now + 3600,
    })
}

/// The same with one changed; `null` leaves it out.
pub fn with(name: &str, value: Value) -> Value {
    let mut claims = good();
    match value {
        Value::Null => drop(claims.as_object_mut().unwrap().remove(name)),
        value => claims[name] = value,
    }
    claims
}
