//! JWT (RFC 7519) at the edge of a service: who calls, for which tenant, and what they may do.

use std::{collections::HashMap, fs, path::PathBuf, sync::Arc};

use jsonwebtoken::{
    Algorithm, DecodingKey, Validation, decode, decode_header,
    errors::{Error, ErrorKind},
    jwk::JwkSet,
};
use serde::{Deserialize, Serialize};
use sightline_config::HumanDuration;
use tonic::{Code, Request, Status, metadata::MetadataMap, service::Interceptor};

use crate::error::{RpcError, reason};

sightline_config::settings! {
    /// Who may call. Without any key every caller is let in, which `serve` allows only on loopback or with --insecure.
    pub struct AuthConfig in "auth" {
        /// A JSON Web Key Set (RFC 7517) of public keys: RS256, ES256 or EdDSA.
        pub jwks_file: Option<PathBuf> = None,
        /// A PEM public key: RSA, P-256 or Ed25519.
        pub public_key_file: Option<PathBuf> = None,
        /// A shared secret for HS256, at least 32 bytes: for trials; prefer public keys.
        pub secret_file: Option<PathBuf> = None,
        /// What a token's `aud` must name.
        pub audience: String = "sightline".into(),
        /// What a token's `iss` must be; unset: anything.
        pub issuer: Option<String> = None,
        /// How far clocks may be apart when `exp` and `nbf` are checked.
        pub leeway: HumanDuration = HumanDuration::from_secs(30),
        /// The token this process shows to other services of the mesh; it needs the scope `service`.
        pub service_token_file: Option<PathBuf> = None,
    }
}

/// Why the configured keys cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("`auth.{field}` ({}): {problem}", path.display())]
pub struct AuthError {
    field: &'static str,
    path: PathBuf,
    problem: String,
}

/// What a token says, once verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The user.
    #[serde(default)]
    pub sub: String,
    /// The tenant; empty for a single-tenant installation.
    #[serde(default)]
    pub tenant: String,
    /// What the bearer may do, separated by spaces (RFC 8693 §4.2): `classify`, `service`.
    #[serde(default)]
    pub scope: String,
}

impl Claims {
    /// Whether the token has this scope.
    pub fn has_scope(&self, scope: &str) -> bool {
        self.scope.split(' ').any(|granted| granted == scope)
    }
}

/// Checks tokens against the configured keys.
pub struct Verifier {
    keys: Vec<(Option<String>, Vec<Algorithm>, DecodingKey)>,
    template: Validation,
    audience: String,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Verifier({} keys)", self.keys.len())
    }
}

/// The shortest HS256 secret, by RFC 7518 §3.2.
const MIN_SECRET_BYTES: usize = 32;

