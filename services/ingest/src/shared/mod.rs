//! Verdicts shared by all replicas of ingest, in Redis, behind each one's memory (R5), and one inference for an image that
//! reaches several replicas at once.
//!
//! Under an image's key lies either its scores or a **lease**: somebody classifies it now. Whoever finds nothing leaves
//! a lease and classifies; whoever finds a lease looks again until the scores are there or the lease ends, and then takes
//! over. So a replica that dies with a lease costs the others at most the lease's time. Asking and leasing is one step
//! and one round trip (`lease.lua`).
//!
//! Redis slow or away costs a frame the link's timeout at most: it is classified as if there were no Redis. Answers are
//! the same either way. What lies in Redis is a few bytes of scores under a digest (BLAKE3 over tenant, model and image);
//! pixels never do (P6). Scores are kept, not levels: a changed policy applies at once, so it is no part of the key.

mod entry;
#[cfg(test)]
mod tests;

use std::{
    future::Future,
    sync::{Arc, LazyLock},
    time::Duration,
};

use rand::Rng;
use sightline_mesh::Deadline;
pub use sightline_redis::TargetError;
use sightline_redis::{Link, LinkError, Options, Script, Value, cmd};
use sightline_telemetry::{child_span, dependencies::Dependencies};
use tokio::{sync::Semaphore, time::sleep};
use tracing::Instrument;
use uuid::Uuid;

use self::entry::{Entry, Lease};
use crate::{
    cache::{Key, Scored},
    config::IngestConfig,
    error::IngestError,
    events::{self, Shared as Event},
};

static LEASE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lease.lua")));
static RELEASE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("release.lua")));

/// The first look after finding somebody's lease: about as long as an inference takes.
const FIRST_LOOK: Duration = Duration::from_millis(10);
/// Later looks are at most this far apart.
const SLOWEST_LOOK: Duration = Duration::from_millis(50);
/// Verdicts on their way to Redis at once; past it the next are not kept there, because Redis is slow.
const WRITES: usize = 1024;

/// How long what is kept.
#[derive(Debug, Clone, Copy)]
pub struct Times {
    /// A lease: longer than an inference takes under load, short enough to wait for when its holder died.
    pub lease: Duration,
    /// Scores of a safe image.
    pub safe: Duration,
    /// Scores of an unsafe one.
    pub unsafe_: Duration,
}

/// Scores in Redis.
#[derive(Debug, Clone)]
pub struct Shared {
    link: Link,
    times: Times,
    writes: Arc<Semaphore>,
}

/// Whether scores were there or are new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// Another frame's.
    There,
    /// Just made.
    Made,
}

/// What asking Redis said.
enum Asked {
    Scores(Scored),
    Leased(Lease),
    SomebodyElses,
    Away,
}

impl Shared {
    /// What `config` names, or `None`. Connects in the background, on the current tokio runtime.
    ///
    /// # Errors
    /// [`TargetError`], for a URL or CA file that cannot be used.
    pub fn from_config(
        config: &IngestConfig,
        dependencies: &Dependencies,
    ) -> Result<Option<Self>, TargetError> {
        let Some(url) = &config.cache_redis_url else { return Ok(None) };
        let options = Options {
            ca_file: config.cache_redis_ca_file.clone(),
            timeout: config.cache_redis_timeout.0,
            ..Options::default()
        };
        let link = Link::new(url, &options, Some(dependencies.register("cache-redis")))?;
        let times = Times {
            lease: config.cache_redis_lease.0,
            safe: config.cache_redis_ttl.0,
            unsafe_: config.cache_redis_ttl_unsafe.0,
        };
        Ok(Some(Self::new(link, times)))
    }

    /// Keeps scores behind `link`.
    pub fn new(link: Link, times: Times) -> Self {
        Self { link, times, writes: Arc::new(Semaphore::new(WRITES)) }
    }

