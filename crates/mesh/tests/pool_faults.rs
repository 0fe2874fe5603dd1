//! The stream pool under random faults, on a paused clock over connections in memory: an hour of trouble in a second.
//! `SIGHTLINE_TEST_SEEDS` sets how many seeds are tried.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // helpers of tests: a panic is a failed test, figures are of use

mod scripted;

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::SmallRng};
use scripted::{Script, Scripted, TestLane, ask};
use sightline_mesh::{
    Deadline,
    client::{Address, BoxFuture, BoxedIo, Cluster, ClusterOptions, Connect, Fixed, PoolOptions, StreamPool},
    reason,
};
use sightline_proto::ratelimiter::rate_limiter_service_server::RateLimiterServiceServer;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex},
    sync::{Notify, mpsc, watch},
    task::JoinSet,
    time::{Instant, sleep},
};
use tokio_stream::{StreamExt, wrappers::ReceiverStream};

/// Bytes that one direction of a connection holds.
const PIPE: usize = 64 << 10;
/// What every stream is granted.
const CREDITS: u32 = 8;

/// A replica behind a wire that can be cut or go silent.
#[derive(Debug)]
struct Host {
    script: Arc<Script>,
    accept: mpsc::Sender<DuplexStream>,
    /// Tells connections to break.
    cut: Notify,
    /// Nothing passes while it is set.
    silent: watch::Sender<bool>,
    /// Nobody listens.
    down: AtomicBool,
}

impl Host {
    fn start() -> Arc<Self> {
        let script = Arc::<Script>::default();
        script.credits.store(CREDITS, Ordering::SeqCst);
        let (accept, accepted) = mpsc::channel(64);
        let service = RateLimiterServiceServer::new(Scripted(Arc::clone(&script)));
        let incoming = ReceiverStream::new(accepted).map(Ok::<_, io::Error>);
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(incoming));
        let silent = watch::Sender::new(false);
        Arc::new(Self { script, accept, cut: Notify::new(), silent, down: AtomicBool::new(false) })
    }

    /// Carries bytes between the two ends until the wire is cut.
    async fn carry(self: Arc<Self>, client: DuplexStream, server: DuplexStream) {
        let ((read, write), (far_read, far_write)) = (tokio::io::split(client), tokio::io::split(server));
        tokio::select! {
            () = self.copy(read, far_write) => {}
            () = self.copy(far_read, write) => {}
            () = self.cut.notified() => {}
        }
    }

    async fn copy(&self, mut from: ReadHalf<DuplexStream>, mut to: WriteHalf<DuplexStream>) {
        let (mut silent, mut buffer) = (self.silent.subscribe(), vec![0; 4096]);
        loop {
            let Ok(count @ 1..) = from.read(&mut buffer).await else { return };
            silent.wait_for(|silent| !silent).await.unwrap();
            if to.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    }
}

/// Connects to hosts by name.
#[derive(Debug, Clone)]
struct Wires(Arc<HashMap<String, Arc<Host>>>);

