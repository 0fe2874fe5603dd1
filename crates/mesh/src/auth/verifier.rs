//! Tokens against keys that may change.

use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;
use sightline_telemetry::dependencies::{Condition, Dependency};
use tokio::time::sleep;
use tokio_util::task::AbortOnDropHandle;
use tonic::Code;
use tracing::info;

use super::{
    AuthConfig, AuthError, Claims,
    keys::{Key, read_files},
    remote::{Looked, Remote},
    token::{Rules, Token},
};
use crate::error::{RpcError, reason};

/// A file that cannot be used is read again after this before it counts as bad: it may be written just now.
const SETTLE: std::time::Duration = std::time::Duration::from_millis(250);

/// Checks tokens against the configured keys.
pub struct Verifier {
    config: AuthConfig,
    rules: Rules,
    local: ArcSwap<Vec<Key>>,
    remote: Option<Remote>,
    /// Why the files as they are now cannot be used.
    bad_files: Mutex<Option<AuthError>>,
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Verifier({} keys in files)", self.local.load().len())
    }
}

impl Verifier {
    /// Reads the configured keys; `None` when no setting names any. A setting that is there and gives no usable key is
    /// an error, so that a file gone wrong shuts the door instead of opening it. Keys behind a URL are fetched by
    /// [`Verifier::watch`]. Blocks on the disk, for a start.
    ///
    /// # Errors
    /// [`AuthError`] naming the setting and the file.
    pub fn from_config(config: &AuthConfig) -> Result<Option<Arc<Self>>, AuthError> {
        let local = read_files(config)?;
        let remote = Remote::from_config(config)?;
        if local.is_empty() && remote.is_none() {
            return Ok(None);
        }
        let rules = Rules {
            audience: config.audience.clone(),
            issuer: config.issuer.clone(),
            leeway: config.leeway.0,
            more_keys: remote.is_some(),
        };
        Ok(Some(Arc::new(Self {
            config: config.clone(),
            rules,
            local: ArcSwap::from_pointee(local),
            remote,
            bad_files: Mutex::new(None),
        })))
    }

    /// Verifies one token with the keys that are here.
    ///
    /// # Errors
    /// `UNAUTHENTICATED` with one of the `TOKEN_*` reasons, `UNAVAILABLE` while keys were never fetched; the message never
    /// repeats the token.
    pub fn verify(&self, token: &str) -> Result<Claims, RpcError> {
        let token = Token::read(token)?;
        let local = self.local.load();
        let fetched = self.remote.as_ref().map(Remote::keys);
        let remote = fetched.iter().flatten().flat_map(|keys| keys.iter());
        let verified = token.verify(local.iter().chain(remote), &self.rules);
        match (verified, &fetched) {
            // Perhaps its key is among those that we do not have.
            (Err(error), Some(None)) if is_about_keys(&error) => {
                Err(self.try_again("the keys to check tokens with have not been fetched yet"))
            }
            (verified, _) => verified,
        }
    }

    /// The same; a token that names a key which is not here has the URL asked once more, at most every
    /// `auth.jwks_min_refresh` for all tokens together.
    ///
    /// # Errors
    /// As [`Verifier::verify`].
    pub async fn verify_fresh(&self, token: &str) -> Result<Claims, RpcError> {
        match (self.verify(token), &self.remote) {
            (Err(error), Some(remote)) if is_about_keys(&error) => match remote.look_again().await {
                Looked::Fetched => self.verify(token),
                Looked::TooSoon => Err(error),
                Looked::Crowded => Err(self.try_again("many calls wait for the keys to check tokens with")),
            },
            (verified, _) => verified,
        }
    }

    /// Nobody can say yet whether the token is good.
    fn try_again(&self, why: &str) -> RpcError {
        let message = format!("{why}: try again");
        let error = RpcError::new(Code::Unavailable, reason::TOKEN_KEYS_UNAVAILABLE, message);
        error.retry_after(self.config.jwks_min_refresh.0)
    }

    /// Reads the files again every `auth.reload_interval` and fetches the URL every `auth.jwks_refresh`, until the handle is
    /// dropped; says on `dependency` how that goes. What cannot be used changes nothing: the last good keys stay.
    pub fn watch(self: &Arc<Self>, dependency: Dependency) -> AbortOnDropHandle<()> {
        let verifier = Arc::clone(self);
        AbortOnDropHandle::new(tokio::spawn(async move {
            let fetching = async {
                match &verifier.remote {
                    Some(remote) => remote.keep(|| dependency.report(verifier.condition())).await,
                    None => std::future::pending().await,
                }
            };
            let reading = async {
                loop {
                    sleep(verifier.config.reload_interval.0).await;
                    verifier.reread().await;
                    dependency.report(verifier.condition());
                }
            };
            tokio::join!(fetching, reading);
        }))
    }

    async fn reread(&self) {
        let mut outcome = self.read().await;
        if outcome.is_err() {
            sleep(SETTLE).await;
            outcome = self.read().await;
        }
        let bad = match outcome {
            Ok(keys) => {
                let names = |keys: &[Key]| keys.iter().map(|key| key.kid.clone()).collect::<Vec<_>>();
                if names(&keys) != names(&self.local.load()) {
                    info!("the files with keys changed: {} usable keys", keys.len());
                }
                self.local.store(Arc::new(keys));
                None
            }
            Err(error) => Some(error),
        };
        *self.bad_files.lock().unwrap_or_else(PoisonError::into_inner) = bad;
    }

    async fn read(&self) -> Result<Vec<Key>, AuthError> {
        let config = self.config.clone();
        let reading = tokio::task::spawn_blocking(move || read_files(&config));
        reading.await.expect("reading files is neither cancelled nor does it panic")
    }

    fn condition(&self) -> Condition {
        let bad = self.bad_files.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let fetch =
            self.remote.as_ref().and_then(|remote| Some((remote.problem()?, remote.keys().is_some())));
        match (fetch, bad) {
            (Some((problem, false)), _) if self.local.load().is_empty() => {
                Condition::Down(format!("no token can be checked: {problem}"))
            }
            (Some((problem, _)), _) => Condition::Degraded(format!("the keys before stay in use: {problem}")),
            (None, Some(bad)) => Condition::Degraded(format!("the keys before stay in use: {bad}")),
            (None, None) => Condition::Healthy,
        }
    }
}

/// Whether other keys could change the answer.
fn is_about_keys(error: &RpcError) -> bool {
    error.reason == reason::TOKEN_KEY || error.reason == reason::TOKEN_KEYS_UNAVAILABLE
}