impl Verifier {
    /// Reads the configured keys; `None` when no setting names any. A setting that is there and gives no usable key is
    /// an error, so that a file gone wrong shuts the door instead of opening it.
    ///
    /// # Errors
    /// [`AuthError`] naming the setting and the file.
    pub fn from_config(config: &AuthConfig) -> Result<Option<Arc<Self>>, AuthError> {
        let mut keys = Vec::new();
        if let Some(path) = &config.jwks_file {
            let fail = |problem: String| AuthError { field: "jwks_file", path: path.clone(), problem };
            let text = fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
            let set: JwkSet = serde_json::from_str(&text).map_err(|error| fail(error.to_string()))?;
            for jwk in &set.keys {
                let key = DecodingKey::from_jwk(jwk).map_err(|error| fail(error.to_string()))?;
                let algorithms = algorithms_of(&key);
                if !algorithms.is_empty() {
                    keys.push((jwk.common.key_id.clone(), algorithms, key));
                }
            }
            // A rotation that wrote an empty set must not let everybody in.
            if keys.is_empty() {
                let count = set.keys.len();
                return Err(fail(format!(
                    "none of its {count} keys is a public key of RSA, P-256 or Ed25519: write at least one into it"
                )));
            }
        }
        if let Some(path) = &config.public_key_file {
            let fail = |problem: String| AuthError { field: "public_key_file", path: path.clone(), problem };
            let pem = fs::read(path).map_err(|error| fail(error.to_string()))?;
            let key = DecodingKey::from_ed_pem(&pem)
                .or_else(|_| DecodingKey::from_ec_pem(&pem))
                .or_else(|_| DecodingKey::from_rsa_pem(&pem))
                .map_err(|_| fail("not a PEM public key of Ed25519, P-256 or RSA".into()))?;
            keys.push((None, algorithms_of(&key), key));
        }
        if let Some(path) = &config.secret_file {
            let fail = |problem: String| AuthError { field: "secret_file", path: path.clone(), problem };
            let secret = fs::read(path).map_err(|error| fail(error.to_string()))?;
            let secret = secret.trim_ascii();
            if secret.len() < MIN_SECRET_BYTES {
                return Err(fail(format!("{} bytes; HS256 needs {MIN_SECRET_BYTES} or more", secret.len())));
            }
            keys.push((None, vec![Algorithm::HS256], DecodingKey::from_secret(secret)));
        }
        if keys.is_empty() {
            return Ok(None);
        }
        let mut template = Validation::new(Algorithm::RS256);
        template.set_audience(&[&config.audience]);
        template.set_required_spec_claims(&["exp", "aud"]);
        template.leeway = config.leeway.as_secs();
        template.validate_nbf = true;
        if let Some(issuer) = &config.issuer {
            template.set_issuer(&[issuer]);
        }
        Ok(Some(Arc::new(Self { keys, template, audience: config.audience.clone() })))
    }

    /// Verifies one token.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` with one of the `TOKEN_*` reasons; the message never repeats the token.
    pub fn verify(&self, token: &str) -> Result<Claims, RpcError> {
        let refuse = |reason, message: String| RpcError::new(Code::Unauthenticated, reason, message);
        let header = decode_header(token)
            .map_err(|_| refuse(reason::TOKEN_INVALID, "the bearer token is not a JSON Web Token".into()))?;
        let mut failure = refuse(
            reason::TOKEN_INVALID,
            format!("no configured key takes this token (alg {:?}, kid {:?})", header.alg, header.kid),
        );
        for (kid, algorithms, key) in &self.keys {
            let other_key = matches!((kid, &header.kid), (Some(ours), Some(theirs)) if ours != theirs);
            if other_key || !algorithms.contains(&header.alg) {
                continue;
            }
            let mut validation = self.template.clone();
            validation.algorithms = vec![header.alg];
            match decode::<Claims>(token, key, &validation) {
                Ok(data) => return Ok(data.claims),
                Err(error) => failure = self.explain(&error),
            }
        }
        Err(failure)
    }

    fn explain(&self, error: &Error) -> RpcError {
        let (reason, message) = match error.kind() {
            ErrorKind::ExpiredSignature => (reason::TOKEN_EXPIRED, "the token's `exp` has passed".to_owned()),
            ErrorKind::ImmatureSignature => {
                (reason::TOKEN_EXPIRED, "the token's `nbf` is in the future".to_owned())
            }
            ErrorKind::InvalidAudience => {
                (reason::TOKEN_AUDIENCE, format!("the token's `aud` does not name {:?}", self.audience))
            }
            ErrorKind::InvalidIssuer => {
                (reason::TOKEN_INVALID, "the token's `iss` is not trusted".to_owned())
            }
            ErrorKind::MissingRequiredClaim(claim) => {
                (reason::TOKEN_INVALID, format!("the token has no `{claim}`"))
            }
            ErrorKind::InvalidSignature => {
                (reason::TOKEN_INVALID, "the token's signature does not fit the key".to_owned())
            }
            _ => (reason::TOKEN_INVALID, "the token's claims cannot be read".to_owned()),
        };
        RpcError::new(Code::Unauthenticated, reason, message)
    }
}

