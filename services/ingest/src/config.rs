//! Settings of ingest.

use std::{net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};
use sightline_config::{ByteSize, HumanDuration, ServerUrl};

/// What happens to frames while no rate limiter can be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WhenAway {
    /// They pass, counted.
    Open,
    /// They are refused.
    Closed,
}

use crate::spool::{MIN_BYTES, SpoolDurability};

sightline_config::settings! {
    /// The public edge.
    pub struct IngestConfig in "ingest" {
        /// Where clients connect, by gRPC or grpc-web.
        pub listen: SocketAddr = SocketAddr::from(([127, 0, 0, 1], 7401)),
        /// Replicas of the classifier: a list of "http://host:port", or one name alone: "dns://name:port",
        /// "dns+srv://_grpc._tcp.name", "k8s://namespace/service:port".
        pub classifier: Vec<String> = vec!["http://127.0.0.1:7402".into()],
        /// Replicas of the rate limiter, as for `classifier`.
        pub ratelimiter: Vec<String> = vec!["http://127.0.0.1:7403".into()],
        /// Replicas of the statistics, as for `classifier`.
        pub stats: Vec<String> = vec!["http://127.0.0.1:7404".into()],
        /// Web origins that may call by grpc-web, such as "https://app.example.com"; "*" for all.
        pub cors_origins: Vec<String> = vec![],
        /// The largest encoded image (R2).
        pub max_image: ByteSize = ByteSize::mb(10),
        /// The largest message: a batch of images. At least `max_image` and an eighth are always taken.
        pub max_message: ByteSize = ByteSize::mib(32),
        /// The most pixels of a decoded image: an 8K screen has 33 million.
        pub max_pixels: u64 = 40_000_000,
        /// The longest side of an image in pixels.
        pub max_side: u32 = 16_384,
        /// Bytes of images held at once, over all clients; past it the answer is RESOURCE_EXHAUSTED.
        pub max_bytes_in_flight: ByteSize = ByteSize::mib(512),
        /// Images decoded at once. 0: one per core. Each may hold `max_pixels` × 4 bytes.
        pub decoders: usize = 0,
        /// The longest a frame may take, when its caller gives no deadline or a later one.
        pub max_timeout: HumanDuration = HumanDuration::from_secs(10),
        /// Frames in one batch call.
        pub max_batch: usize = 64,
        /// Frames of one batch call worked on at once.
        pub batch_concurrency: usize = 16,
        /// Frames a stream may have unanswered; past it the stream is not read.
        pub stream_in_flight: usize = 64,
        /// Streams one user may have open (C10). 0: any number.
        pub max_streams_per_user: usize = 3,
        /// A stream that says nothing for this long is ended.
        pub stream_idle_timeout: HumanDuration = HumanDuration::from_secs(60),
        /// Verdicts kept in memory by the digest of the image (R5).
        pub cache_entries: u64 = 10_000,
        /// How long a verdict is kept (R3, R5). Zero turns the cache off.
        pub cache_ttl: HumanDuration = HumanDuration::from_secs(30),
        /// The Redis behind the memory, which all replicas share: "redis://host:6379/" (docs/CLUSTER.md has the other forms).
        /// Unset: each replica has its memory only. Give it a server of its own that may evict (allkeys-lru).
        pub cache_redis_url: Option<ServerUrl> = None,
        /// The CA that signed that server's certificate, in PEM; unset: those that the system trusts.
        pub cache_redis_ca_file: Option<PathBuf> = None,
        /// How long a frame waits for that Redis before it goes on without it: a round trip takes well under 1 ms, and
        /// classifying again 10 to 50 ms. With 3 ms, and one for the timer, a frame is past it within 5.
        pub cache_redis_timeout: HumanDuration = HumanDuration::from_millis(3),
        /// How long scores of a safe image are shared (R5).
        pub cache_redis_ttl: HumanDuration = HumanDuration::from_secs(300),
        /// The same for an image whose level is SUGGESTIVE or worse: those are sent on and on.
        pub cache_redis_ttl_unsafe: HumanDuration = HumanDuration::from_secs(3600),
        /// How long other replicas wait for the one that classifies an image, should it have died.
        pub cache_redis_lease: HumanDuration = HumanDuration::from_secs(2),
        /// Streams to each classifier replica at most. One is always open, more only while frames wait for its credits.
        pub classifier_streams: usize = 4,
        /// How long a frame waits for the rate limiter before `ratelimiter_away` decides.
        pub ratelimiter_timeout: HumanDuration = HumanDuration::from_millis(250),
        /// While no rate limiter can be reached frames pass ("open") or are refused ("closed").
        pub ratelimiter_away: WhenAway = WhenAway::Open,
        /// Events held in memory until the statistics acknowledge them, about 300 bytes each. When half of it waits, events go to
        /// `spool_dir`; when that fails too and it is full, new ones are dropped and counted.
        pub record_buffer: usize = 100_000,
        /// Where events wait on disk while the statistics are away; a relative path is under the data directory. Keep it on a
        /// volume that outlives the process: what is there at its end is sent by the next one.
        pub spool_dir: PathBuf = "spool".into(),
        /// What events on disk may take, about 150 bytes each: 7 million of them, 6 minutes at 20,000 frames/s. Past it the
        /// oldest are dropped, counted and logged. 0: no spool.
        pub spool_max_bytes: ByteSize = ByteSize::mib(1024),
        /// Events that the statistics did not acknowledge for this long go to disk: what SIGKILL may cost. Longer than
        /// a commit takes on a busy day.
        pub spool_after: HumanDuration = HumanDuration::from_secs(1),
        /// What events on disk survive: "process" (SIGKILL of ingest) or "power" (loss of power too: an fsync per batch).
        pub spool_durability: SpoolDurability = SpoolDurability::Process,
        /// Events sent to the statistics in one batch.
        pub record_batch: usize = 500,
        /// How long an event waits for its batch to fill.
        pub record_linger: HumanDuration = HumanDuration::from_millis(50),
        /// How long calls and unsent events may take to finish when the process is asked to stop.
        pub drain_timeout: HumanDuration = HumanDuration::from_secs(10),
    }
}

