use std::path::Path;

use tokio::sync::watch;

use super::*;
use crate::spool::{MIN_BYTES, SpoolDurability};

/// Statistics that can be away, and remember what they took.
#[derive(Clone)]
struct Statistics {
    there: watch::Sender<bool>,
    took: Arc<Mutex<Vec<String>>>,
}

impl Deliver for Statistics {
    async fn deliver(&self, batch: Vec<Event>) {
        self.there.subscribe().wait_for(|there| *there).await.unwrap();
        self.took.lock().unwrap().extend(batch.into_iter().map(|event| event.event_id));
    }
}

struct Running {
    statistics: Statistics,
    queue: mpsc::Sender<Event>,
    waiting: Arc<AtomicUsize>,
    stop: CancellationToken,
    give_up: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

const PATIENCE: Duration = Duration::from_millis(50);

fn start(folder: Option<&Path>, max_bytes: u64, there: bool) -> Running {
    start_with(folder, max_bytes, there, PATIENCE)
}

fn start_with(folder: Option<&Path>, max_bytes: u64, there: bool, patience: Duration) -> Running {
    let spool = folder.map(|folder| Spool::open(folder, max_bytes, SpoolDurability::Process).unwrap());
    let statistics = Statistics { there: watch::Sender::new(there), took: Arc::default() };
    let (queue, events) = mpsc::channel(1_000);
    let delivery = Delivery {
        to: statistics.clone(),
        spool: spool.map(|spool| Arc::new(Mutex::new(spool))),
        waiting: Arc::default(),
        stop: CancellationToken::new(),
        give_up: CancellationToken::new(),
        batch: 50,
        linger: Duration::from_millis(5),
        mark: 500,
        patience,
    };
    Running {
        statistics,
        queue,
        waiting: Arc::clone(&delivery.waiting),
        stop: delivery.stop.clone(),
        give_up: delivery.give_up.clone(),
        task: tokio::spawn(delivery.run(events)),
    }
}

impl Running {
    async fn send(&self, range: std::ops::Range<usize>) {
        for n in range {
            self.waiting.fetch_add(1, Ordering::Relaxed);
            self.queue.send(Event { event_id: format!("{n:06}"), ..Event::default() }).await.unwrap();
        }
    }

    /// What arrived first of each event, in order of arrival.
    fn took(&self) -> Vec<String> {
        let mut seen = std::collections::HashSet::new();
        self.statistics.took.lock().unwrap().iter().filter(|id| seen.insert((*id).clone())).cloned().collect()
    }

    async fn until(&self, what: &str, reached: impl Fn(&Self) -> bool) {
        let since = Instant::now();
        while !reached(self) {
            assert!(since.elapsed() < Duration::from_secs(20), "{what}: {} took", self.took().len());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn finish(self) -> Vec<String> {
        self.stop.cancel();
        tokio::time::timeout(Duration::from_secs(20), self.task).await.unwrap().unwrap();
        let mut seen = std::collections::HashSet::new();
        let took = self.statistics.took.lock().unwrap();
        took.iter().filter(|id| seen.insert((*id).clone())).cloned().collect()
    }
}

fn ids(range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| format!("{n:06}")).collect()
}

#[tokio::test]
async fn with_the_statistics_there_nothing_touches_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    // Neither a busy machine nor a queue that fills is what this is about.
    let running = start_with(Some(folder.path()), 64 << 20, true, Duration::from_secs(20));
    for first in (0..3_000).step_by(250) {
        running.send(first..first + 250).await;
        running.until("all arrive", |running| running.took().len() == first + 250).await;
    }
    assert_eq!(std::fs::read_dir(folder.path().join("0")).unwrap().count(), 1, "only the lock");
    let mut took = running.finish().await;
    took.sort();
    assert!(took == ids(0..3_000));
}

#[tokio::test]
async fn away_and_back_everything_arrives_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let running = start(Some(folder.path()), 64 << 20, true);
    running.send(0..100).await;
    running.until("the first arrive", |running| running.took().len() == 100).await;
    running.statistics.there.send_replace(false);
    // More than the queue holds, so that it only goes on because the disk takes them.
    running.send(100..5_000).await;
    running.until("memory is empty", |running| running.waiting.load(Ordering::Relaxed) == 0).await;
    running.statistics.there.send_replace(true);
    running.send(5_000..6_000).await;
    running.until("all arrive", |running| running.took().len() == 6_000).await;
    // Up to four batches travel side by side; beyond that the order is that of their coming.
    let took = running.finish().await;
    let place = |n: usize| took.iter().position(|id| *id == format!("{n:06}")).unwrap();
    for n in (0..6_000).step_by(97) {
        assert!(place(n).abs_diff(n) <= 50 * 2 * BATCHES_IN_FLIGHT, "{n} came at {}", place(n));
    }
}

#[tokio::test]
async fn what_is_not_acknowledged_at_the_end_is_delivered_by_the_next_process() {
    let folder = tempfile::tempdir().unwrap();
    let running = start(Some(folder.path()), 64 << 20, false);
    running.send(0..730).await;
    running.stop.cancel();
    running.give_up.cancel();
    running.task.await.unwrap();
    assert_eq!(running.waiting.load(Ordering::Relaxed), 0);
    let next = start(Some(folder.path()), 64 << 20, true);
    next.until("all arrive", |next| next.took().len() == 730).await;
    let mut took = next.finish().await;
    took.sort();
    assert!(took == ids(0..730));
    assert_eq!(std::fs::read_dir(folder.path().join("0")).unwrap().count(), 1, "the disk is empty again");
}

#[tokio::test]
async fn past_its_bound_the_oldest_are_lost_and_the_newest_arrive() {
    let folder = tempfile::tempdir().unwrap();
    let running = start(Some(folder.path()), MIN_BYTES, false);
    running.send(0..30_000).await;
    running.until("memory is empty", |running| running.waiting.load(Ordering::Relaxed) == 0).await;
    running.statistics.there.send_replace(true);
    running.send(30_000..30_001).await;
    running.until("the last arrives", |running| running.took().contains(&"030000".to_owned())).await;
    let mut took = running.finish().await;
    // Batches that were on their way arrive too; of the rest the newest are left.
    took.sort();
    let newest =
        took.iter().rev().zip((0..=30_000).rev()).take_while(|(id, n)| **id == format!("{n:06}")).count();
    assert!((1_000..29_000).contains(&newest), "{newest}");
    assert!(took.len() - newest <= 2 * 50 * BATCHES_IN_FLIGHT, "{}", took.len() - newest);
}

#[tokio::test]
async fn without_a_spool_events_wait_in_memory() {
    let running = start(None, 0, false);
    running.send(0..900).await;
    tokio::time::sleep(PATIENCE * 2).await;
    assert_eq!(running.waiting.load(Ordering::Relaxed), 900);
    running.statistics.there.send_replace(true);
    let mut took = running.finish().await;
    took.sort();
    assert!(took == ids(0..900));
}
