//! The settings of the stats service.

use std::{net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};
use sightline_config::{ByteSize, HumanDuration, ServerUrl};

/// What an acknowledged event survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// SIGKILL of the process: the commit is in the kernel's page cache (SQLite `synchronous = NORMAL`).
    Process,
    /// Loss of power too: every group of batches ends in an fsync (SQLite `synchronous = FULL`).
    Power,
}

/// What [`crate::MAX_REQUEST_BYTES`] is made for, and what `stats.proto` promises.
const MAX_BATCH_EVENTS: usize = 5_000;

sightline_config::settings! {
    /// The stats service: counts finished frames, exactly once each, and answers questions about them.
    pub struct StatsConfig in "stats" {
        /// Where to listen.
        pub listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 7404)),
        /// PostgreSQL, shared by all replicas: "postgresql://user:password@host/database". Unset: `database`, a SQLite file.
        /// Run `sightline migrate` once before, and after each upgrade. PgBouncer in transaction mode is fine. With TLS the
        /// server's name and certificate are always checked; "?sslmode=require" insists on it, "disable" goes without.
        pub postgres_url: Option<ServerUrl> = None,
        /// Certificates (PEM) of the authorities that PostgreSQL's certificate may come from. Unset: the system's.
        pub postgres_ca_file: Option<PathBuf> = None,
        /// Transactions that write at once: while one waits for the disk another is made ready. More hardly helps,
        /// because they count in the same rows. The pool holds these, `query_threads`, and one for maintenance.
        pub postgres_writers: usize = 2,
        /// A group commit in PostgreSQL waits this long for more batches: two statements are planned and a log is flushed
        /// for each, about 3 ms of CPU, so that it should hold hundreds of events.
        pub postgres_commit_max_wait: HumanDuration = HumanDuration::from_millis(50),
        /// How long connecting to PostgreSQL, or waiting for a connection of the pool, may take.
        pub postgres_connect_timeout: HumanDuration = HumanDuration::from_secs(5),
        /// The longest one statement that writes may take (a group of 10,000 events takes about 0.2 s). Less than the
        /// 10 s after which ingest sends a batch again.
        pub postgres_statement_timeout: HumanDuration = HumanDuration::from_secs(8),
        /// A connection is replaced at this age, so that memory of the server's process and a moved server's old address
        /// are given up.
        pub postgres_max_lifetime: HumanDuration = HumanDuration::from_secs(30 * 60),
        /// A connection that is not used for this long is closed.
        pub postgres_idle_timeout: HumanDuration = HumanDuration::from_secs(10 * 60),
        /// PostgreSQL: how long events are kept as they came, by whole days; at least `dedupe_window`. About 100 bytes each
        /// with their index.
        pub raw_retention: HumanDuration = HumanDuration::from_secs(30 * 24 * 3600),
        /// PostgreSQL: how long hourly counts are kept, by whole months: 13 of them, so that a month can be compared with
        /// the same one a year ago. SQLite keeps them for ever.
        pub rollup_retention: HumanDuration = HumanDuration::from_secs(397 * 24 * 3600),
        /// The SQLite file; a relative path is under the data directory. ":memory:" keeps nothing after the process ends.
        pub database: PathBuf = "stats.db".into(),
        /// What an acknowledged event survives: "power" (loss of power too: an fsync per group commit, which took up to
        /// a quarter off a peak of 190,000 events/s) or "process" (SIGKILL of the process only: for disks whose fsync is
        /// slow). Under "process" the file stays whole when power is lost, but the last seconds may be missing.
        pub durability: Durability = Durability::Power,
        /// SQLite's page cache of the writer. The index of event ids is read at random when ids are random.
        pub cache_size: ByteSize = ByteSize::mib(64),
        /// Events in one batch at most: 1 to 5,000, which is what the protocol allows and the largest message is made for.
        pub max_batch_events: usize = 5_000,
        /// A group commit closes when it holds this many events: enough to make the commit itself cheap, few enough
        /// that it takes about a tenth of a second.
        pub commit_max_events: usize = 10_000,
        /// A group commit waits this long for more batches. Longer saves commits, shorter acknowledges sooner.
        pub commit_max_wait: HumanDuration = HumanDuration::from_millis(5),
        /// Events that may wait to be committed; past it the answer is RESOURCE_EXHAUSTED. About 200 bytes each.
        pub queue_events: usize = 100_000,
        /// Batches that may wait to be committed: what bounds very small batches.
        pub queue_batches: usize = 1_024,
        /// Unanswered batches of one stream; the stream is not read further until one is answered.
        pub max_in_flight_batches: usize = 64,
        /// Queries answered at once, each on a connection of its own (SQLite: and a thread). They read and do not disturb writes.
        pub query_threads: usize = 2,
        /// Queries that may wait for a thread; past it the answer is RESOURCE_EXHAUSTED.
        pub queue_queries: usize = 64,
        /// A query is given up after this, or at its caller's earlier deadline.
        pub query_timeout: HumanDuration = HumanDuration::from_secs(30),
        /// How long event ids are remembered. Older events are refused, because they could count twice. An id takes
        /// about 30 bytes. What was forgotten stays forgotten: after the clock was ahead by more than this, or after
        /// this was made longer, events from before the forgotten time get UNAVAILABLE (EVENT_TIME_FORGOTTEN) and wait
        /// with their sender; the log says how to take them all the same.
        pub dedupe_window: HumanDuration = HumanDuration::from_secs(7 * 24 * 3600),
        /// How long a stop may take: read batches are committed and answered within it.
        pub drain_timeout: HumanDuration = HumanDuration::from_secs(10),
    }
}

