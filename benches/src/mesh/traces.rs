//! What traces cost: the same frames through `sightline dev` without them, with one in a hundred, and with all.

use std::{collections::BTreeMap, time::Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use sightline_benches::{
    cpu,
    product::{Product, Way},
};
use sightline_proto::verdict::VerdictSource;
use sightline_servers::Jaeger;
use sightline_testkit::frames;
use tokio::runtime::Runtime;

use crate::{child::Child, options::Options};

/// Pixels of a frame's side: the less there is to do for a frame, the more of it are its spans.
const SIDE: u32 = 64;

/// Which traces are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kept {
    None,
    OneInAHundred,
    All,
}

impl Kept {
    /// In the table's order.
    pub(crate) const ALL: [Self; 3] = [Self::None, Self::OneInAHundred, Self::All];

    /// As the table shows it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::None => "no traces",
            Self::OneInAHundred => "1 % of traces",
            Self::All => "all traces",
        }
    }

    fn share(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::OneInAHundred => Some("0.01"),
            Self::All => Some("1"),
        }
    }
}

/// Which frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Frames {
    Repeats,
    Unique,
}

impl Frames {
    /// In the table's order.
    pub(crate) const ALL: [Self; 2] = [Self::Repeats, Self::Unique];

    /// As the table shows it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Repeats => "repeats",
            Self::Unique => "unique",
        }
    }
}

/// What one product did in one round.
#[derive(Debug, Clone)]
pub(crate) struct Sample {
    /// Frames a second.
    pub(crate) rate: f64,
    /// CPU time of the product per frame, in microseconds.
    pub(crate) server: f64,
}

/// Samples of each round, by frames and traces kept.
pub(crate) type Costs = BTreeMap<(Frames, Kept), Vec<Sample>>;

/// What this part gives.
#[derive(Debug, Default)]
pub(crate) struct Traces {
    pub(crate) costs: Costs,
    /// Spans that arrived where all are kept.
    pub(crate) spans: u64,
    /// Whether Jaeger has the traces of the one in a hundred.
    pub(crate) jaeger: bool,
}

pub(crate) fn run(options: &Options, runtime: &Runtime) -> Result<Traces> {
    // Jaeger would need a core for the spans of all frames, and there are two.
    let (mut all, discarding) = Child::start(&["collector"])?;
    let (mut few, jaeger) = match options.discard {
        true => (Some(Child::start(&["collector"])?), None),
        false => (None, Some(Jaeger::start()?)),
    };
    let mut products = Vec::new();
    for kept in Kept::ALL {
        let endpoint = match (kept, &jaeger, &few) {
            (Kept::OneInAHundred, Some(jaeger), _) => jaeger.endpoint(),
            (Kept::OneInAHundred, None, Some((_, address))) => format!("http://{address}"),
            _ => format!("http://{discarding}"),
        };
        let mut settings = options.set.clone();
        if let Some(share) = kept.share() {
            settings.push(format!("telemetry.otlp_endpoint={endpoint}"));
            settings.push(format!("telemetry.otlp_sample={share}"));
            settings.push("telemetry.otlp_metrics=false".into());
        }
        products.push((kept, runtime.block_on(Product::start(None, &settings))?));
    }
    let mut costs = Costs::new();
    for round in 0..=options.rounds {
        let first = round * options.frames;
        let unique: Vec<Bytes> =
            (first..first + options.frames).map(|seed| frames::jpeg(seed as u64, SIDE).into()).collect();
        for turn in 0..products.len() {
            let (kept, product) = &products[(turn + round) % products.len()];
            for frames in Frames::ALL.into_iter().rev() {
                let sample = runtime.block_on(sample(product, frames, &unique, options))?;
                eprintln!("round {round}: {}, {}: {:.0}/s", kept.name(), frames.name(), sample.rate);
                // The first one warms everybody up.
                if round > 0 {
                    costs.entry((frames, *kept)).or_default().push(sample);
                }
            }
        }
    }
    let spans = all.number("count")?;
    ensure!(spans > 0, "no span of all traces arrived");
    let has = |answer: sightline_servers::Answer| answer.body.contains("sightline");
    match (&jaeger, &mut few) {
        (Some(jaeger), _) => {
            ensure!(has(jaeger.get("/api/services")?), "Jaeger knows nothing of sightline");
        }
        (None, Some((few, _))) => ensure!(few.number("count")? > 0, "no span of the few traces arrived"),
        (None, None) => {}
    }
    Ok(Traces { costs, spans, jaeger: jaeger.is_some() })
}

/// Unique frames come first: the first of them is then what repeats repeat.
async fn sample(product: &Product, frames: Frames, unique: &[Bytes], options: &Options) -> Result<Sample> {
    let (sent, count, source) = match frames {
        Frames::Unique => (unique, unique.len(), VerdictSource::Model),
        Frames::Repeats => (&unique[..1], options.repeats, VerdictSource::ExactDuplicate),
    };
    let (before, since) = (cpu::of_tree(product.id()), Instant::now());
    let scores = product.classify(Way::Unary, sent, count, options.in_flight, source).await;
    let scores = scores.with_context(|| frames.name())?;
    let (took, spent) = (since.elapsed(), cpu::of_tree(product.id()).saturating_sub(before));
    let count = scores.len() as f64;
    Ok(Sample { rate: count / took.as_secs_f64(), server: spent.as_secs_f64() * 1e6 / count })
}
