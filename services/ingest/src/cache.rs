//! Verdicts in memory, by the digest of the image: the same bytes are classified once (R3, R5). Behind it may lie
//! [`Shared`], which all replicas have in common.
//!
//! What is kept are scores, not levels: the policy is applied anew, so a changed policy needs no new cache. Concurrent
//! twins wait for the first one's inference (single-flight). A first one that fails by its own deadline or because its
//! caller went away does not fail the others: the next of them takes over.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use moka::future::Cache as Moka;
use sightline_mesh::{Deadline, RpcError, reason};
use uuid::Uuid;

use crate::{
    error::IngestError,
    events,
    shared::{Found, Shared},
};

/// What the model said about one image.
#[derive(Debug, Clone)]
pub struct Scored {
    /// The frame that was classified.
    pub anchor: Uuid,
    /// Probabilities in the order of the model's classes.
    pub scores: Arc<[f32]>,
}

/// Identifies an image within a tenant and for a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Key([u8; 32]);

impl Key {
    /// BLAKE3 over the tenant, the model's name and digest and the encoded image, each with its length before it. The
    /// name, because two manifests may give one file other classes or another input.
    pub fn new(tenant: &str, model: &str, model_digest: &str, image: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new();
        for part in [tenant.as_bytes(), model.as_bytes(), model_digest.as_bytes(), image] {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Self(*hasher.finalize().as_bytes())
    }

    /// The digest.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

/// Whether the scores are this frame's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The model ran for this frame.
    Fresh,
    /// They were there, or came from a twin.
    Repeat,
}

/// A bounded cache with single-flight.
#[derive(Clone)]
pub struct Cache {
    /// `None` when caching is turned off.
    verdicts: Option<Moka<Key, Scored>>,
    /// What lies behind it.
    shared: Option<Shared>,
}

impl Cache {
    /// Keeps `entries` verdicts for `ttl` each in memory, and what `shared` keeps.
    pub fn new(entries: u64, ttl: Duration, shared: Option<Shared>) -> Self {
        let on = entries > 0 && !ttl.is_zero();
        let verdicts = on.then(|| Moka::builder().max_capacity(entries).time_to_live(ttl).build());
        Self { verdicts, shared }
    }

    /// The scores under `key`, or what `classify` gives, which runs once for all who ask meanwhile. `is_unsafe` says for
    /// how long new scores are shared.
    ///
    /// # Errors
    /// What `classify` says, or `DEADLINE_EXCEEDED` when a twin takes longer than `deadline`.
    pub async fn get_or_classify<F>(
        &self,
        key: Key,
        deadline: Deadline,
        is_unsafe: impl Fn(&Scored) -> bool,
        classify: impl Fn() -> F,
    ) -> Result<(Scored, Origin), IngestError>
    where
        F: Future<Output = Result<Scored, IngestError>>,
    {
        // Whether another replica's scores were found, which to the memory are as new as our own.
        let shared = AtomicBool::new(false);
        // On the heap: what is only done on a miss would make the future of every frame large.
        let load = || {
            Box::pin(async {
                let Some(behind) = &self.shared else { return classify().await };
                let (scored, found) = behind.get_or_classify(key, deadline, &is_unsafe, classify()).await?;
                shared.store(found == Found::There, Ordering::Relaxed);
                Ok(scored)
            })
        };
        let origin = |is_new: bool| match is_new && !shared.load(Ordering::Relaxed) {
            true => Origin::Fresh,
            false => Origin::Repeat,
        };
        let Some(verdicts) = &self.verdicts else {
            return Ok((load().await?, origin(true)));
        };
        if let Some(scored) = verdicts.get(&key).await {
            events::cache(true);
            return Ok((scored, Origin::Repeat));
        }
        loop {
            let entry = verdicts.entry(key).or_try_insert_with(load());
            match deadline.bound("waiting for the same image", entry).await? {
                Ok(entry) => {
                    events::cache(!entry.is_fresh());
                    let origin = origin(entry.is_fresh());
                    return Ok((entry.into_value(), origin));
                }
                Err(error) if of_one_caller(&error) && !deadline.passed() => {}
                Err(error) => return Err(IngestError::clone(&error)),
            }
        }
    }
}

/// Whether the failure is the first caller's own affair and says nothing about the image.
fn of_one_caller(error: &IngestError) -> bool {
    matches!(error, IngestError::Rpc(RpcError { reason, .. })
        if reason == reason::DEADLINE_EXCEEDED || reason == reason::CANCELLED)
}

#[cfg(test)]
mod conformance;
#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;

    fn scored() -> Scored {
        Scored { anchor: Uuid::now_v7(), scores: Arc::new([1.0]) }
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn twins_share_one_inference() {
        let cache = Cache::new(100, LONG, None);
        let runs = Arc::new(AtomicUsize::new(0));
        let key = Key::new("t", "m@1", "d", b"image");
        let asks = (0..50).map(|_| {
            let (cache, runs) = (cache.clone(), Arc::clone(&runs));
            tokio::spawn(async move {
                let classify = || async {
                    runs.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(10)).await;
                    Ok(scored())
                };
                cache.get_or_classify(key, Deadline::after(LONG), |_| false, classify).await.unwrap().1
            })
        });
        let mut fresh = 0;
        for ask in asks.collect::<Vec<_>>() {
            fresh += usize::from(ask.await.unwrap() == Origin::Fresh);
        }
        assert_eq!((runs.load(Ordering::SeqCst), fresh), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_first_caller_out_of_time_does_not_fail_its_twin() {
        let cache = Cache::new(100, LONG, None);
        let key = Key::new("t", "m@1", "d", b"image");
        let hurried = {
            let cache = cache.clone();
            tokio::spawn(async move {
                let classify = || async {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                    Err(RpcError::deadline("test").into())
                };
                cache
                    .get_or_classify(key, Deadline::after(Duration::from_millis(20)), |_| false, classify)
                    .await
            })
        };
        tokio::task::yield_now().await;
        let patient = cache
            .get_or_classify(key, Deadline::after(LONG), |_| false, || async { Ok(scored()) })
            .await
            .unwrap();
        assert_eq!(patient.1, Origin::Fresh);
        assert!(hurried.await.unwrap().is_err());
    }

    #[test]
    fn keys_keep_tenants_models_and_images_apart() {
        let key = Key::new("a", "m@1", "b", b"c");
        for other in [
            Key::new("ab", "m@1", "", b"c"),
            Key::new("a", "m@1", "bc", b""),
            Key::new("x", "m@1", "b", b"c"),
            Key::new("a", "m@2", "b", b"c"),
            Key::new("a", "m@", "1b", b"c"),
        ] {
            assert_ne!(key, other);
        }
    }
}
