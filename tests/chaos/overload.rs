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

#[tokio::test(flavor = "multi_thread")]
async fn five_times_the_load_costs_little_of_what_can_be_done() {
    let _alone = ALONE.lock().await;
    let folder = tempfile::tempdir().unwrap();
    // Slow, so that refusals, which cost the same whatever a model takes, take little of the machine that all share.
    let model = Small { work: 120, ..Small::default() };
    let shape = Shape { replicas: Replicas::each(3), model, settings: &[], reach: &[] };
    let Some(cluster) = start(&folder, &shape) else { return };
    let flood = Flood::new(&cluster).await;

    flood.callers(CALLERS, Duration::from_secs(2)).await;
    let calm = Duration::from_secs(8);
    let first = goodput(&flood.callers(CALLERS, calm).await, calm);

    // Queues fill first; what they cost is not the surge's to repeat.
    flood.pour(TIMES * first, Duration::from_secs(5)).await;
    let (before, filled) = (attempts(&cluster), memory(&cluster));
    let surge = Duration::from_secs(number("SIGHTLINE_CHAOS_SURGE", SURGE));
    let told = flood.pour(TIMES * first, surge).await;
    let (after, end) = (attempts(&cluster), memory(&cluster));
    let recovering = flood.pour(first / 2.0, RECOVERS + Duration::from_secs(3)).await;
    // Measured before and after: a machine that others use too is not the same all the time.
    let second = goodput(&flood.callers(CALLERS, calm).await, calm);
    let capacity = f64::midpoint(first, second);
    println!("{first:.1} and, at the end, {second:.1} verdicts/s from callers who wait");

    let served = goodput(&told, surge);
    let (slowest, refused) =
        (at(0.99, &told, |told| told.refusal.is_none()), |told: &Told| told.refusal.is_some());
    println!(
        "{:.1} frames/s asked: {served:.1} verdicts/s = {:.2} of capacity, p50 {:.0?}, p99 {slowest:.0?}; refused after {:.0?}, p99 {:.0?}",
        TIMES * first,
        served / capacity,
        at(0.5, &told, |told| told.refusal.is_none()),
        at(0.5, &told, refused),
        at(0.99, &told, refused),
    );
    let mut reasons: BTreeMap<(String, String), usize> = BTreeMap::new();
    for refusal in told.iter().filter_map(|told| told.refusal.as_ref()) {
        *reasons.entry((format!("{:?}", refusal.code), refusal.reason.clone())).or_default() += 1;
    }
    let repeats = (after[1] - before[1]) / (after[0] - before[0] - (after[1] - before[1])).max(1.0);
    println!(
        "{reasons:?}; {:.1} % of attempts repeat one; {filled:.0} MiB, then {end:.0} MiB",
        repeats * 100.0
    );

    assert!(served >= 0.9 * capacity, "{served:.1} verdicts/s of {capacity:.1}");
    assert!(slowest <= TIMEOUT, "p99 of those who were served: {slowest:?}");
    let mut late = 0;
    for refusal in told.iter().filter_map(|told| told.refusal.as_ref()) {
        // The caller's clock and the server's end a call at the same moment; whose word it is, is chance.
        let by_caller = refusal.code == Code::Cancelled && refusal.message == "Timeout expired";
        if by_caller || refusal.code == Code::DeadlineExceeded {
            late += 1;
            continue;
        }
        let clear = refusal.code == Code::ResourceExhausted && refusal.retry_after.is_some();
        assert!(clear, "{refusal:?}");
    }
    assert!((late as f64) < LATE * told.len() as f64, "{late} of {} are out of time", told.len());
    assert!(repeats < 0.1, "{repeats:.3} of the load is repeats");
    assert!(end < 1.1 * filled, "{filled:.0} MiB, then {end:.0} MiB");
    let late = recovering[0].due + RECOVERS;
    let late: Vec<&Told> = recovering.iter().filter(|told| told.due >= late).collect();
    let slow = late.iter().map(|told| told.took).max().unwrap();
    println!("{} s after the surge: the slowest of {} takes {slow:.0?}", RECOVERS.as_secs(), late.len());
    assert!(late.iter().all(|told| told.refusal.is_none()), "half of capacity is served again");
    assert_eq!(
        block_in_place(|| cluster.metric(Role::Classifier, "classifier_sealed_late_total").unwrap()),
        0.0
    );
    block_in_place(|| cluster.stop().unwrap());
}
