//! A key set behind a URL: fetched now and then, and sooner when a token names a key that is not in it.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use metrics::{counter, describe_counter};
use tokio::{
    sync::{Semaphore, watch},
    time::{Instant, sleep_until, timeout},
};
use tracing::{info, warn};

use super::{
    AuthConfig, AuthError,
    fetch::Fetch,
    keys::{Key, read_set},
};

/// Calls that may wait for a fetch at once. Each has its place at the server meanwhile, of which there are 1,024 by default
/// (`server.max_calls`): an issuer that hangs, and tokens with made-up keys, leave three quarters to those whose keys are
/// here.
const MAX_WAITING: usize = 256;

/// Whether the keys are worth another look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Looked {
    /// The set was fetched once more, or that has failed.
    Fetched,
    /// It was asked for a moment ago, or no answer came.
    TooSoon,
    /// As many calls wait for it as may.
    Crowded,
}

/// See the module.
pub(super) struct Remote {
    url: String,
    fetch: Fetch,
    refresh: Duration,
    least: Duration,
    /// The last good set; none before the first.
    keys: ArcSwapOption<Vec<Key>>,
    progress: watch::Sender<Progress>,
    waiting: Semaphore,
    problem: Mutex<Option<String>>,
}

#[derive(Debug, Default, Clone, Copy)]
struct Progress {
    begun: bool,
    fetching: bool,
    /// A fetch is wanted before its time.
    asked: bool,
    last_asked: Option<Instant>,
    /// How many fetches have ended.
    ended: u64,
}

impl Remote {
    /// What `auth.jwks_url` says, if it is set. Blocks on the disk.
    pub(super) fn from_config(config: &AuthConfig) -> Result<Option<Self>, AuthError> {
        let Some(url) = &config.jwks_url else { return Ok(None) };
        let fail = |field, problem: String| AuthError { field, subject: url.masked(), problem };
        if config.jwks_timeout.0.is_zero() {
            return Err(fail("jwks_timeout", "must not be 0: nothing would be fetched".into()));
        }
        if config.jwks_min_refresh.0.is_zero() || config.jwks_refresh.0 < config.jwks_min_refresh.0 {
            return Err(fail(
                "jwks_refresh",
                "must be at least `auth.jwks_min_refresh`, which must not be 0: strangers can cause a fetch so often"
                    .into(),
            ));
        }
        let authorities: Option<&Path> = config.jwks_ca_file.as_deref();
        let fetch = Fetch::new(url.reveal(), authorities, config.jwks_timeout.0)
            .map_err(|problem| fail("jwks_url", problem))?;
        if url.reveal().starts_with("http://") {
            warn!("`auth.jwks_url` is plain http: whoever is on the way can exchange the keys");
        }
        describe_counter!("mesh_jwks_fetches_total", "Fetches of the key set, by outcome (ok, failed)");
        Ok(Some(Self {
            url: url.masked(),
            fetch,
            refresh: config.jwks_refresh.0,
            least: config.jwks_min_refresh.0,
            keys: ArcSwapOption::empty(),
            progress: watch::Sender::new(Progress::default()),
            waiting: Semaphore::new(MAX_WAITING),
            problem: Mutex::new(None),
        }))
    }

    /// The last good set; none before the first.
    pub(super) fn keys(&self) -> Option<Arc<Vec<Key>>> {
        self.keys.load_full()
    }

    /// What went wrong with the last fetch.
    pub(super) fn problem(&self) -> Option<String> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until the set has been fetched once more, if it may be: the answer to a token that names an unknown key.
    pub(super) async fn look_again(&self) -> Looked {
        let mut progress = self.progress.subscribe();
        let seen = *progress.borrow_and_update();
        if seen.begun && !seen.fetching && !seen.asked && !self.ask() {
            return Looked::TooSoon;
        }
        let Ok(_place) = self.waiting.try_acquire() else { return Looked::Crowded };
        // The fetch bounds itself; this is for a task that does not run.
        let patience = self.fetch.timeout() + Duration::from_millis(100);
        let ended = progress.wait_for(|now| now.ended > seen.ended);
        match timeout(patience, ended).await {
            Ok(Ok(_)) => Looked::Fetched,
            _ => Looked::TooSoon,
        }
    }

    /// Asks for a fetch, if the last one that was asked for is long enough ago.
    fn ask(&self) -> bool {
        self.progress.send_if_modified(|progress| {
            let may = progress.last_asked.is_none_or(|last| last.elapsed() >= self.least);
            if may {
                progress.asked = true;
                progress.last_asked = Some(Instant::now());
            }
            may
        })
    }

    /// Fetches for as long as it is polled; `told` is called after each fetch.
    pub(super) async fn keep(&self, told: impl Fn()) {
        let mut failures = 0;
        let mut asked = self.progress.subscribe();
        loop {
            let begun = Instant::now();
            self.progress.send_modify(|progress| {
                progress.begun = true;
                progress.fetching = true;
                progress.asked = false;
            });
            failures = if self.fetch_once().await { 0 } else { failures + 1 };
            self.progress.send_modify(|progress| {
                progress.fetching = false;
                progress.ended += 1;
            });
            told();
            // After a failure sooner, each time twice as late.
            let pause = match failures {
                0 => self.refresh,
                n => self.least.saturating_mul(1 << (n - 1).min(16)).min(self.refresh),
            };
            tokio::select! {
                () = sleep_until(begun + pause) => {}
                _ = asked.wait_for(|progress| progress.asked) => {}
            }
        }
    }

    async fn fetch_once(&self) -> bool {
        let outcome = self.fetch.get().await.and_then(|text| read_set(&text));
        let outcome = outcome.map(|keys| {
            let names = |keys: &[Key]| keys.iter().map(|key| key.kid.clone()).collect::<Vec<_>>();
            if self.keys().is_none_or(|before| names(&before) != names(&keys)) {
                info!(url = self.url, "the key set has {} usable keys", keys.len());
            }
            self.keys.store(Some(Arc::new(keys)));
        });
        let label = if outcome.is_ok() { "ok" } else { "failed" };
        counter!("mesh_jwks_fetches_total", "outcome" => label).increment(1);
        let good = outcome.is_ok();
        *self.problem.lock().unwrap_or_else(PoisonError::into_inner) =
            outcome.err().map(|problem| format!("`auth.jwks_url` ({}): {problem}", self.url));
        good
    }
}
