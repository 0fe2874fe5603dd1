//! The tables, and whether the targets were met.

use std::fmt::Write as _;

use serde_json::{Value, json};
use sightline_benches::median;

use crate::{
    client::Way,
    contestants::Contestant,
    cost::{self, Costs},
    slow::{self, Slows},
    traces::{self, Frames, Kept, Traces},
};

/// What the mesh's client may cost of a bare channel's throughput, and at the median of latency, in microseconds.
const COST: (f64, f64) = (0.10, 15.0);
/// The share of messages that a replica ten times slower may get.
const SHARE: f64 = 0.08;
/// What it may do to the slowest messages.
const SLOWEST: f64 = 1.5;
/// What one trace in a hundred may cost of the throughput.
const TRACES: f64 = 0.03;

/// Beyond this share of the machine used by others a run says little.
const BUSY: f64 = 0.05;

/// A figure that must not be exceeded.
struct Target {
    name: String,
    value: f64,
    most: f64,
}

impl Target {
    fn reached(&self) -> bool {
        self.value <= self.most
    }
}

/// What the parts gave.
#[derive(Debug, Default)]
pub(crate) struct Report {
    pub(crate) cost: Costs,
    pub(crate) slow: Slows,
    pub(crate) traces: Traces,
    /// The share of the machine that other programs used meanwhile.
    pub(crate) others: f64,
}

impl Report {
    pub(crate) fn passed(&self) -> bool {
        self.targets().iter().all(Target::reached)
    }

    fn targets(&self) -> Vec<Target> {
        let mut targets = Vec::new();
        for ((callers, way), samples) in &self.cost {
            let of = |what: &str| format!("{callers} callers, {}: {what}", way.name());
            let Some(bare) = self.cost.get(&(*callers, Way::Bare)) else { continue };
            if !matches!(way, Way::Pick | Way::Channel) {
                continue;
            }
            if let Some(ratio) = ratio(samples, bare, cost::Sample::rate) {
                targets.push(Target { name: of("throughput lost"), value: 1.0 - ratio, most: COST.0 });
            }
            // With many callers latency is the queue of calls before one, and that is the throughput again.
            let more = samples.iter().zip(bare).map(|(ours, bare)| ours.load.p50 - bare.load.p50);
            if let Some(value) = median(more).filter(|_| *callers == 1) {
                targets.push(Target { name: of("µs more at p50"), value, most: COST.1 });
            }
        }
        for contestant in [Contestant::Pool, Contestant::LeastLoaded] {
            let Some(samples) = self.slow.get(&contestant) else { continue };
            let of = |what: &str| format!("{}: {what}", contestant.name());
            if let Some(value) = median(samples.iter().map(|sample| sample.slow.share)) {
                targets.push(Target { name: of("share of the slow one"), value, most: SHARE });
            }
            if let Some(value) = median(samples.iter().map(|sample| sample.slow.p99 / sample.healthy.p99)) {
                targets.push(Target { name: of("p99 / all healthy"), value, most: SLOWEST });
            }
        }
        for frames in Frames::ALL {
            if let Some(lost) = self.traced(frames, Kept::OneInAHundred, |sample| sample.rate) {
                let name = format!("1 % of traces, {}: throughput lost", frames.name());
                targets.push(Target { name, value: 1.0 - lost, most: TRACES });
            }
        }
        targets
    }

    fn traced(&self, frames: Frames, kept: Kept, of: impl Fn(&traces::Sample) -> f64) -> Option<f64> {
        let costs = &self.traces.costs;
        ratio(costs.get(&(frames, kept))?, costs.get(&(frames, Kept::None))?, of)
    }

