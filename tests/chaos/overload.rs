//! Five times as many frames as the classifiers can do.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use sightline_mesh::RpcError;
use sightline_proto::ingest::{ClassifyRequest, Frame, ingest_service_client::IngestServiceClient};
use sightline_servers::cluster::{Cluster, Replicas, Role};
use sightline_testkit::{frames, models::Small};
use tokio::{
    task::{JoinSet, block_in_place},
    time::{Instant, sleep_until},
};
use tonic::{Code, Request, transport::Channel};

use crate::{
    client::stamped,
    support::{ALONE, APPLICATION, Shape, addresses, number, start},
};

/// How long a caller waits for a verdict: some twenty times what one takes on an idle cluster.
const TIMEOUT: Duration = Duration::from_secs(4);
/// How many times as much as can be done is asked for.
const TIMES: f64 = 5.0;
/// Seconds of it.
const SURGE: u64 = 20;
/// Callers that keep the classifiers busy: four for each.
const CALLERS: usize = 12;
/// After the surge all must be as before within this.
const RECOVERS: Duration = Duration::from_secs(5);

/// How long callers who wait are counted.
const CALM: Duration = Duration::from_secs(8);
/// A machine that did so much more or less after a surge than before it cannot tell nine tenths from ten …
const STEADY: f64 = 0.05;
/// … which is repeated then, so many times in all.
const SURGES: usize = 4;
/// What a caller that all share a machine with may be late itself.
const SCHEDULED: Duration = Duration::from_millis(100);
/// The part of all that may be let in and not be served in time.
const LATE: f64 = 0.05;

/// How one frame fared.
struct Told {
    due: Instant,
    took: Duration,
    /// None: it has its verdict.
    refusal: Option<RpcError>,
}

/// Those who ask.
struct Flood {
    ingests: Vec<IngestServiceClient<Channel>>,
    image: Vec<u8>,
    frames: AtomicU64,
}

impl Flood {
    async fn new(cluster: &Cluster) -> Arc<Self> {
        let mut ingests = Vec::new();
        for address in addresses(cluster, Role::Ingest) {
            ingests.push(IngestServiceClient::connect(format!("http://{address}")).await.unwrap());
        }
        Arc::new(Self { ingests, image: frames::jpeg(1, 32), frames: AtomicU64::new(0) })
    }

    async fn ask(&self, due: Instant) -> Told {
        let number = self.frames.fetch_add(1, Ordering::Relaxed);
        let frame = Frame {
            user_id: format!("user-{number}"),
            application: APPLICATION.into(),
            image: stamped(&self.image, number).into(),
            ..Frame::default()
        };
        let mut request = Request::new(ClassifyRequest { frame: Some(frame) });
        request.set_timeout(TIMEOUT);
        let mut ingest = self.ingests[number as usize % self.ingests.len()].clone();
        let answer = ingest.classify(request).await;
        Told { due, took: due.elapsed(), refusal: answer.err().map(|status| RpcError::from_status(&status)) }
    }

    /// Callers who ask again as soon as they are answered.
    async fn callers(self: &Arc<Self>, count: usize, length: Duration) -> Vec<Told> {
        let (end, mut callers) = (Instant::now() + length, JoinSet::new());
        for _ in 0..count {
            let flood = Arc::clone(self);
            callers.spawn(async move {
                let mut told = Vec::new();
                while Instant::now() < end {
                    told.push(flood.ask(Instant::now()).await);
                }
                told
            });
        }
        callers.join_all().await.into_iter().flatten().collect()
    }

    /// So many a second, whatever becomes of them.
    async fn pour(self: &Arc<Self>, rate: f64, length: Duration) -> Vec<Told> {
        let (begin, mut calls) = (Instant::now(), JoinSet::new());
        for number in 0..(rate * length.as_secs_f64()) as u32 {
            let due = begin + Duration::from_secs_f64(f64::from(number) / rate);
            sleep_until(due).await;
            let flood = Arc::clone(self);
            calls.spawn(async move { flood.ask(due).await });
        }
        calls.join_all().await
    }
}

/// Verdicts a second, of those that came within `length`: what queues still hold then is worked off later.
fn goodput(told: &[Told], length: Duration) -> f64 {
    let end = told.iter().map(|told| told.due).min().map(|begin| begin + length);
    let served = |told: &&Told| told.refusal.is_none() && Some(told.due + told.took) <= end;
    told.iter().filter(served).count() as f64 / length.as_secs_f64()
}

fn at(share: f64, told: &[Told], which: impl Fn(&Told) -> bool) -> Duration {
    let mut took: Vec<Duration> = told.iter().filter(|told| which(told)).map(|told| told.took).collect();
    took.sort_unstable();
    took.get(((took.len().max(1) - 1) as f64 * share) as usize).copied().unwrap_or_default()
}

/// Attempts at messages, and those that repeat one, over all ingests.
fn attempts(cluster: &Cluster) -> [f64; 2] {
    ["mesh_message_attempts_total", "mesh_retries_total"].map(|name| {
        let classifier = "service=\"classifier\"";
        block_in_place(|| cluster.metric_where(Role::Ingest, name, classifier).unwrap())
    })
}

fn memory(cluster: &Cluster) -> f64 {
    let of = |role| block_in_place(|| cluster.metric(role, "process_resident_memory_bytes").unwrap());
    Role::ALL.into_iter().map(of).sum::<f64>() / f64::from(1 << 20)
}

/// A surge, and what is to be compared with it.
struct Surge {
    /// Verdicts a second from callers who wait, before it and after it.
    calm: [f64; 2],
    length: Duration,
    told: Vec<Told>,
    /// Of what attempts at messages there were, the share that repeats one.
    repeats: f64,
    /// MiB of all processes, with full queues at its beginning and at its end.
    memory: [f64; 2],
    /// Of those who asked after it, those who asked when all was to be as before.
    recovered: Vec<Told>,
}