fn algorithms_of(key: &DecodingKey) -> Vec<Algorithm> {
    use jsonwebtoken::AlgorithmFamily as Family;
    match key.family() {
        Family::Rsa => vec![Algorithm::RS256],
        Family::Ec => vec![Algorithm::ES256],
        Family::Ed => vec![Algorithm::EdDSA],
        // A JWKS holds public keys; a symmetric one in it is a mistake, not a key.
        _ => vec![],
    }
}

/// Stands before a service: lets a call in when its token verifies and has the scope, and hands the [`Claims`] on.
#[derive(Debug, Clone)]
pub struct Guard {
    verifier: Option<Arc<Verifier>>,
    scope: &'static str,
}

impl Guard {
    /// A guard that asks for `scope`; without a verifier everybody passes.
    pub fn new(verifier: Option<Arc<Verifier>>, scope: &'static str) -> Self {
        Self { verifier, scope }
    }

    fn admit(&self, metadata: &MetadataMap) -> Result<Option<Claims>, RpcError> {
        let Some(verifier) = &self.verifier else { return Ok(None) };
        let token = metadata
            .get("authorization")
            .and_then(|value| value.to_str().ok())
            .and_then(|value| value.strip_prefix("Bearer ").or_else(|| value.strip_prefix("bearer ")));
        let missing = "send the metadata `authorization: Bearer TOKEN`";
        let token =
            token.ok_or_else(|| RpcError::new(Code::Unauthenticated, reason::TOKEN_MISSING, missing))?;
        let claims = verifier.verify(token.trim())?;
        if !claims.has_scope(self.scope) {
            let message = format!("the token's `scope` lacks {:?}", self.scope);
            return Err(RpcError::new(Code::PermissionDenied, reason::TOKEN_SCOPE, message));
        }
        Ok(Some(claims))
    }
}

impl Interceptor for Guard {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(claims) = self.admit(request.metadata())? {
            request.extensions_mut().insert(claims);
        }
        Ok(request)
    }
}

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
    use jsonwebtoken::{EncodingKey, Header, encode};
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
    let fail = |problem: String| AuthError { field: "service_token_file", path: path.clone(), problem };
    let token = fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
    if decode_header(token.trim()).is_err() {
        return Err(fail("not a JSON Web Token".into()));
    }
    Ok(HashMap::from([("authorization", format!("Bearer {}", token.trim()))]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The Ed25519 key of RFC 8037, appendix A.2.
    const PUBLIC: &str =
        r#"{"kty":"OKP","crv":"Ed25519","kid":"a","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}"#;
    const SYMMETRIC: &str = r#"{"kty":"oct","kid":"b","k":"AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ"}"#;

    fn with_key_set(keys: &str) -> Result<Option<Arc<Verifier>>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.json");
        fs::write(&path, format!(r#"{{"keys":[{keys}]}}"#)).unwrap();
        let config = AuthConfig { jwks_file: Some(path), ..AuthConfig::default() };
        Verifier::from_config(&config).map_err(|error| error.to_string())
    }

    #[test]
    fn a_key_set_without_a_usable_key_is_an_error_and_not_an_open_door() {
        for (keys, count) in [("", "none of its 0 keys"), (SYMMETRIC, "none of its 1 keys")] {
            let error = with_key_set(keys).unwrap_err();
            assert!(error.starts_with("`auth.jwks_file` (") && error.contains("keys.json"), "{error}");
            assert!(error.contains(count), "{error}");
        }
    }

    #[test]
    fn what_a_key_set_holds_besides_public_keys_is_left_out() {
        let verifier = with_key_set(&format!("{SYMMETRIC},{PUBLIC}")).unwrap().unwrap();
        assert_eq!(verifier.keys.len(), 1);
    }

    #[test]
    fn only_without_any_setting_is_there_no_verifier() {
        assert!(Verifier::from_config(&AuthConfig::default()).unwrap().is_none());
    }
}
