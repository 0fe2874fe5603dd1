//! Keys that tokens are checked with.

use std::{fs, io::Read, path::Path};

use jsonwebtoken::{
    Algorithm, DecodingKey,
    jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse},
};
use serde::Deserialize;
use serde_json::Value;

use super::{AuthConfig, AuthError};

/// The largest file or answer with keys: hundreds of RSA keys.
pub(super) const MAX_KEYS_BYTES: usize = 256 << 10;
/// Keys of one set. A token without `kid` is tried with each that fits its algorithm.
const MAX_KEYS: usize = 64;
/// The shortest HS256 secret, by RFC 7518 §3.2.
const MIN_SECRET_BYTES: usize = 32;
/// RSA keys, in bytes of the modulus: RFC 7518 §3.3 asks for 2048 bits; beyond 8192 a check costs milliseconds.
const RSA_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;

/// One key, for one algorithm: a token cannot choose how a key is used.
#[derive(Clone)]
pub(super) struct Key {
    pub(super) kid: Option<String>,
    pub(super) algorithm: Algorithm,
    pub(super) key: DecodingKey,
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Value>,
}

/// Reads a JSON Web Key Set. Keys that are not for us (other kinds, for encryption, symmetric) are left out, as RFC 7517
/// §5 asks; a set that leaves none is an error: a rotation that wrote an empty set must not pass for one.
pub(super) fn read_set(text: &[u8]) -> Result<Vec<Key>, String> {
    let set: Set =
        serde_json::from_slice(text).map_err(|error| format!("is no JSON Web Key Set: {error}"))?;
    let count = set.keys.len();
    if count > MAX_KEYS {
        return Err(format!("holds {count} keys; at most {MAX_KEYS} are taken"));
    }
    let keys: Vec<_> = set.keys.into_iter().filter_map(read_key).collect();
    if keys.is_empty() {
        return Err(format!(
            "none of its {count} keys is a public key of RSA, P-256 or Ed25519: write at least one into it"
        ));
    }
    Ok(keys)
}

fn read_key(value: Value) -> Option<Key> {
    let jwk: Jwk = serde_json::from_value(value).ok()?;
    if jwk.common.public_key_use.as_ref().is_some_and(|usage| *usage != PublicKeyUse::Signature) {
        return None;
    }
    let (algorithm, declared) = match &jwk.algorithm {
        AlgorithmParameters::RSA(key) if RSA_BYTES.contains(&(key.n.len() * 3 / 4)) => {
            (Algorithm::RS256, KeyAlgorithm::RS256)
        }
        AlgorithmParameters::EllipticCurve(key) if key.curve == EllipticCurve::P256 => {
            (Algorithm::ES256, KeyAlgorithm::ES256)
        }
        AlgorithmParameters::OctetKeyPair(key) if key.curve == EllipticCurve::Ed25519 => {
            (Algorithm::EdDSA, KeyAlgorithm::EdDSA)
        }
        _ => return None,
    };
    // A key that is declared for another algorithm is not used for ours.
    if jwk.common.key_algorithm.is_some_and(|theirs| theirs != declared) {
        return None;
    }
    let key = DecodingKey::from_jwk(&jwk).ok()?;
    Some(Key { kid: jwk.common.key_id, algorithm, key })
}

