use std::{
    io,
    sync::{Arc, Weak, atomic::AtomicU64},
    time::Duration,
};

use super::{
    Pick,
    view::{Choice, Refusal, View},
};
use crate::{
    Deadline,
    client::{
        Address, Balance, BoxFuture, BoxedIo, Connect, Endpoint, EndpointId, MeshOptions, Outcome, Picked,
        State, Transport, TransportOptions, ZoneOptions, balance::ring_hash::Ring, dice::Dice,
    },
};

/// Connects to nobody who speaks HTTP/2 all the same.
#[derive(Debug)]
struct InMemory;

impl Connect for InMemory {
    fn connect<'a>(&'a self, _: &'a Address) -> BoxFuture<'a, io::Result<BoxedIo>> {
        Box::pin(async {
            let (ours, theirs) = tokio::io::duplex(1 << 16);
            tokio::spawn(async move {
                let mut server = h2::server::handshake(theirs).await.unwrap();
                while server.accept().await.is_some() {}
            });
            Ok(Box::new(ours) as BoxedIo)
        })
    }
}

async fn transport(address: &Address) -> Transport {
    Transport::connect(&InMemory, address, &TransportOptions::default()).await.unwrap()
}

/// A connected endpoint that serves.
async fn endpoint(n: usize, zone: &str, options: &MeshOptions) -> Arc<Endpoint> {
    let address = Address::new(&format!("10.0.0.{n}:7401")).unwrap().in_zone(zone);
    let transport = transport(&address).await;
    let dice = Arc::new(Dice::new(Some(n as u64)));
    let endpoint = Arc::new(Endpoint::new(address, options, dice, Weak::new()));
    endpoint.connected(transport);
    assert_eq!(endpoint.state(), State::Connecting, "it has not said that it serves");
    endpoint.heard(Ok(()));
    assert_eq!(endpoint.state(), State::Ready);
    endpoint
}

/// One in each of these zones.
async fn endpoints(zones: &[&str], options: &MeshOptions) -> Vec<Arc<Endpoint>> {
    let mut all = Vec::new();
    for (n, zone) in zones.iter().enumerate() {
        all.push(endpoint(n, zone, options).await);
    }
    all
}

struct Chooser {
    all: Vec<Arc<Endpoint>>,
    options: MeshOptions,
    dice: Dice,
    turn: AtomicU64,
}

impl Chooser {
    async fn new(zones: &[&str], options: MeshOptions) -> Self {
        let all = endpoints(zones, &options).await;
        Self { all, options, dice: Dice::new(Some(1)), turn: AtomicU64::new(0) }
    }

    fn view(&self) -> View {
        View::new(&self.all, Arc::new(Ring::new(&self.all)), &self.options)
    }

    fn choose(&self, key: Option<u64>, avoid: &[EndpointId]) -> Result<Picked, Refusal> {
        let pick = Pick { deadline: Deadline::after(Duration::from_secs(1)), key, avoid };
        Ok(self.choose_from(&self.view(), pick)?.begin().unwrap())
    }

    fn choose_from(&self, view: &View, pick: Pick<'_>) -> Result<Choice, Refusal> {
        view.choose(pick, &self.options, &self.dice, &self.turn)
    }

    /// Which endpoints take some of 200 calls that end at once.
    fn chosen(&self, avoid: &[EndpointId]) -> Vec<usize> {
        let mut seen = vec![false; self.all.len()];
        for _ in 0..200 {
            let picked = self.choose(None, avoid).unwrap();
            seen[self.index(&picked)] = true;
            picked.done(Outcome::Success);
        }
        (0..seen.len()).filter(|n| seen[*n]).collect()
    }

    fn index(&self, picked: &Picked) -> usize {
        self.all.iter().position(|endpoint| endpoint.id() == picked.endpoint().id()).unwrap()
    }
}

fn in_turns() -> MeshOptions {
    MeshOptions { balance: Balance::RoundRobin, ..MeshOptions::default() }
}

