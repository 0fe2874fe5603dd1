//! One world from its beginning to its end.

use std::{
    sync::{Arc, mpsc},
    time::Duration,
};

use crate::{
    batch, client, entropy,
    faults::{self, CLIENT},
    ledger::Ledger,
    network::Names,
    plan::{END, LONGEST, Plan},
    plant::Plant,
    replica::Host,
};

/// How long a world may run on a slow machine. One that takes longer goes in circles without time passing.
const HANGS: Duration = Duration::from_secs(120);
/// A world's stack: futures are large without optimisation.
const STACK: usize = 16 << 20;

/// The only world of this process. Says what came of it, and ends the process if a promise is broken.
pub fn alone(seed: u64) {
    let plant = std::env::var(batch::PLANT).ok().and_then(|name| Plant::named(&name));
    let again = format!(
        "{}={seed} cargo test -p sightline-mesh --test simulation one_world -- --nocapture",
        batch::SEED
    );
    let hint = again.clone();
    std::panic::set_hook(Box::new(move |panic| {
        eprintln!("{panic}\nrun it alone: {hint}");
        std::process::exit(1);
    }));
    let (done, ended) = mpsc::sync_channel(1);
    // A thread of its own: its randomness begins anew, whatever ran before.
    let world = std::thread::Builder::new().stack_size(STACK).spawn(move || {
        entropy::enter(seed);
        let broken = run(seed, plant);
        done.send(broken).unwrap();
    });
    world.unwrap();
    match ended.recv_timeout(HANGS) {
        Ok(broken) if broken.is_empty() => {}
        Ok(broken) => panic!("seed {seed}: {}", broken.join("\n")),
        Err(_) => panic!("seed {seed}: it is at no end after {HANGS:?}"),
    }
}

/// Runs a world; what is broken at its end.
fn run(seed: u64, plant: Option<Plant>) -> Vec<String> {
    let plan = Arc::new(Plan::new(seed));
    let names = Names::default();
    let host =
        |(number, serving)| Host::new(number, plan.credits, serving, seed ^ (number as u64 + 1), &names);
    let hosts: Vec<Arc<Host>> = plan.replicas.iter().copied().enumerate().map(host).collect();
    let ledger = Ledger::new(&plan, hosts.clone());
    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .tick_duration(plan.tick)
        .max_message_latency(plan.latency)
        .repair_rate(0.3)
        .simulation_duration(LONGEST)
        .epoch(std::time::UNIX_EPOCH)
        .enable_random_order()
        .build();
    for host in &hosts {
        let running = Arc::clone(host);
        sim.host(host.name.as_str(), move || Arc::clone(&running).run());
    }
    sim.client(
        CLIENT,
        client::run(Arc::clone(&plan), names.clone(), hosts.clone(), Arc::clone(&ledger), plant),
    );
    let mut faults = plan.faults.iter().peekable();
    let mut over = false;
    loop {
        let at = sim.elapsed();
        entropy::tick(at);
        while let Some((_, fault)) = faults.next_if(|(when, _)| *when <= at) {
            ledger.note(at, format_args!("{fault:?}"));
            fault.happen(&mut sim, &hosts);
        }
        if at >= END && !over {
            over = true;
            ledger.note(at, format_args!("the trouble is over"));
            faults::end(&mut sim, &hosts, plan.latency);
        }
        match sim.step() {
            Ok(false) if ledger.all_broken().is_empty() => {}
            Ok(_) => break,
            Err(error) => {
                ledger.broken(format_args!("the simulation ended: {error}"));
                break;
            }
        }
    }
    batch::report(&plan, &ledger);
    ledger.all_broken()
}
