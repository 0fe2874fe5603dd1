//! The table, the ratios and whether they are good enough.

use std::fmt::Write as _;

use serde_json::{Value, json};
use sightline_benches::median;

use crate::{
    options::{Options, PeerSettings},
    rounds::{Outcome, Row, Sample},
};

/// Beyond this share of the machine used by others a run says little.
const BUSY: f64 = 0.05;
/// The peer does the same work when this share of its scores on JPEG is that near ours: decoders round differently, and
/// a picture with grain between two classes shows it.
const SAME: (f64, f32) = (0.95, 2e-2);

/// How many times as fast as the peer.
const LEAST_OF_PEER: f64 = 2.5;
/// The share of the bare loop's speed that is left with everything around it.
const LEAST_OF_BARE: f64 = 0.90;
/// Repeated frames a second.
const LEAST_REPEATS: f64 = 5000.0;

/// What is compared.
const RATIOS: [(&str, Row, Row); 4] = [
    ("Classify / peer", Row::Unary, Row::Peer),
    ("ClassifyStream / peer", Row::Stream, Row::Peer),
    ("Classify / bare", Row::Unary, Row::Bare),
    ("ClassifyStream / bare", Row::Stream, Row::Bare),
];

/// A figure that must be reached.
struct Target {
    name: &'static str,
    value: f64,
    least: f64,
    unit: &'static str,
}

impl Target {
    fn reached(&self) -> bool {
        self.value >= self.least
    }
}

/// Everything that is printed at the end.
pub(crate) struct Report<'a> {
    pub(crate) outcome: &'a Outcome,
    pub(crate) options: &'a Options,
    pub(crate) peer: Option<PeerSettings>,
}