sightline_config::settings! {
    /// How scores become a level. A model's classes have roles: `explicit` and `suggestive` sum up their probabilities.
    pub struct PolicyConfig in "policy" {
        /// Shown in every verdict.
        pub name: String = "default".into(),
        /// Shown in every verdict; change it with the numbers.
        pub version: String = "1".into(),
        /// SEVERE from this probability of explicit classes on.
        pub severe: f32 = 0.95,
        /// EXPLICIT from this probability of explicit classes on.
        pub explicit: f32 = 0.70,
        /// SUGGESTIVE from this probability of explicit and suggestive classes together on.
        pub suggestive: f32 = 0.60,
        /// MILD from this probability of explicit and suggestive classes together on.
        pub mild: f32 = 0.30,
        /// When a client should send its next frame, usually and after an unsafe one (R4).
        pub capture_interval: HumanDuration = HumanDuration::from_secs(5),
        /// The same after `calm_after` safe frames in a row.
        pub calm_interval: HumanDuration = HumanDuration::from_secs(10),
        /// Safe frames in a row until `calm_interval`.
        pub calm_after: u32 = 6,
        /// The same after `quiet_after` safe frames in a row.
        pub quiet_interval: HumanDuration = HumanDuration::from_secs(15),
        /// Safe frames in a row until `quiet_interval`.
        pub quiet_after: u32 = 12,
    }
}

impl PolicyConfig {
    /// Checks what types cannot.
    ///
    /// # Errors
    /// A text naming the key.
    pub fn validate(&self) -> Result<(), String> {
        for (key, value) in [
            ("severe", self.severe),
            ("explicit", self.explicit),
            ("suggestive", self.suggestive),
            ("mild", self.mild),
        ] {
            if !(0.0..=1.0).contains(&value) {
                return Err(format!("`policy.{key}`: {value} is not a probability from 0 to 1"));
            }
        }
        if self.severe < self.explicit || self.suggestive < self.mild {
            return Err("`policy`: severe must not be below explicit, nor suggestive below mild".into());
        }
        if self.quiet_after < self.calm_after {
            return Err("`policy.quiet_after` must not be below `policy.calm_after`".into());
        }
        Ok(())
    }
}

impl IngestConfig {
    /// Checks what types cannot.
    ///
    /// # Errors
    /// A text naming the key.
    pub fn validate(&self) -> Result<(), String> {
        let counts = [
            ("max_batch", self.max_batch),
            ("batch_concurrency", self.batch_concurrency),
            ("stream_in_flight", self.stream_in_flight),
            ("classifier_streams", self.classifier_streams),
            ("record_buffer", self.record_buffer),
            ("record_batch", self.record_batch),
        ];
        for (key, time) in [
            ("cache_redis_timeout", self.cache_redis_timeout),
            ("cache_redis_ttl", self.cache_redis_ttl),
            ("cache_redis_ttl_unsafe", self.cache_redis_ttl_unsafe),
            ("cache_redis_lease", self.cache_redis_lease),
        ] {
            if time.as_millis() == 0 {
                return Err(format!("`ingest.{key}` must be at least 1ms"));
            }
        }
        match counts.iter().find(|(_, count)| *count == 0) {
            Some((key, _)) => Err(format!("`ingest.{key}` must be at least 1")),
            None if self.record_batch > 5_000 => {
                Err("`ingest.record_batch` must be at most 5000, the largest batch the statistics take"
                    .into())
            }
            None if (1..MIN_BYTES).contains(&self.spool_max_bytes.0) => {
                Err(format!("`ingest.spool_max_bytes` must be 0 or at least {}", ByteSize(MIN_BYTES)))
            }
            None => Ok(()),
        }
    }
}