    /// For people.
    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        self.cost_table(&mut text);
        self.slow_table(&mut text);
        self.traces_table(&mut text);
        for target in self.targets() {
            let Target { name, value, most } = &target;
            let verdict = if target.reached() { "reached" } else { "MISSED" };
            let _ = writeln!(text, "{name:<58} {value:>8.3} at most {most:<6} {verdict}");
        }
        if self.others > BUSY {
            let _ = writeln!(text, "CAUTION: others used {:.0} % of the machine", 100.0 * self.others);
        }
        text
    }

    fn cost_table(&self, text: &mut String) {
        let head = ["calls/s", "p50 µs", "p99 µs", "client µs", "server µs", "rate", "client"];
        for ((callers, way), samples) in &self.cost {
            if *way == Way::Bare {
                let _ = writeln!(text, "{:<30}{}", format!("{callers} callers"), cells(&head));
            }
            let bare = self.cost.get(&(*callers, Way::Bare));
            let of = |what: fn(&cost::Sample) -> f64| median(samples.iter().map(what)).unwrap_or_default();
            let to = |what: fn(&cost::Sample) -> f64| {
                bare.and_then(|bare| ratio(samples, bare, what)).unwrap_or_default()
            };
            let row = [
                format!("{:.0}", of(cost::Sample::rate)),
                format!("{:.1}", of(|sample| sample.load.p50)),
                format!("{:.1}", of(|sample| sample.load.p99)),
                format!("{:.1}", of(|sample| sample.client)),
                format!("{:.1}", of(|sample| sample.server)),
                format!("× {:.3}", to(cost::Sample::rate)),
                format!("× {:.3}", to(|sample| sample.client)),
            ];
            let _ = writeln!(text, "{:<30}{}", way.name(), cells(&row));
        }
        end(text, self.cost.is_empty());
    }

    fn slow_table(&self, text: &mut String) {
        if !self.slow.is_empty() {
            let head =
                ["p50 ms", "p99 ms", "busiest", "p50 ms", "p99 ms", "slow one", "sent", "failed", "p99"];
            let _ = writeln!(text, "{:<34}{}", "all healthy, then one 10 × slower", cells(&head));
        }
        for (contestant, samples) in &self.slow {
            let of = |what: fn(&slow::Sample) -> f64| median(samples.iter().map(what)).unwrap_or_default();
            let row = [
                format!("{:.1}", of(|sample| sample.healthy.p50)),
                format!("{:.1}", of(|sample| sample.healthy.p99)),
                format!("{:.1} %", 100.0 * of(|sample| sample.healthy.share)),
                format!("{:.1}", of(|sample| sample.slow.p50)),
                format!("{:.1}", of(|sample| sample.slow.p99)),
                format!("{:.2} %", 100.0 * of(|sample| sample.slow.share)),
                format!("× {:.3}", of(|sample| sample.slow.received as f64 / sample.slow.messages as f64)),
                format!("{:.0}", of(|sample| (sample.healthy.failed + sample.slow.failed) as f64)),
                format!("× {:.2}", of(|sample| sample.slow.p99 / sample.healthy.p99)),
            ];
            let _ = writeln!(text, "{:<34}{}", contestant.name(), cells(&row));
        }
        end(text, self.slow.is_empty());
    }

    fn traces_table(&self, text: &mut String) {
        for ((frames, kept), samples) in &self.traces.costs {
            if *kept == Kept::None {
                let head = ["frames/s", "server µs", "rate", "server"];
                let _ = writeln!(text, "{:<30}{}", frames.name(), cells(&head));
            }
            let of = |what: fn(&traces::Sample) -> f64| median(samples.iter().map(what)).unwrap_or_default();
            let to = |what: fn(&traces::Sample) -> f64| self.traced(*frames, *kept, what).unwrap_or_default();
            let row = [
                format!("{:.0}", of(|sample| sample.rate)),
                format!("{:.1}", of(|sample| sample.server)),
                format!("× {:.3}", to(|sample| sample.rate)),
                format!("× {:.3}", to(|sample| sample.server)),
            ];
            let _ = writeln!(text, "{:<30}{}", kept.name(), cells(&row));
        }
        if !self.traces.costs.is_empty() {
            let to = if self.traces.jaeger { "Jaeger" } else { "a collector that discards them" };
            let _ = writeln!(text, "1 % went to {to}; of all, {} spans arrived", self.traces.spans);
        }
        end(text, self.traces.costs.is_empty());
    }

    /// For programs.
    pub(crate) fn json(&self) -> Value {
        let cost = self.cost.iter().map(|((callers, way), samples)| {
            let of = |what: fn(&cost::Sample) -> f64| median(samples.iter().map(what));
            json!({
                "callers": callers, "way": way.name(),
                "calls_per_second": of(cost::Sample::rate),
                "p50_us": of(|sample| sample.load.p50), "p99_us": of(|sample| sample.load.p99),
                "client_cpu_us": of(|sample| sample.client), "server_cpu_us": of(|sample| sample.server),
            })
        });
        let slow = self.slow.iter().map(|(contestant, samples)| {
            let of = |what: fn(&slow::Sample) -> f64| median(samples.iter().map(what));
            json!({
                "contestant": contestant.name(),
                "healthy_p50_ms": of(|sample| sample.healthy.p50), "healthy_p99_ms": of(|sample| sample.healthy.p99),
                "slow_p50_ms": of(|sample| sample.slow.p50), "slow_p99_ms": of(|sample| sample.slow.p99),
                "share_of_the_slow_one": of(|sample| sample.slow.share),
                "received_per_message": of(|sample| sample.slow.received as f64 / sample.slow.messages as f64),
                "failed": of(|sample| (sample.healthy.failed + sample.slow.failed) as f64),
            })
        });
        let traces = self.traces.costs.iter().map(|((frames, kept), samples)| {
            let of = |what: fn(&traces::Sample) -> f64| median(samples.iter().map(what));
            json!({
                "frames": frames.name(), "kept": kept.name(),
                "frames_per_second": of(|sample| sample.rate), "server_cpu_us": of(|sample| sample.server),
            })
        });
        let targets = self.targets().into_iter().map(|target| {
            json!({"name": target.name, "value": target.value, "most": target.most, "reached": target.reached()})
        });
        json!({
            "cost": cost.collect::<Vec<_>>(),
            "slow": slow.collect::<Vec<_>>(),
            "traces": traces.collect::<Vec<_>>(),
            "targets": targets.collect::<Vec<_>>(),
            "others_share_of_machine": self.others,
            "passed": self.passed(),
        })
    }
}

/// The median of the rounds' ratios: both of a round met the same machine.
fn ratio<T>(over: &[T], under: &[T], of: impl Fn(&T) -> f64) -> Option<f64> {
    median(over.iter().zip(under).map(|(over, under)| of(over) / of(under)))
}

fn cells(of: &[impl AsRef<str>]) -> String {
    of.iter().fold(String::new(), |mut text, cell| {
        let _ = write!(text, "{:>11}", cell.as_ref());
        text
    })
}

/// An empty line behind a table that there is.
fn end(text: &mut String, none: bool) {
    if !none {
        text.push('\n');
    }
}