impl Connect for Wires {
    fn connect<'a>(&'a self, address: &'a Address) -> BoxFuture<'a, io::Result<BoxedIo>> {
        Box::pin(async move {
            let host = &self.0[&address.authority];
            host.silent.subscribe().wait_for(|silent| !silent).await.unwrap();
            if host.down.load(Ordering::SeqCst) {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            let ((client, near), (far, server)) = (duplex(PIPE), duplex(PIPE));
            host.accept.send(server).await.map_err(io::Error::other)?;
            tokio::spawn(Arc::clone(host).carry(near, far));
            Ok(Box::new(client) as BoxedIo)
        })
    }
}

/// Does something bad to a host for a while.
async fn trouble(host: Arc<Host>, mut rng: SmallRng, until: Instant) {
    while Instant::now() < until {
        sleep(Duration::from_millis(rng.random_range(20..900))).await;
        let script = &host.script;
        script.delay_ms.store(rng.random_range(1..60), Ordering::SeqCst);
        match rng.random_range(0..7) {
            0 => host.cut.notify_waiters(),
            1 => {
                host.down.store(true, Ordering::SeqCst);
                host.cut.notify_waiters();
                sleep(Duration::from_millis(rng.random_range(10..1500))).await;
                host.down.store(false, Ordering::SeqCst);
            }
            2 => {
                host.silent.send_replace(true);
                sleep(Duration::from_millis(rng.random_range(10..6000))).await;
                host.silent.send_replace(false);
            }
            3 => script.drain.notify_waiters(),
            4 => {
                script.full.store(true, Ordering::SeqCst);
                sleep(Duration::from_millis(rng.random_range(10..500))).await;
                script.full.store(false, Ordering::SeqCst);
            }
            5 => {
                script.breaks.store(true, Ordering::SeqCst);
                sleep(Duration::from_millis(rng.random_range(1..100))).await;
                script.breaks.store(false, Ordering::SeqCst);
            }
            _ => script.delay_ms.store(rng.random_range(100..3000), Ordering::SeqCst),
        }
    }
    host.script.delay_ms.store(1, Ordering::SeqCst);
}

/// What came of the messages of one run.
#[derive(Debug, Default)]
struct Tally {
    answered: usize,
    failed: HashMap<String, usize>,
}

async fn run(seed: u64, repeatable: bool) -> Tally {
    let mut rng = SmallRng::seed_from_u64(seed);
    let names: Vec<String> = (0..3).map(|n| format!("host-{n}:1")).collect();
    let hosts: Vec<Arc<Host>> = names.iter().map(|_| Host::start()).collect();
    let wires = Wires(Arc::new(names.iter().cloned().zip(hosts.iter().cloned()).collect()));
    let fixed = Fixed::from_uris("scripted", &names).unwrap();
    let mut cluster = ClusterOptions::new("scripted", fixed);
    cluster.connect = Arc::new(wires);
    cluster.seed = Some(seed);
    // Streams that are replaced all the time, or those that keep what happened to them.
    let max_age = Duration::from_secs(if seed.is_multiple_of(2) { 1 } else { 3600 });
    let options = PoolOptions { max_age, seed: Some(seed), ..PoolOptions::default() };
    let pool = StreamPool::start(TestLane { repeatable }, Cluster::start(cluster), options);
    let until = Instant::now() + Duration::from_secs(10);
    let mut troubles = JoinSet::new();
    for host in &hosts {
        troubles.spawn(trouble(Arc::clone(host), SmallRng::seed_from_u64(rng.random()), until));
    }
    let (mut calls, tally) = (JoinSet::new(), Arc::<Mutex<Tally>>::default());
    for n in 0..800 {
        let (pool, tally) = (pool.clone(), Arc::clone(&tally));
        let time = Duration::from_millis(rng.random_range(20..5000));
        calls.spawn(async move {
            let (name, since) = (format!("message-{n}"), Instant::now());
            let outcome = pool.call(Deadline::after(time), ask(name.clone())).await;
            // The timer's own step is 1 ms.
            assert!(since.elapsed() <= time + Duration::from_millis(2), "{:?} of {time:?}", since.elapsed());
            let tally = &mut *tally.lock().unwrap();
            match outcome {
                Ok(answer) => {
                    assert_eq!(answer, name);
                    tally.answered += 1;
                }
                Err(error) => *tally.failed.entry(error.reason).or_default() += 1,
            }
        });
        sleep(Duration::from_millis(rng.random_range(0..25))).await;
    }
    calls.join_all().await;
    troubles.join_all().await;
    settles(&pool).await;
    let greedy: usize = hosts.iter().map(|host| host.script.greedy.load(Ordering::SeqCst)).sum();
    assert_eq!(greedy, 0, "messages beyond the credits granted");
    let mut acted: HashMap<String, usize> = HashMap::new();
    for host in &hosts {
        for (name, count) in &*host.script.acted.lock().unwrap() {
            *acted.entry(name.clone()).or_default() += count;
        }
    }
    let most = if repeatable { PoolOptions::default().max_attempts } else { 1 };
    assert!(acted.values().all(|count| *count <= most), "seed {seed}");
    Arc::into_inner(tally).unwrap().into_inner().unwrap()
}

/// When the trouble is over every credit is back and the next messages are answered.
async fn settles(pool: &StreamPool<TestLane>) {
    let whole = || {
        pool.snapshot().streams.iter().all(|streams| {
            (streams.unanswered, streams.leaving) == (0, 0)
                && streams.open > 0
                && streams.credits == streams.open * CREDITS as usize
        })
    };
    let mut waited = 0;
    while !whole() {
        sleep(Duration::from_millis(100)).await;
        waited += 1;
        assert!(waited < 1200, "{:?}", pool.snapshot());
    }
    for n in 0..20 {
        pool.call(Deadline::after(Duration::from_secs(5)), ask(format!("after-{n}"))).await.unwrap();
    }
}

fn seeds() -> u64 {
    std::env::var("SIGHTLINE_TEST_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(8)
}

#[tokio::test(start_paused = true)]
async fn whatever_happens_a_message_is_answered_once_or_fails_in_time() {
    let (mut answered, mut failed) = (0, HashMap::<String, usize>::new());
    for seed in 0..seeds() {
        let tally = run(seed, true).await;
        answered += tally.answered;
        tally.failed.into_iter().for_each(|(reason, count)| *failed.entry(reason).or_default() += count);
    }
    println!("{answered} answered, {failed:?}");
    let all = answered + failed.values().sum::<usize>();
    assert!(answered * 10 > all * 8, "{answered} of {all}: {failed:?}");
    let known = [reason::DEADLINE_EXCEEDED, reason::SERVICE_UNAVAILABLE, "FULL"];
    assert!(failed.keys().all(|reason| known.contains(&reason.as_str())), "{failed:?}");
}

#[tokio::test(start_paused = true)]
async fn whatever_happens_a_message_that_must_not_be_repeated_is_acted_on_once() {
    let mut answered = 0;
    for seed in 0..seeds() {
        answered += run(seed, false).await.answered;
    }
    println!("{answered} answered");
}
