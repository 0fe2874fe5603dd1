//! One token: what it says, and every reason not to believe it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::Algorithm;
use serde_json::{Map, Value};
use tonic::Code;

use super::{Claims, keys::Key};
use crate::error::{RpcError, reason};

/// The longest token: one with RSA-4096 and a hundred scopes has 3 KB.
const MAX_TOKEN_BYTES: usize = 8 << 10;

/// What every token must say.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    pub(super) audience: String,
    pub(super) issuer: Option<String>,
    pub(super) leeway: Duration,
    /// There are keys behind a URL: one that a token names and that is not here may be there.
    pub(super) more_keys: bool,
}

/// A token whose signature has not been looked at.
pub(super) struct Token<'a> {
    signed: &'a str,
    payload: &'a str,
    signature: &'a str,
    algorithm: Algorithm,
    kid: Option<String>,
}

fn refuse(reason: &'static str, message: impl Into<String>) -> RpcError {
    RpcError::new(Code::Unauthenticated, reason, message)
}

impl<'a> Token<'a> {
    /// Takes a token in JWS compact serialisation (RFC 7515 §7.1) apart.
    pub(super) fn read(text: &'a str) -> Result<Self, RpcError> {
        let invalid = |message| refuse(reason::TOKEN_INVALID, message);
        if text.len() > MAX_TOKEN_BYTES {
            let message = format!("the token is longer than {MAX_TOKEN_BYTES} bytes");
            return Err(refuse(reason::TOKEN_TOO_LARGE, message));
        }
        let mut parts = text.split('.');
        let (Some(header), Some(payload), Some(signature), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(invalid("the bearer token is not a JSON Web Token: it does not have three parts"));
        };
        let signed = &text[..header.len() + 1 + payload.len()];
        let header = json(header).ok_or_else(|| invalid("the token's header is not JSON in base64url"))?;
        // What we do not know must not be passed over (RFC 7515 §4.1.11).
        if header.contains_key("crit") {
            return Err(refuse(
                reason::TOKEN_CRITICAL,
                "the token's header has `crit`, which is not supported",
            ));
        }
        let algorithm = algorithm(header.get("alg"))?;
        let kid = match header.get("kid") {
            None => None,
            Some(Value::String(kid)) => Some(kid.clone()),
            Some(_) => return Err(invalid("the token's `kid` is not a text")),
        };
        Ok(Self { signed, payload, signature, algorithm, kid })
    }

    /// The claims, if one of the keys has signed them and all rules hold.
    pub(super) fn verify<'k>(
        &self,
        keys: impl Iterator<Item = &'k Key>,
        rules: &Rules,
    ) -> Result<Claims, RpcError> {
        self.check_signature(keys, rules.more_keys)?;
        let claims = json(self.payload)
            .ok_or_else(|| refuse(reason::TOKEN_INVALID, "the token's claims are not JSON in base64url"))?;
        check_times(&claims, rules.leeway, now())?;
        check_issuer(&claims, rules.issuer.as_deref())?;
        check_audience(&claims, &rules.audience)?;
        serde_json::from_value(Value::Object(claims)).map_err(|_| {
            refuse(reason::TOKEN_CLAIM, "one of the token's `sub`, `tenant` and `scope` is not a text")
        })
    }

    fn check_signature<'k>(
        &self,
        keys: impl Iterator<Item = &'k Key>,
        more_keys: bool,
    ) -> Result<(), RpcError> {
        let (mut named, mut tried) = (false, false);
        // A key without a name is tried too. It does not stand for the one that the token names, where keys have names.
        let (mut have_names, mut is_here) = (more_keys, self.kid.is_none());
        for key in keys {
            have_names |= key.kid.is_some();
            match (&key.kid, &self.kid) {
                (Some(ours), Some(theirs)) if ours != theirs => continue,
                (Some(_), Some(_)) => is_here = true,
                _ => {}
            }
            named = true;
            if key.algorithm != self.algorithm {
                continue;
            }
            tried = true;
            let message = self.signed.as_bytes();
            if jsonwebtoken::crypto::verify(self.signature, message, &key.key, key.algorithm) == Ok(true) {
                return Ok(());
            }
        }
        let (kid, algorithm) = (self.kid.as_deref().unwrap_or_default(), self.algorithm);
        let named = named && (is_here || !have_names);
        Err(match (named, tried && named) {
            (_, true) => refuse(reason::TOKEN_SIGNATURE, "the token's signature does not fit the key"),
            (true, false) => refuse(
                reason::TOKEN_ALGORITHM,
                format!("the token's `alg` is {algorithm:?}, which is not what its key is for"),
            ),
            (false, false) => {
                let kid: String = kid.chars().take(64).collect();
                refuse(reason::TOKEN_KEY, format!("no configured key has the token's `kid` {kid:?}"))
            }
        })
    }
}