    /// The scores under `key`, or what `classify` gives, which runs once over all replicas that ask meanwhile.
    /// `is_unsafe` says how long they are kept.
    ///
    /// # Errors
    /// What `classify` says, or `DEADLINE_EXCEEDED` when another replica takes longer than `deadline`.
    pub async fn get_or_classify(
        &self,
        key: Key,
        deadline: Deadline,
        is_unsafe: impl Fn(&Scored) -> bool,
        classify: impl Future<Output = Result<Scored, IngestError>>,
    ) -> Result<(Scored, Found), IngestError> {
        let asked =
            deadline.bound("waiting for another replica's verdict", self.ask_until_known(key)).await?;
        let held = match asked {
            Asked::Scores(scored) => return Ok((scored, Found::There)),
            Asked::Leased(lease) => Some(Held { shared: self.clone(), key, lease: Some(lease) }),
            Asked::SomebodyElses | Asked::Away => None,
        };
        let scored = classify.await?;
        if let Some(held) = held {
            held.keep(&scored, if is_unsafe(&scored) { self.times.unsafe_ } else { self.times.safe });
        }
        Ok((scored, Found::Made))
    }

    /// Asks until there are scores, the lease is ours, or Redis cannot say.
    async fn ask_until_known(&self, key: Key) -> Asked {
        let mut pause = FIRST_LOOK;
        loop {
            match self.ask(key).await {
                Asked::SomebodyElses => {}
                known => return known,
            }
            let jitter = rand::rng().random_range(0.5..1.0);
            sleep(pause.mul_f64(jitter)).await;
            pause = (pause * 2).min(SLOWEST_LOOK);
        }
    }

    async fn ask(&self, key: Key) -> Asked {
        let lease = Lease(Uuid::new_v4());
        let milliseconds = u64::try_from(self.times.lease.as_millis()).unwrap_or(u64::MAX);
        let asked = self.link.script(&LEASE, |cmd| {
            cmd.arg(1).arg(name(key)).arg(lease.bytes().as_slice()).arg(milliseconds);
        });
        let span = child_span!("redis.lease", otel.kind = "client", db.system = "redis");
        let (event, asked) = match asked.instrument(span).await {
            Ok(Value::Nil) => (Event::Miss, Asked::Leased(lease)),
            Ok(Value::BulkString(bytes)) => match Entry::read(&bytes) {
                Some(Entry::Scores(scored)) => (Event::Hit, Asked::Scores(scored)),
                Some(Entry::Lease) => (Event::Waited, Asked::SomebodyElses),
                // Written by a version of tomorrow: as if it were not there; the next write replaces it.
                None => (Event::Miss, Asked::Away),
            },
            Ok(_) | Err(LinkError::Refused(_)) => (Event::Error, Asked::Away),
            Err(LinkError::Away(_)) => (Event::Bypassed, Asked::Away),
        };
        events::shared_cache(event);
        asked
    }
}

/// A lease of ours; given back when dropped without scores, because the frame failed or nobody waits for it any more.
struct Held {
    shared: Shared,
    key: Key,
    lease: Option<Lease>,
}

impl Held {
    /// Puts the scores in the lease's place, for this long. The frame does not wait for it.
    fn keep(mut self, scored: &Scored, time: Duration) {
        self.lease = None;
        let value = entry::scores(scored);
        let milliseconds = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
        let mut set = cmd("SET");
        set.arg(name(self.key)).arg(value).arg("PX").arg(milliseconds);
        self.spawn(async move |link| link.command(&set).await.map(drop));
    }

    fn spawn<F>(&self, write: impl FnOnce(Link) -> F + Send + 'static)
    where
        F: Future<Output = Result<(), LinkError>> + Send + 'static,
    {
        let Ok(place) = Arc::clone(&self.shared.writes).try_acquire_owned() else {
            events::shared_cache(Event::Bypassed);
            return;
        };
        let link = self.shared.link.clone();
        tokio::spawn(async move {
            if write(link).await.is_err() {
                events::shared_cache(Event::Error);
            }
            drop(place);
        });
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Some(lease) = self.lease.take() else { return };
        let name = name(self.key);
        self.spawn(async move |link| {
            let fill = |cmd: &mut sightline_redis::Cmd| {
                cmd.arg(1).arg(name.as_slice()).arg(lease.bytes().as_slice());
            };
            link.script(&RELEASE, fill).await.map(drop)
        });
    }
}

/// The key in Redis: a prefix that names what it is and the version of its encoding, and the digest as it is.
fn name(key: Key) -> Vec<u8> {
    [b"slv1:".as_slice(), key.bytes()].concat()
}