impl Surge {
    async fn run(flood: &Arc<Flood>, cluster: &Cluster) -> Self {
        flood.callers(CALLERS, Duration::from_secs(2)).await;
        let first = goodput(&flood.callers(CALLERS, CALM).await, CALM);
        // Queues fill first; what they cost is not the surge's to repeat.
        flood.pour(TIMES * first, Duration::from_secs(5)).await;
        let (before, filled) = (attempts(cluster), memory(cluster));
        let length = Duration::from_secs(number("SIGHTLINE_CHAOS_SURGE", SURGE));
        let told = flood.pour(TIMES * first, length).await;
        let (after, end) = (attempts(cluster), memory(cluster));
        // Half of what can be done by now, as far as is known.
        let half = first.min(goodput(&told, length)) / 2.0;
        let mut recovered = flood.pour(half, RECOVERS + Duration::from_secs(3)).await;
        let late = recovered[0].due + RECOVERS;
        recovered.retain(|told| told.due >= late);
        let second = goodput(&flood.callers(CALLERS, CALM).await, CALM);
        let repeated = after[1] - before[1];
        let repeats = repeated / (after[0] - before[0] - repeated).max(1.0);
        Self { calm: [first, second], length, told, repeats, memory: [filled, end], recovered }
    }

    /// What was served, as a share of what can be.
    fn served(&self, capacity: f64) -> f64 {
        goodput(&self.told, self.length) / capacity
    }

    /// Whether the machine did the same before and after: one that others use too is not the same all the time.
    fn is_steady(&self) -> bool {
        let [first, second] = self.calm;
        (first - second).abs() < STEADY * f64::midpoint(first, second)
    }

    fn print(&self) {
        let refused = |told: &Told| told.refusal.is_some();
        let [first, second] = self.calm;
        println!("{first:.1} and, at the end, {second:.1} verdicts/s from callers who wait");
        println!(
            "{:.1} frames/s asked: {:.1} verdicts/s = {:.2} of capacity, p50 {:.0?}, p99 {:.0?}; refused after {:.0?}, p99 {:.0?}",
            TIMES * first,
            goodput(&self.told, self.length),
            self.served(f64::midpoint(first, second)),
            at(0.5, &self.told, |told| !refused(told)),
            at(0.99, &self.told, |told| !refused(told)),
            at(0.5, &self.told, refused),
            at(0.99, &self.told, refused),
        );
        let mut reasons: BTreeMap<(String, String), usize> = BTreeMap::new();
        for refusal in self.told.iter().filter_map(|told| told.refusal.as_ref()) {
            *reasons.entry((format!("{:?}", refusal.code), refusal.reason.clone())).or_default() += 1;
        }
        let [filled, end] = self.memory;
        println!(
            "{reasons:?}; {:.1} % of attempts repeat one; {filled:.0} MiB, then {end:.0} MiB",
            self.repeats * 100.0
        );
        let slow = self.recovered.iter().map(|told| told.took).max().unwrap();
        println!(
            "{} s after the surge: the slowest of {} takes {slow:.0?}",
            RECOVERS.as_secs(),
            self.recovered.len()
        );
    }

    /// All but what was served.
    fn assert_bounded(&self) {
        let slowest = at(0.99, &self.told, |told| told.refusal.is_none());
        assert!(slowest <= TIMEOUT + SCHEDULED, "p99 of those who were served: {slowest:?}");
        let mut late = 0;
        for refusal in self.told.iter().filter_map(|told| told.refusal.as_ref()) {
            // The caller's clock and the server's end a call at the same moment; whose word it is, is chance.
            let by_caller = refusal.code == Code::Cancelled && refusal.message == "Timeout expired";
            if by_caller || refusal.code == Code::DeadlineExceeded {
                late += 1;
                continue;
            }
            let clear = refusal.code == Code::ResourceExhausted && refusal.retry_after.is_some();
            assert!(clear, "{refusal:?}");
        }
        assert!((late as f64) < LATE * self.told.len() as f64, "{late} of {} are late", self.told.len());
        assert!(self.repeats < 0.1, "{:.3} of the load is repeats", self.repeats);
        let [filled, end] = self.memory;
        assert!(end < 1.1 * filled, "{filled:.0} MiB, then {end:.0} MiB");
        assert!(self.recovered.iter().all(|told| told.refusal.is_none()), "half of capacity is served again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn five_times_the_load_costs_little_of_what_can_be_done() {
    let _alone = ALONE.lock().await;
    let folder = tempfile::tempdir().unwrap();
    // Slow, so that refusals, which cost the same whatever a model takes, take little of the machine that all share.
    let model = Small { work: 120, ..Small::default() };
    let shape = Shape { replicas: Replicas::each(3), model, settings: &[], reach: &[] };
    let Some(cluster) = start(&folder, &shape) else { return };
    let flood = Flood::new(&cluster).await;
    let mut surges = 0;
    loop {
        let surge = Surge::run(&flood, &cluster).await;
        surge.print();
        surge.assert_bounded();
        surges += 1;
        let [first, second] = surge.calm;
        let served = surge.served(f64::midpoint(first, second));
        if served >= 0.9 {
            break;
        }
        assert!(!surge.is_steady() && surges < SURGES, "{served:.2} of capacity");
        println!("the machine itself changed meanwhile: once more");
    }
    assert_eq!(
        block_in_place(|| cluster.metric(Role::Classifier, "classifier_sealed_late_total").unwrap()),
        0.0
    );
    block_in_place(|| cluster.stop().unwrap());
}