fn algorithm(value: Option<&Value>) -> Result<Algorithm, RpcError> {
    let message = match value.and_then(Value::as_str) {
        Some("RS256") => return Ok(Algorithm::RS256),
        Some("ES256") => return Ok(Algorithm::ES256),
        Some("EdDSA") => return Ok(Algorithm::EdDSA),
        // Fits a configured shared secret only: public keys are kept for their own algorithm.
        Some("HS256") => return Ok(Algorithm::HS256),
        Some(none) if none.eq_ignore_ascii_case("none") => {
            "the token is not signed (`alg` is \"none\")".to_owned()
        }
        Some(other) => {
            let shown: String = other.chars().take(16).collect();
            format!("the token's `alg` {shown:?} is not supported: use RS256, ES256 or EdDSA")
        }
        None => "the token's header has no `alg`".to_owned(),
    };
    Err(refuse(reason::TOKEN_ALGORITHM, message))
}

fn json(part: &str) -> Option<Map<String, Value>> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(part).ok()?).ok()
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn missing(claim: &str) -> RpcError {
    refuse(reason::TOKEN_CLAIM_MISSING, format!("the token has no `{claim}`"))
}

fn time(claims: &Map<String, Value>, name: &str) -> Result<Option<f64>, RpcError> {
    match claims.get(name) {
        None => Ok(None),
        Some(value) => match value.as_f64().filter(|seconds| seconds.is_finite() && *seconds >= 0.0) {
            Some(seconds) => Ok(Some(seconds)),
            None => {
                let message = format!("the token's `{name}` is not a number of seconds since 1970");
                Err(refuse(reason::TOKEN_CLAIM, message))
            }
        },
    }
}

fn check_times(claims: &Map<String, Value>, leeway: Duration, now: f64) -> Result<(), RpcError> {
    let leeway = leeway.as_secs_f64();
    let expires = time(claims, "exp")?.ok_or_else(|| missing("exp"))?;
    if expires + leeway < now {
        return Err(refuse(reason::TOKEN_EXPIRED, "the token's `exp` has passed"));
    }
    if time(claims, "nbf")?.is_some_and(|from| from > now + leeway) {
        return Err(refuse(reason::TOKEN_NOT_YET_VALID, "the token's `nbf` is in the future"));
    }
    if time(claims, "iat")?.is_some_and(|issued| issued > now + leeway) {
        let message = "the token's `iat` is in the future: check the issuer's clock";
        return Err(refuse(reason::TOKEN_ISSUED_LATER, message));
    }
    Ok(())
}

fn check_issuer(claims: &Map<String, Value>, issuer: Option<&str>) -> Result<(), RpcError> {
    let Some(issuer) = issuer else { return Ok(()) };
    match claims.get("iss") {
        None => Err(missing("iss")),
        Some(Value::String(theirs)) if theirs == issuer => Ok(()),
        Some(_) => Err(refuse(reason::TOKEN_ISSUER, format!("the token's `iss` is not {issuer:?}"))),
    }
}

/// `aud` is a text or a list of them (RFC 7519 §4.1.3).
fn check_audience(claims: &Map<String, Value>, audience: &str) -> Result<(), RpcError> {
    let named = match claims.get("aud") {
        None => return Err(missing("aud")),
        Some(Value::String(theirs)) => theirs == audience,
        Some(Value::Array(all)) => all.iter().any(|theirs| theirs.as_str() == Some(audience)),
        Some(_) => false,
    };
    if named {
        return Ok(());
    }
    Err(refuse(reason::TOKEN_AUDIENCE, format!("the token's `aud` does not name {audience:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_taken_with_the_leeway_and_not_beyond() {
        let claims = |text: &str| -> Map<String, Value> { serde_json::from_str(text).unwrap() };
        let leeway = Duration::from_secs(30);
        for (text, good) in [
            (r#"{"exp":1000}"#, true),
            (r#"{"exp":970}"#, true),
            (r#"{"exp":969}"#, false),
            (r#"{"exp":970.5}"#, true),
            (r#"{"exp":2000,"nbf":1030}"#, true),
            (r#"{"exp":2000,"nbf":1031}"#, false),
            (r#"{"exp":2000,"iat":1030}"#, true),
            (r#"{"exp":2000,"iat":1031}"#, false),
            (r#"{"exp":-1}"#, false),
            (r#"{"exp":null}"#, false),
        ] {
            assert_eq!(check_times(&claims(text), leeway, 1000.0).is_ok(), good, "{text}");
        }
    }
}
