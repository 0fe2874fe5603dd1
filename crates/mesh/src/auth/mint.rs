//! Signing tokens, for trials and tests, and the token that this process shows.

use std::{collections::HashMap, fs};

use jsonwebtoken::{Algorithm, EncodingKey, Header, decode_header, encode};
use serde::Serialize;

use super::{AuthConfig, AuthError, Claims};

/// A token's content as [`mint`] signs it.
#[derive(Debug, Serialize)]
struct Minted<'a> {
    #[serde(flatten)]
    claims: &'a Claims,
    aud: &'a str,
    iss: Option<&'a str>,
    iat: u64,
    exp: u64,
}

/// What signs a token.
#[derive(Debug)]
pub enum SigningKey<'a> {
    /// HS256.
    Secret(&'a [u8]),
    /// A PEM private key (PKCS#8): Ed25519, P-256 or RSA.
    Pem(&'a [u8]),
}

/// Signs a token for `sightline token mint` and for tests.
///
/// # Errors
/// A text saying why the key cannot sign.
pub fn mint(
    key: &SigningKey<'_>,
    claims: &Claims,
    audience: &str,
    issuer: Option<&str>,
    lifetime: std::time::Duration,
) -> Result<String, String> {
    let (algorithm, key) = match key {
        SigningKey::Secret(secret) => (Algorithm::HS256, EncodingKey::from_secret(secret.trim_ascii())),
        SigningKey::Pem(pem) => EncodingKey::from_ed_pem(pem)
            .map(|key| (Algorithm::EdDSA, key))
            .or_else(|_| EncodingKey::from_ec_pem(pem).map(|key| (Algorithm::ES256, key)))
            .or_else(|_| EncodingKey::from_rsa_pem(pem).map(|key| (Algorithm::RS256, key)))
            .map_err(|_| "not a PEM private key (PKCS#8) of Ed25519, P-256 or RSA".to_owned())?,
    };
    let iat = jsonwebtoken::get_current_timestamp();
    let minted = Minted { claims, aud: audience, iss: issuer, iat, exp: iat + lifetime.as_secs() };
    encode(&Header::new(algorithm), &minted, &key).map_err(|error| error.to_string())
}

/// Metadata that goes with every call of this process to another service.
///
/// # Errors
/// [`AuthError`] when the file cannot be read or holds no token.
pub fn service_token(config: &AuthConfig) -> Result<HashMap<&'static str, String>, AuthError> {
    let Some(path) = &config.service_token_file else { return Ok(HashMap::new()) };
    let fail = |problem: String| AuthError::of("service_token_file", path, problem);
    let token = fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
    if decode_header(token.trim()).is_err() {
        return Err(fail("not a JSON Web Token".into()));
    }
    Ok(HashMap::from([("authorization", format!("Bearer {}", token.trim()))]))
}