#[tokio::test(start_paused = true)]
async fn calls_stay_in_the_own_zone_while_enough_of_it_is_usable() {
    let zone = ZoneOptions { own: Some("a".into()), ..ZoneOptions::default() };
    let chooser = Chooser::new(&["a", "a", "a", "a", "b", "b"], MeshOptions { zone, ..in_turns() }).await;
    assert_eq!(chooser.chosen(&[]), [0, 1, 2, 3]);
    chooser.all[0].heard(Err("stops".into()));
    assert_eq!(chooser.chosen(&[]), [1, 2, 3], "three of four are enough");
    chooser.all[1].heard(Err("stops".into()));
    assert_eq!(chooser.chosen(&[]), [2, 3, 4, 5], "two of four are not");
    let avoid = [chooser.all[2].id(), chooser.all[3].id()];
    chooser.all[1].heard(Ok(()));
    assert_eq!(chooser.chosen(&avoid), [1]);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_failed_on_all_of_its_zone_goes_to_another() {
    let zone = ZoneOptions { own: Some("a".into()), ..ZoneOptions::default() };
    let chooser = Chooser::new(&["a", "b"], MeshOptions { zone, ..in_turns() }).await;
    assert_eq!(chooser.chosen(&[chooser.all[0].id()]), [1]);
    let both = [chooser.all[0].id(), chooser.all[1].id()];
    assert!(!chooser.chosen(&both).is_empty(), "if there is no other, one that failed will do");
}

#[tokio::test(start_paused = true)]
async fn nobody_is_both_ejected_and_chosen_but_in_panic() {
    let chooser = Chooser::new(&["a"; 4], in_turns()).await;
    chooser.all[0].eject("test");
    chooser.all[1].eject("test");
    assert_eq!(chooser.all[0].state(), State::Ejected);
    assert_eq!(chooser.chosen(&[]), [2, 3], "half are usable: no panic");
    let stale = chooser.view();
    chooser.all[2].eject("test");
    for _ in 0..50 {
        let pick = Pick::until(Deadline::after(Duration::from_secs(1)));
        let picked = chooser.choose_from(&stale, pick).unwrap().begin().unwrap();
        assert_eq!(chooser.index(&picked), 3, "also from a view that was built before");
    }
    assert!(chooser.view().panic);
    assert_eq!(chooser.chosen(&[]), [0, 1, 2, 3], "a quarter is usable: all are used");
}

#[tokio::test(start_paused = true)]
async fn a_lame_duck_is_a_last_resort_and_one_that_never_served_is_not() {
    let chooser = Chooser::new(&["a"; 2], in_turns()).await;
    chooser.all[0].heard(Err("stops".into()));
    chooser.all[1].heard(Err("stops".into()));
    assert_eq!(chooser.chosen(&[]), [0, 1]);
    chooser.all[1].connected(transport(chooser.all[1].address()).await);
    chooser.all[1].heard(Err("starts".into()));
    assert_eq!(chooser.chosen(&[]), [0]);
    chooser.all[0].disconnected("gone".into());
    assert_eq!(chooser.choose(None, &[]).unwrap_err(), Refusal::Nobody);
    assert!(!chooser.view().is_usable());
}

#[tokio::test(start_paused = true)]
async fn a_half_open_endpoint_gets_one_call_at_a_time() {
    let chooser = Chooser::new(&["a"; 3], in_turns()).await;
    let tried = &chooser.all[0];
    tried.eject("test");
    tried.probation(Ok(()));
    assert_eq!((tried.state(), tried.is_usable()), (State::HalfOpen, true));
    let probe = chooser.choose(None, &[]).unwrap();
    assert!(probe.is_probe() && chooser.index(&probe) == 0, "the next call tries it");
    assert_eq!(chooser.chosen(&[]), [1, 2], "no other while it does");
    probe.done(Outcome::Failure(tonic::Code::Internal));
    assert_eq!(tried.state(), State::Ejected);
    tried.probation(Err("not serving".into()));
    assert_eq!(tried.state(), State::Ejected, "its health is asked first");
    tried.probation(Ok(()));
    assert!(!chooser.choose(None, &[tried.id()]).unwrap().is_probe(), "not for a call that failed on it");
    chooser.choose(None, &[]).unwrap().done(Outcome::Failure(tonic::Code::InvalidArgument));
    assert_eq!(tried.state(), State::Ready, "the caller's mistake is an answer");
}

#[tokio::test(start_paused = true)]
async fn who_is_chosen_is_not_counted_before_the_call_begins() {
    let chooser = Chooser::new(&["a"; 2], in_turns()).await;
    let tried = &chooser.all[0];
    tried.eject("test");
    tried.probation(Ok(()));
    let peek = || {
        let pick = Pick::until(Deadline::after(Duration::from_secs(1)));
        chooser.choose_from(&chooser.view(), pick).unwrap()
    };
    let choices = [peek(), peek()];
    assert!(choices.iter().all(|choice| choice.id() == tried.id()), "it is to be tried");
    assert_eq!((tried.in_flight(), tried.is_usable()), (0, true), "and nobody does yet");
    let probe = choices[0].begin().unwrap();
    assert!(probe.is_probe() && choices[1].begin().is_none(), "one at a time");
    assert_eq!(tried.in_flight(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_long_answer_that_has_begun_keeps_nobody_from_an_endpoint_on_trial() {
    let chooser = Chooser::new(&["a"; 3], in_turns()).await;
    let tried = &chooser.all[0];
    tried.eject("test");
    tried.probation(Ok(()));
    let mut stream = chooser.choose(None, &[]).unwrap();
    assert!(stream.is_probe());
    stream.answered();
    assert_eq!(tried.state(), State::Ready);
    assert_eq!(chooser.chosen(&[]), [0, 1, 2]);
    stream.done(Outcome::Failure(tonic::Code::Internal));
    assert_eq!(tried.state(), State::Ready, "one failure, as that of any call");
}

#[tokio::test(start_paused = true)]
async fn no_endpoint_takes_more_calls_than_it_may() {
    for balance in [Balance::LeastLoaded, Balance::RoundRobin, Balance::RingHash] {
        let options = MeshOptions { balance, max_in_flight: 3, ..MeshOptions::default() };
        let chooser = Chooser::new(&["a"; 2], options).await;
        let held: Vec<Picked> = (0..6).map(|_| chooser.choose(Some(7), &[]).unwrap()).collect();
        assert!(chooser.all.iter().all(|endpoint| endpoint.in_flight() == 3), "{balance:?}");
        assert_eq!(chooser.choose(Some(7), &[]).unwrap_err(), Refusal::Full);
        drop(held);
        assert_eq!(chooser.all[0].in_flight() + chooser.all[1].in_flight(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn keys_keep_their_endpoint_and_move_on_when_it_failed_them() {
    let options = MeshOptions { balance: Balance::RingHash, ..MeshOptions::default() };
    let chooser = Chooser::new(&["a"; 3], options).await;
    let at = |key, avoid: &[EndpointId]| chooser.index(&chooser.choose(Some(key), avoid).unwrap());
    let own = at(42, &[]);
    assert!((0..20).all(|_| at(42, &[]) == own));
    let next = at(42, &[chooser.all[own].id()]);
    assert_ne!(next, own);
    chooser.all[own].disconnected("gone".into());
    assert_eq!(at(42, &[]), next, "the same that a retry takes");
}
