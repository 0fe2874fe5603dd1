//! Clients that send at a steady pace, whatever happens to the servers.

use std::{sync::Arc, time::Duration};

use sightline_servers::cluster::{Cluster, Role};
use sightline_testkit::frames;
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, interval_at, sleep, timeout},
};

use crate::{
    book::{Book, Recovery, SLOW, WINDOW},
    client::Client,
    support::{LONG, addresses, number},
};

/// What CI's two slow cores carry beside twelve servers.
const RATE: u64 = 200;
const STREAMS: u64 = 50;

/// A running load.
pub struct Load {
    pub book: Arc<Book>,
    pub rate: f64,
    pub begun: std::time::Instant,
    stop: watch::Sender<bool>,
    clients: JoinSet<()>,
}

impl Load {
    /// Starts the clients of all ingest replicas.
    pub fn start(cluster: &Cluster) -> Self {
        let (rate, streams) =
            (number("SIGHTLINE_CHAOS_RATE", RATE), number("SIGHTLINE_CHAOS_STREAMS", STREAMS));
        let book = Arc::<Book>::default();
        let (stop, stopped) = watch::channel(false);
        let image = Arc::new(frames::jpeg(1, 32));
        let period = Duration::from_secs(streams).div_f64(rate as f64);
        let mut clients = JoinSet::new();
        for number in 0..streams as usize {
            // Spread over the period.
            let first = Instant::now() + period.mul_f64(number as f64 / streams as f64);
            let client = Client {
                number,
                replicas: addresses(cluster, Role::Ingest),
                image: Arc::clone(&image),
                book: Arc::clone(&book),
                ticks: interval_at(first, period),
                stop: stopped.clone(),
                todo: [].into(),
            };
            clients.spawn(client.run());
        }
        Self { book, rate: rate as f64, begun: std::time::Instant::now(), stop, clients }
    }

    /// Lets it run, and says how well.
    pub async fn settle(&self, what: &str, time: Duration) {
        let from = Instant::now();
        sleep(time).await;
        let (rate, median, high) = self.book.pace(from);
        println!("{what}: {rate:.0} of {:.0} answers/s, p50 {median:.1?}, p99 {high:.1?}", self.rate);
    }

    /// Waits until a fault of a moment ago must be over, and fails unless it is.
    pub async fn recovers(&self, fault: Instant, what: &str, within: Duration) -> Recovery {
        // The last window that is looked at begins at the bound.
        sleep((within + WINDOW + SLOW).saturating_sub(fault.elapsed())).await;
        let recovery = self.book.recovered_after(fault, self.rate);
        println!(
            "{what}: full rate after {:.2?}, last delayed answer after {:.2?}, slowest {:.2?}",
            recovery.rate, recovery.delays, recovery.slowest
        );
        assert!(recovery.all() < within, "{what}: {recovery:?} where {within:?} are allowed");
        recovery
    }

    /// Sends nothing more, waits for what is owed, and gives the number of frames, each answered exactly once.
    pub async fn finish(mut self) -> u64 {
        self.stop.send_replace(true);
        let all = async { while self.clients.join_next().await.is_some() {} };
        let ended = timeout(LONG, all).await.is_ok();
        let frames = self.book.check();
        assert!(ended, "clients still wait, though all is answered");
        frames
    }
}