impl StatsConfig {
    /// Checks what types cannot.
    ///
    /// # Errors
    /// A sentence naming the key.
    pub fn validate(&self) -> Result<(), String> {
        for (key, value) in [
            ("max_batch_events", self.max_batch_events),
            ("commit_max_events", self.commit_max_events),
            ("queue_batches", self.queue_batches),
            ("max_in_flight_batches", self.max_in_flight_batches),
            ("query_threads", self.query_threads),
            ("queue_queries", self.queue_queries),
            ("postgres_writers", self.postgres_writers),
        ] {
            if value == 0 {
                return Err(format!("`stats.{key}` must be at least 1"));
            }
        }
        if self.max_batch_events > MAX_BATCH_EVENTS {
            return Err(format!(
                "`stats.max_batch_events` ({}) must be at most {MAX_BATCH_EVENTS}: larger batches would not fit into the \
                 largest message",
                self.max_batch_events
            ));
        }
        if self.queue_events < self.max_batch_events {
            return Err(format!(
                "`stats.queue_events` ({}) must hold at least one batch of `stats.max_batch_events` ({})",
                self.queue_events, self.max_batch_events
            ));
        }
        // One hour is what the rollups can tell apart, and what clocks may be ahead.
        if self.dedupe_window.as_secs() < 2 * 3600 {
            return Err("`stats.dedupe_window` must be at least 2h".into());
        }
        self.validate_postgres()
    }

    fn validate_postgres(&self) -> Result<(), String> {
        for (key, value) in [
            ("postgres_connect_timeout", self.postgres_connect_timeout),
            ("postgres_statement_timeout", self.postgres_statement_timeout),
            ("postgres_max_lifetime", self.postgres_max_lifetime),
            ("postgres_idle_timeout", self.postgres_idle_timeout),
        ] {
            if value.is_zero() {
                return Err(format!("`stats.{key}` must be longer than nothing"));
            }
        }
        for (key, value) in
            [("raw_retention", self.raw_retention), ("rollup_retention", self.rollup_retention)]
        {
            if value < self.dedupe_window {
                return Err(format!(
                    "`stats.{key}` ({value}) must be at least `stats.dedupe_window` ({}): ids are remembered with the \
                     events, and counted as long as events are taken",
                    self.dedupe_window
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_nonsense_is_named() {
        assert_eq!(StatsConfig::default().validate(), Ok(()));
        let bad = StatsConfig { queue_events: 10, ..StatsConfig::default() };
        assert!(bad.validate().unwrap_err().contains("`stats.queue_events` (10)"));
        let bad = StatsConfig { max_batch_events: 5_001, ..StatsConfig::default() };
        assert!(bad.validate().unwrap_err().contains("`stats.max_batch_events` (5001) must be at most 5000"));
        let bad = StatsConfig { query_threads: 0, ..StatsConfig::default() };
        assert_eq!(bad.validate().unwrap_err(), "`stats.query_threads` must be at least 1");
        let bad = StatsConfig { raw_retention: HumanDuration::from_secs(3600), ..StatsConfig::default() };
        assert!(bad.validate().unwrap_err().starts_with("`stats.raw_retention` (1h) must be at least"));
    }
}
