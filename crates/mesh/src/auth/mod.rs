//! Who calls, for which tenant, and what they may do: JWT (RFC 7519) at the edge, certificates between services.
//!
//! - [`Verifier`]: checks tokens with keys from files and a URL, both of which may change while it runs.
//! - [`Guard`]: stands before a service and lets calls in. What is known of the caller are [`Claims`] in the request's
//!   extensions.
//! - [`forward`]: hands the claims of a call on to the next service, as the metadata [`CLAIMS_KEY`]. A guard at the edge
//!   removes that metadata from whatever a client sends; a guard between services believes it from a peer that proved its
//!   identity, or as [`ForwardTrust`] says. Streams that carry messages of many users name user and tenant in each
//!   message instead; those too come from the claims that the edge verified.

mod fetch;
mod forward;
mod guard;
mod keys;
mod mint;
mod remote;
mod token;
mod verifier;

use std::path::{Path, PathBuf};

pub use forward::{CLAIMS_KEY, ForwardTrust, forward};
pub use guard::{Guard, Guarded};
pub use mint::{SigningKey, mint, service_token};
use serde::{Deserialize, Serialize};
use sightline_config::{HumanDuration, ServerUrl};
pub use verifier::Verifier;

sightline_config::settings! {
    /// Who may call. Without any key every caller is let in, which `serve` allows only on loopback or with --insecure.
    /// Files are read again when they change.
    pub struct AuthConfig in "auth" {
        /// A JSON Web Key Set (RFC 7517) of public keys: RS256, ES256 or EdDSA.
        pub jwks_file: Option<PathBuf> = None,
        /// The same behind a URL (`https`, or `http` on networks that are trusted). While it cannot be fetched the last keys
        /// stay; before the first time tokens are answered UNAVAILABLE.
        pub jwks_url: Option<ServerUrl> = None,
        /// The authorities of that server's certificate, PEM; unset: the system's.
        pub jwks_ca_file: Option<PathBuf> = None,
        /// How often the URL is fetched.
        pub jwks_refresh: HumanDuration = HumanDuration::from_secs(300),
        /// The least time between two fetches that tokens with an unknown `kid` may cause, and after one that failed.
        pub jwks_min_refresh: HumanDuration = HumanDuration::from_secs(10),
        /// How long a fetch may take.
        pub jwks_timeout: HumanDuration = HumanDuration::from_secs(5),
        /// A PEM public key: RSA, P-256 or Ed25519.
        pub public_key_file: Option<PathBuf> = None,
        /// A shared secret for HS256, at least 32 bytes: for trials; prefer public keys.
        pub secret_file: Option<PathBuf> = None,
        /// How often the files are looked at.
        pub reload_interval: HumanDuration = HumanDuration::from_secs(10),
        /// What a token's `aud` must name.
        pub audience: String = "sightline".into(),
        /// What a token's `iss` must be; unset: anything.
        pub issuer: Option<String> = None,
        /// How far clocks may be apart when `exp`, `nbf` and `iat` are checked.
        pub leeway: HumanDuration = HumanDuration::from_secs(30),
        /// The token this process shows to other services of the mesh; it needs the scope `service`. With mutual TLS a
        /// certificate does.
        pub service_token_file: Option<PathBuf> = None,
    }
}

/// Why the configured keys cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`auth.{field}` ({subject}): {problem}")]
pub struct AuthError {
    field: &'static str,
    /// The file or the URL.
    subject: String,
    problem: String,
}

impl AuthError {
    fn of(field: &'static str, path: &Path, problem: impl Into<String>) -> Self {
        Self { field, subject: path.display().to_string(), problem: problem.into() }
    }
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
