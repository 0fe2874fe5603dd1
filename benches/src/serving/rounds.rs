//! Rounds: each contestant in turn over the same frames, so that a busy moment of the machine hits all alike.

use std::{
    collections::BTreeMap,
    future::Future,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use bytes::Bytes;
use sightline_benches::{
    cpu,
    product::{Product, Scores, Way},
};
use sightline_proto::verdict::VerdictSource;

use crate::{
    bare::Bare,
    options::Options,
    peer::{self, Peer},
};

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Row {
    Unary,
    Stream,
    Peer,
    Bare,
    RepeatUnary,
    RepeatStream,
}

impl Row {
    /// In the table's order.
    pub(crate) const ALL: [Self; 6] =
        [Self::Unary, Self::Stream, Self::Peer, Self::Bare, Self::RepeatUnary, Self::RepeatStream];

    /// As the table shows it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Unary => "sightline, Classify",
            Self::Stream => "sightline, ClassifyStream",
            Self::Peer => "FastAPI + gunicorn + torch",
            Self::Bare => "bare libtorch loop",
            Self::RepeatUnary => "repeats, Classify",
            Self::RepeatStream => "repeats, ClassifyStream",
        }
    }
}

/// What one contestant did in one round.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    pub(crate) frames: usize,
    pub(crate) took: Duration,
    /// CPU time of the server; of the bare loop, of this process.
    pub(crate) server: Duration,
    /// CPU time of this process where it is the client.
    pub(crate) client: Duration,
    /// CPU time of everything else on the machine.
    pub(crate) others: Duration,
}

impl Sample {
    /// Frames a second.
    pub(crate) fn rate(&self) -> f64 {
        self.frames as f64 / self.took.as_secs_f64()
    }
}

/// The contestants.
pub(crate) struct Field {
    pub(crate) mesh: Product,
    pub(crate) peer: Option<Peer>,
    pub(crate) bare: Option<Bare>,
}

/// What the rounds gave.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    /// A sample per round.
    pub(crate) samples: BTreeMap<Row, Vec<Sample>>,
    /// For each frame the largest difference of a score between the mesh and the peer.
    pub(crate) peer_differs: Vec<f32>,
    /// The same between the mesh and the bare loop.
    pub(crate) bare_differs: Vec<f32>,
}

/// Frames that one round takes: other ones for each way into the mesh, or the second would find a full cache.
pub(crate) fn frames_of_a_round(options: &Options) -> usize {
    2 * options.frames
}

/// Runs one round over frames that were never sent before.
pub(crate) async fn round(
    field: &Field,
    options: &Options,
    number: usize,
    frames: &[Bytes],
    to: &mut Outcome,
) -> Result<()> {
    let (first, second) = frames.split_at(options.frames);
    let mut ours = Scores::new();
    let mut theirs = Scores::new();
    let mut bares = Scores::new();
    for turn in 0..3 {
        // No contestant always goes first.
        match (turn + number) % 3 {
            0 if options.has("mesh") || options.has("repeats") => {
                ours = mesh(field, options, first, second, to).await?;
            }
            1 if let Some(peer) = &field.peer => {
                let connections = peer.connect(options.in_flight).await?;
                let (sample, scores) =
                    measure(Some(peer.id()), first.len(), peer::classify(connections, first)).await?;
                to.samples.entry(Row::Peer).or_default().push(sample);
                theirs = scores;
            }
            2 if let Some(bare) = &field.bare => {
                let (sample, scores) = measure(None, first.len(), async { bare.classify(first) }).await?;
                to.samples.entry(Row::Bare).or_default().push(sample);
                bares = scores;
            }
            _ => {}
        }
    }
    to.peer_differs.extend(differ(&ours, &theirs));
    to.bare_differs.extend(differ(&ours, &bares));
    Ok(())
}

/// Both ways into the mesh, each with fresh frames and then with the same ones again.
async fn mesh(
    field: &Field,
    options: &Options,
    first: &[Bytes],
    second: &[Bytes],
    to: &mut Outcome,
) -> Result<Scores> {
    let (mesh, in_flight) = (&field.mesh, options.in_flight);
    let mut scores = Scores::new();
    for (way, fresh, repeat, frames) in [
        (Way::Unary, Row::Unary, Row::RepeatUnary, first),
        (Way::Stream, Row::Stream, Row::RepeatStream, second),
    ] {
        let run = mesh.classify(way, frames, frames.len(), in_flight, VerdictSource::Model);
        let before = cpu::by_thread(mesh.id());
        let (sample, answers) = measure(Some(mesh.id()), frames.len(), run).await?;
        if options.threads {
            explain(fresh, &before, &cpu::by_thread(mesh.id()), frames.len());
        }
        to.samples.entry(fresh).or_default().push(sample);
        if way == Way::Unary {
            scores = answers;
        }
        if options.has("repeats") {
            let count = options.repeats;
            let run = mesh.classify(way, frames, count, in_flight, VerdictSource::ExactDuplicate);
            let before = cpu::by_thread(mesh.id());
            let (sample, _) = measure(Some(mesh.id()), count, run).await?;
            if options.threads {
                explain(repeat, &before, &cpu::by_thread(mesh.id()), count);
            }
            to.samples.entry(repeat).or_default().push(sample);
        }
    }
    Ok(scores)
}

/// Runs one contestant and looks at the clocks before and after.
pub(crate) async fn measure(
    server: Option<u32>,
    frames: usize,
    run: impl Future<Output = Result<Scores>>,
) -> Result<(Sample, Scores)> {
    let clocks = || (server.map_or(Duration::ZERO, cpu::of_tree), cpu::own(), cpu::machine());
    let (before, since) = (clocks(), Instant::now());
    let scores = run.await?;
    let (took, after) = (since.elapsed(), clocks());
    ensure!(scores.len() == frames, "{} frames of {frames} were answered", scores.len());
    let own = after.1.saturating_sub(before.1);
    let (server, client) = match server {
        Some(_) => (after.0.saturating_sub(before.0), own),
        None => (own, Duration::ZERO),
    };
    let others = after.2.saturating_sub(before.2).saturating_sub(server + client);
    Ok((Sample { frames, took, server, client, others }, scores))
}

/// The largest difference of a score, for each frame that both have.
pub(crate) fn differ(one: &Scores, other: &Scores) -> Vec<f32> {
    let both = one.iter().filter_map(|(at, scores)| Some((scores, other.get(at)?)));
    both.map(|(a, b)| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)).collect()
}

fn explain(row: Row, before: &BTreeMap<String, Duration>, after: &BTreeMap<String, Duration>, frames: usize) {
    let per_frame = |(name, time): (&String, &Duration)| {
        let spent = time.saturating_sub(before.get(name).copied().unwrap_or_default());
        format!("{name} {:.0} µs", spent.as_secs_f64() * 1e6 / frames as f64)
    };
    eprintln!("{}: {}", row.name(), after.iter().map(per_frame).collect::<Vec<_>>().join(", "));
}
