//! The client of a world: two pools and two channels over one cluster, and callers of them.

use std::{sync::Arc, time::Duration};

use rand::Rng;
use sightline_mesh::{
    Deadline, RpcError,
    client::{
        CallOptions, Channel, Cluster, ClusterOptions, MethodPolicies, MethodPolicy, RetryBudgetOptions,
        StreamPool,
    },
};
use sightline_proto::ratelimiter::{CheckRequest, rate_limiter_service_client::RateLimiterServiceClient};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    lane::SimLane,
    ledger::{Kind, Ledger, now},
    network::{Names, SimConnect},
    plan::{LOAD, MS, Plan},
    plant::{self, Plant},
    replica::Host,
    scripted::{TestLane, ask},
    settle,
};

/// The longest deadline of a message.
const LONGEST: u64 = 5000;
/// What a call is sent to.
const CHECK: &str = "/sightline.ratelimiter.v1.RateLimiterService/Check";

/// What messages are sent with. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    pub cluster: Cluster,
    /// What may be repeated, and what must not.
    pub pools: [StreamPool<SimLane>; 2],
    channels: [Channel; 2],
    pub ledger: Arc<Ledger>,
    plant: Option<Plant>,
}

impl Client {
    fn start(
        plan: &Plan,
        names: Names,
        connect: Arc<SimConnect>,
        ledger: &Arc<Ledger>,
        plant: Option<Plant>,
    ) -> Self {
        let mut options = ClusterOptions::new("simulated", names);
        options.connect = connect;
        options.seed = Some(plan.seed);
        let cluster = Cluster::start(options.mesh(plan.mesh.clone()));
        let pools = [true, false].map(|repeatable| {
            let lane = SimLane { lane: TestLane { repeatable }, ledger: Arc::clone(ledger), plant };
            StreamPool::start(lane, cluster.clone(), plan.pool)
        });
        let budget = RetryBudgetOptions { ratio: 1.0, min_per_second: 100.0, burst: 1000.0 };
        let calls = CallOptions { budget, seed: Some(plan.seed), ..CallOptions::default() };
        let safe = MethodPolicy::idempotent().attempt_timeout(1000 * MS).hedge_after(300 * MS);
        let channels = [safe, MethodPolicy::once()].map(|policy| {
            let policies = MethodPolicies::default().method(CHECK, policy).unwrap();
            Channel::new(cluster.clone(), &policies, calls)
        });
        Self { cluster, pools, channels, ledger: Arc::clone(ledger), plant }
    }

    /// Sends a message and writes down how it ended, unless the caller gives up before.
    pub async fn send(&self, name: String, kind: Kind, time: Duration, patience: Option<Duration>) -> bool {
        self.ledger.begin(&name, kind, time);
        let answer = self.answer(name.clone(), kind, Plant::wait(self.plant, time));
        let heard = match patience {
            None => answer.await,
            Some(patience) => match timeout(patience, answer).await {
                Ok(heard) => heard,
                Err(_) => {
                    self.ledger.gave_up(&name);
                    return false;
                }
            },
        };
        let answered = heard.is_ok();
        self.ledger.end(&name, heard.map_err(|error| error.reason));
        answered
    }

    async fn answer(&self, name: String, kind: Kind, time: Duration) -> Result<String, RpcError> {
        let mutable = usize::from(!kind.may_repeat());
        if matches!(kind, Kind::Repeatable | Kind::Once) {
            let make = ask(name.clone());
            let build = move |id| {
                self.ledger.built(&name);
                make(id)
            };
            return self.pools[mutable].call(Deadline::after(time), build).await;
        }
        let mut client = RateLimiterServiceClient::new(self.channels[mutable].clone());
        let mut request = tonic::Request::new(CheckRequest { tenant: name, ..CheckRequest::default() });
        request.set_timeout(time);
        let answer = client.check(request).await;
        answer.map(|answer| answer.into_inner().refused_by).map_err(|status| RpcError::from_status(&status))
    }
}

/// What runs on the client's host: the whole world from its point of view.
pub async fn run(
    plan: Arc<Plan>,
    names: Names,
    hosts: Vec<Arc<Host>>,
    ledger: Arc<Ledger>,
    plant: Option<Plant>,
) -> turmoil::Result {
    let connect = Arc::<SimConnect>::default();
    let client = Client::start(&plan, names, Arc::clone(&connect), &ledger, plant);
    let mut watching = vec![
        AbortOnDropHandle::new(tokio::spawn(settle::watch_states(client.clone()))),
        AbortOnDropHandle::new(tokio::spawn(settle::watch_books(
            client.clone(),
            plan.credits as usize,
            plan.tick,
        ))),
    ];
    if plant == Some(Plant::PicksEjected) {
        let picking = plant::pick_ejected(client.cluster.clone(), Arc::clone(&ledger));
        watching.push(AbortOnDropHandle::new(tokio::spawn(picking)));
    }
    load(&plan, &client).await;
    settle::settles(&plan, &client).await;
    ledger.close();
    for handle in watching {
        handle.abort();
        handle.await.ok();
    }
    drop(client);
    settle::nothing_is_left(&plan, &connect, &hosts, &ledger).await;
    Ok(())
}

/// Messages of all kinds, before the trouble, during it and after it.
async fn load(plan: &Plan, client: &Client) {
    let mut rng = plan.rng(1);
    let mut calls = JoinSet::new();
    sleep(LOAD.0).await;
    for n in 0.. {
        if now() >= LOAD.1 {
            break;
        }
        let kind = match rng.random_range(0..10) {
            0..4 => Kind::Repeatable,
            4..8 => Kind::Once,
            8 => Kind::SafeCall,
            _ => Kind::UnsafeCall,
        };
        let time = Duration::from_millis(rng.random_range(20..LONGEST));
        let patience = rng.random_bool(0.1).then(|| time.mul_f64(rng.random_range(0.0..1.0)));
        let client = client.clone();
        calls.spawn(async move { client.send(format!("m{n}"), kind, time, patience).await });
        // Now and then several come at once.
        if rng.random_bool(0.8) {
            sleep(Duration::from_millis(rng.random_range(0..plan.pace_ms))).await;
        }
    }
    let bound = Duration::from_millis(2 * LONGEST) + 1000 * MS;
    if timeout(bound, async { while calls.join_next().await.is_some() {} }).await.is_err() {
        client.ledger.broken(format_args!("{} callers hang", calls.len()));
    }
}
