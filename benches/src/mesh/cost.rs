//! The same calls to the same server, by one way after another.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result};
use sightline_benches::cpu;

use crate::{
    child::Child,
    client::{Load, Way},
    options::Options,
};

/// What one way did in one round.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) load: Load,
    /// CPU time per call of the calling and of the called process, in microseconds.
    pub(crate) client: f64,
    pub(crate) server: f64,
}

impl Sample {
    /// Calls a second.
    pub(crate) fn rate(&self) -> f64 {
        self.load.calls as f64 / self.load.seconds
    }
}

/// Samples of each round, by the number of callers and the way.
pub(crate) type Costs = BTreeMap<(usize, Way), Vec<Sample>>;

pub(crate) fn run(options: &Options) -> Result<Costs> {
    let (server, address) = Child::start(&["echo"])?;
    let (_collector, collector) = Child::start(&["collector"])?;
    let mut clients = Vec::new();
    for way in Way::ALL {
        let (client, _) = Child::start(&["client", &format!("{way:?}"), &address, &collector])?;
        clients.push((way, client));
    }
    let mut costs = Costs::new();
    for callers in &options.callers {
        for round in 0..=options.rounds {
            // No way always goes first, nor always after the same.
            for turn in 0..clients.len() {
                let at = if round % 2 == 0 { turn + round } else { round + clients.len() - turn };
                let at = at % clients.len();
                let (way, client) = &mut clients[at];
                let sample = sample(client, &server, *callers, options.length)?;
                eprintln!("{callers} callers, round {round}: {}, {:.0}/s", way.name(), sample.rate());
                // The first one warms everybody up.
                if round > 0 {
                    costs.entry((*callers, *way)).or_default().push(sample);
                }
            }
        }
    }
    Ok(costs)
}

fn sample(client: &mut Child, server: &Child, callers: usize, length: Duration) -> Result<Sample> {
    let clocks = [client.id(), server.id()].map(cpu::of_tree);
    let said = client.ask(&format!("{callers} {}", length.as_millis()))?;
    let load: Load = serde_json::from_str(&said).with_context(|| said.clone())?;
    let ids = [client.id(), server.id()];
    let each = |at: usize| {
        let spent = cpu::of_tree(ids[at]).saturating_sub(clocks[at]);
        spent.as_secs_f64() * 1e6 / load.calls as f64
    };
    Ok(Sample { client: each(0), server: each(1), load })
}