/// Reads every file that `config` names. Blocks on the disk.
pub(super) fn read_files(config: &AuthConfig) -> Result<Vec<Key>, AuthError> {
    let mut keys = Vec::new();
    if let Some(path) = &config.jwks_file {
        let text = load("jwks_file", path)?;
        keys.extend(read_set(&text).map_err(|problem| AuthError::of("jwks_file", path, problem))?);
    }
    if let Some(path) = &config.public_key_file {
        let pem = load("public_key_file", path)?;
        let (algorithm, key) = from_pem(&pem).ok_or_else(|| {
            AuthError::of("public_key_file", path, "not a PEM public key of Ed25519, P-256 or RSA")
        })?;
        keys.push(Key { kid: None, algorithm, key });
    }
    if let Some(path) = &config.secret_file {
        let secret = load("secret_file", path)?;
        let secret = secret.trim_ascii();
        if secret.len() < MIN_SECRET_BYTES {
            let problem = format!("{} bytes; HS256 needs {MIN_SECRET_BYTES} or more", secret.len());
            return Err(AuthError::of("secret_file", path, problem));
        }
        // A public key here would let everybody who has it sign.
        if secret.starts_with(b"-----BEGIN") {
            let problem = "a PEM file is no shared secret: name it in `auth.public_key_file`";
            return Err(AuthError::of("secret_file", path, problem));
        }
        keys.push(Key { kid: None, algorithm: Algorithm::HS256, key: DecodingKey::from_secret(secret) });
    }
    Ok(keys)
}

fn from_pem(pem: &[u8]) -> Option<(Algorithm, DecodingKey)> {
    DecodingKey::from_ed_pem(pem)
        .map(|key| (Algorithm::EdDSA, key))
        .or_else(|_| DecodingKey::from_ec_pem(pem).map(|key| (Algorithm::ES256, key)))
        .or_else(|_| DecodingKey::from_rsa_pem(pem).map(|key| (Algorithm::RS256, key)))
        .ok()
}

fn load(field: &'static str, path: &Path) -> Result<Vec<u8>, AuthError> {
    read_bounded(path).map_err(|problem| AuthError::of(field, path, problem))
}

/// At most [`MAX_KEYS_BYTES`] of a file.
fn read_bounded(path: &Path) -> Result<Vec<u8>, String> {
    let mut content = Vec::new();
    let file = fs::File::open(path).map_err(|error| error.to_string())?;
    file.take(MAX_KEYS_BYTES as u64 + 1).read_to_end(&mut content).map_err(|error| error.to_string())?;
    if content.len() > MAX_KEYS_BYTES {
        return Err(format!("is larger than {MAX_KEYS_BYTES} bytes"));
    }
    Ok(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The Ed25519 key of RFC 8037, appendix A.2.
    const PUBLIC: &str =
        r#"{"kty":"OKP","crv":"Ed25519","kid":"a","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
    const OTHERS: [&str; 5] = [
        r#"{"kty":"oct","kid":"b","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ"}"#,
        r#"{"kty":"EC","crv":"P-384","x":"AA","y":"AA"}"#,
        r#"{"kty":"RSA","n":"c2hvcnQ","e":"AQAB"}"#,
        r#"{"kty":"AKP","alg":"ML-DSA-44","pub":"AA"}"#,
        r#"{"no":"key"}"#,
    ];

    fn set(keys: &[&str]) -> Result<Vec<Key>, String> {
        read_set(format!(r#"{{"keys":[{}]}}"#, keys.join(",")).as_bytes())
    }

    #[test]
    fn a_set_without_a_usable_key_is_an_error_and_not_an_open_door() {
        for (keys, count) in [(&[][..], "none of its 0 keys"), (&OTHERS, "none of its 5 keys")] {
            let problem = set(keys).err().unwrap();
            assert!(problem.contains(count), "{problem}");
        }
        assert!(read_set(b"{}").is_err() && read_set(b"<html>").is_err());
        assert!(set(&[PUBLIC; MAX_KEYS + 1]).err().unwrap().contains("65 keys"));
    }

    #[test]
    fn what_a_set_holds_besides_our_public_keys_is_left_out() {
        let mut all = OTHERS.to_vec();
        all.insert(2, PUBLIC);
        let encrypts = PUBLIC.replace("\"kid\"", "\"use\":\"enc\",\"kid\"");
        let signs = PUBLIC.replace("\"kid\"", "\"use\":\"sig\",\"alg\":\"EdDSA\",\"kid\"");
        let other = PUBLIC.replace("\"kid\"", "\"alg\":\"ES256\",\"kid\"");
        all.extend([encrypts.as_str(), signs.as_str(), other.as_str()]);
        assert_eq!(set(&all).map(|keys| keys.len()), Ok(2));
    }
}
