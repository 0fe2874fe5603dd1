//! Forgets the ids of events that are too old to be taken again, a little at a time.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use sightline_mesh::server::Lifecycle;
use tracing::{info, warn};

use crate::{
    intake::oldest_hour,
    store::{Hour, Store, StoreError},
};

/// Ids looked at in one step: a few milliseconds of the writer, less than a group commit takes.
const STEP: usize = 5_000;
/// Between steps, so that writing goes on.
const PAUSE: Duration = Duration::from_millis(50);
/// Between the end of one sweep and the start of the next: the window moves by an hour in an hour.
const REST: Duration = Duration::from_secs(3600);
/// Between what is refused at the door and what is forgotten: batches on the way to the writer are not caught between.
const MARGIN: i64 = 1;

/// Sweeps until `lifecycle` drains.
pub(crate) async fn sweep(store: Arc<dyn Store>, window: Duration, lifecycle: Lifecycle) {
    tokio::select! {
        () = forever(store, window) => {}
        () = lifecycle.draining() => {}
    }
}

async fn forever(store: Arc<dyn Store>, window: Duration) {
    let mut removed = 0;
    loop {
        let before = Hour(oldest_hour(SystemTime::now(), window).0 - MARGIN);
        let rest = match store.prune(before, STEP).await {
            Ok(pruned) => {
                removed += pruned.removed;
                if pruned.finished { REST } else { PAUSE }
            }
            Err(StoreError::QueueFull { .. }) => PAUSE,
            Err(StoreError::Closed) => return,
            Err(error) => {
                warn!(%error, "old event ids could not be forgotten; trying again later");
                REST
            }
        };
        if rest == REST && removed > 0 {
            info!(removed, "forgot old event ids");
            removed = 0;
        }
        tokio::time::sleep(rest).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use tokio::time::Instant;

    use super::*;
    use crate::store::{Event, Page, Pruned, Query, Recorded};

    /// Three steps make a sweep; the second finds the queue full.
    #[derive(Debug, Default)]
    struct Steps(Mutex<Vec<(Instant, Hour)>>);

    #[tonic::async_trait]
    impl Store for Steps {
        async fn prune(&self, before: Hour, limit: usize) -> Result<Pruned, StoreError> {
            assert_eq!(limit, STEP);
            let mut steps = self.0.lock().unwrap();
            steps.push((Instant::now(), before));
            match steps.len() % 3 {
                2 => Err(StoreError::QueueFull { what: "batches", limit: 1 }),
                nth => Ok(Pruned { removed: 1, finished: nth == 0 }),
            }
        }
        async fn record(&self, _: Vec<Event>) -> Result<Recorded, StoreError> {
            unreachable!("only forgets")
        }
        async fn query(&self, _: Query) -> Result<Page, StoreError> {
            unreachable!("only forgets")
        }
        async fn close(&self) {}
    }

    #[tokio::test(start_paused = true)]
    async fn a_sweep_goes_in_steps_and_rests_until_the_window_has_moved() {
        let (store, lifecycle) = (Arc::new(Steps::default()), Lifecycle::default());
        let window = Duration::from_secs(48 * 3600);
        let sweep = tokio::spawn(sweep(Arc::clone(&store) as Arc<dyn Store>, window, lifecycle.clone()));
        tokio::time::sleep(REST + PAUSE * 3).await;
        lifecycle.drain();
        sweep.await.unwrap();

        let steps = store.0.lock().unwrap();
        let pauses: Vec<Duration> = steps.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
        assert_eq!(pauses[..3], [PAUSE, PAUSE, REST]);
        let taken = oldest_hour(SystemTime::now(), window);
        assert!(steps.iter().all(|(_, before)| *before < taken), "no id is forgotten that may come again");
        assert!(steps.iter().all(|(_, before)| before.0 >= taken.0 - MARGIN - 1));
    }
}