impl Report<'_> {
    /// Whether every target was reached and the peer gave the same scores.
    pub(crate) fn passed(&self) -> bool {
        self.agrees() && self.targets().iter().all(Target::reached)
    }

    fn agrees(&self) -> bool {
        quantile(&self.outcome.peer_differs, SAME.0).is_none_or(|differs| differs <= SAME.1)
    }

    fn samples(&self, row: Row) -> &[Sample] {
        self.outcome.samples.get(&row).map_or(&[], Vec::as_slice)
    }

    fn targets(&self) -> Vec<Target> {
        let mut targets = Vec::new();
        for (name, over, under) in RATIOS {
            let least = if under == Row::Peer { LEAST_OF_PEER } else { LEAST_OF_BARE };
            if let Some(value) = self.ratio(over, under) {
                targets.push(Target { name, value, least, unit: "×" });
            }
        }
        for row in [Row::RepeatUnary, Row::RepeatStream] {
            if let Some(value) = median(self.samples(row).iter().map(Sample::rate)) {
                targets.push(Target { name: row.name(), value, least: LEAST_REPEATS, unit: "frames/s" });
            }
        }
        targets
    }

    /// The median of the rounds' ratios: both of a round met the same machine.
    fn ratio(&self, over: Row, under: Row) -> Option<f64> {
        let pairs = self.samples(over).iter().zip(self.samples(under));
        median(pairs.map(|(over, under)| over.rate() / under.rate()))
    }

    /// The same by CPU time a frame, server and client together: steadier when others use the machine too.
    fn cpu_ratio(&self, over: Row, under: Row) -> Option<f64> {
        let time = |sample: &Sample| (sample.server + sample.client).as_secs_f64() / sample.frames as f64;
        let pairs = self.samples(over).iter().zip(self.samples(under));
        median(pairs.map(|(over, under)| time(under) / time(over)))
    }

    /// For people.
    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        let _ = writeln!(
            text,
            "{:<28} {:>9} {:>17} {:>10} {:>10} {:>7}",
            "", "frames/s", "min .. max", "server ms", "client ms", "others"
        );
        for row in Row::ALL {
            let samples = self.samples(row);
            let Some(rate) = median(samples.iter().map(Sample::rate)) else { continue };
            let (low, high) = range(samples.iter().map(Sample::rate));
            let _ = writeln!(
                text,
                "{:<28} {rate:>9.1} {low:>8.1} ..{high:>7.1} {:>10.3} {:>10.3} {:>6.1}%",
                row.name(),
                milliseconds(samples, |sample| sample.server.as_secs_f64()),
                milliseconds(samples, |sample| sample.client.as_secs_f64()),
                100.0 * others(samples),
            );
        }
        if let Some(peer) = self.peer {
            let _ = writeln!(text, "\nthe peer at its best: {peer}");
        }
        for (name, differs) in
            [("the peer", &self.outcome.peer_differs), ("the bare loop", &self.outcome.bare_differs)]
        {
            if let [Some(half), Some(most), Some(all)] =
                [0.5, SAME.0, 1.0].map(|share| quantile(differs, share))
            {
                let _ = writeln!(
                    text,
                    "scores of {name} differ from ours by {half:.5} (median), {most:.5} (95 %), {all:.5} (most)"
                );
            }
        }
        text.push('\n');
        for target in self.targets() {
            let verdict = if target.reached() { "reached" } else { "MISSED" };
            let Target { name, value, least, unit } = target;
            let _ = writeln!(text, "{name:<28} {value:>9.2} {unit:<9} at least {least:<7} {verdict}");
        }
        for (name, over, under) in RATIOS {
            if let Some(value) = self.cpu_ratio(over, under) {
                let _ = writeln!(text, "{name:<28} {value:>9.2} × by CPU time a frame");
            }
        }
        if !self.agrees() {
            let _ = writeln!(text, "VOID: the peer computes something else");
        }
        if self.busiest() > BUSY {
            let _ =
                writeln!(text, "CAUTION: others used up to {:.0} % of the machine", 100.0 * self.busiest());
        }
        text
    }

    fn busiest(&self) -> f64 {
        Row::ALL.into_iter().map(|row| others(self.samples(row))).fold(0.0, f64::max)
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        let rows = Row::ALL.into_iter().filter(|row| !self.samples(*row).is_empty()).map(|row| {
            let samples = self.samples(row);
            let (low, high) = range(samples.iter().map(Sample::rate));
            json!({
                "name": row.name(),
                "frames_per_second": {"median": median(samples.iter().map(Sample::rate)), "min": low, "max": high},
                "server_cpu_ms_per_frame": milliseconds(samples, |sample| sample.server.as_secs_f64()),
                "client_cpu_ms_per_frame": milliseconds(samples, |sample| sample.client.as_secs_f64()),
                "others_share_of_machine": others(samples),
            })
        });
        let targets = self.targets().into_iter().map(|target| {
            json!({"name": target.name, "value": target.value, "least": target.least, "reached": target.reached()})
        });
        let by_cpu = RATIOS.into_iter().filter_map(|(name, over, under)| {
            Some(json!({"name": name, "value": self.cpu_ratio(over, under)?}))
        });
        json!({
            "rounds": self.options.rounds,
            "frames": self.options.frames,
            "in_flight": self.options.in_flight,
            "peer": self.peer.map(|peer| peer.to_string()),
            "peer_scores_differ_95_percent": quantile(&self.outcome.peer_differs, SAME.0),
            "bare_scores_differ_95_percent": quantile(&self.outcome.bare_differs, SAME.0),
            "rows": rows.collect::<Vec<_>>(),
            "targets": targets.collect::<Vec<_>>(),
            "by_cpu_time": by_cpu.collect::<Vec<_>>(),
            "passed": self.passed(),
        })
    }
}

/// The value that this share of `values` does not exceed.
fn quantile(values: &[f32], share: f64) -> Option<f32> {
    let mut values = values.to_vec();
    values.sort_by(f32::total_cmp);
    let last = values.len().checked_sub(1)?;
    values.get((last as f64 * share).ceil() as usize).copied()
}

fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    values.fold((f64::MAX, f64::MIN), |(low, high), value| (low.min(value), high.max(value)))
}

/// The median over the rounds of a time per frame.
fn milliseconds(samples: &[Sample], time: impl Fn(&Sample) -> f64) -> f64 {
    median(samples.iter().map(|sample| 1e3 * time(sample) / sample.frames as f64)).unwrap_or_default()
}

/// The median over the rounds of the share of the machine that others used.
fn others(samples: &[Sample]) -> f64 {
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as f64;
    let share = |sample: &Sample| sample.others.as_secs_f64() / (sample.took.as_secs_f64() * cores);
    median(samples.iter().map(share)).unwrap_or_default()
}
