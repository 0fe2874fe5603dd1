//! The table, and whether the targets were met.

use std::time::Duration;

use crate::Round;

/// Medians over the rounds.
#[derive(Debug, Clone)]
struct Line {
    name: String,
    checks_a_second: f64,
    server: f64,
    redis: f64,
    p50: Duration,
    p99: Duration,
}

impl Line {
    fn of(name: &str, rounds: &[Round]) -> Self {
        #[allow(clippy::cast_precision_loss)] // counts of checks
        let each = |time: Duration, round: &Round| time.as_secs_f64() * 1e6 / round.checks as f64;
        let at = |round: &Round, hundredths: usize| {
            round.latencies[(round.latencies.len() - 1) * hundredths / 100]
        };
        let seconds = |time: Duration| time.as_secs_f64();
        let time = |value: f64| Duration::from_secs_f64(value);
        Self {
            name: name.to_owned(),
            checks_a_second: 1e6 / median(rounds, |round| each(round.wall, round)),
            server: median(rounds, |round| each(round.server, round)),
            redis: median(rounds, |round| each(round.redis, round)),
            p50: time(median(rounds, |round| seconds(at(round, 50)))),
            p99: time(median(rounds, |round| seconds(at(round, 99)))),
        }
    }

    fn cpu(&self) -> f64 {
        self.server + self.redis
    }
}

fn median(rounds: &[Round], value: impl Fn(&Round) -> f64) -> f64 {
    let mut values: Vec<f64> = rounds.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// What is printed.
pub(crate) struct Report {
    lines: Vec<Line>,
    /// What was aimed at, what came out, and whether that is enough.
    targets: Vec<(String, String, bool)>,
}

impl Report {
    pub(crate) fn of(results: &[(&str, Vec<Round>)]) -> Self {
        let lines: Vec<Line> = results.iter().map(|(name, rounds)| Line::of(name, rounds)).collect();
        let line = |name: &str| lines.iter().find(|line| line.name == name);
        let mut targets = Vec::new();
        if let Some(peer) = line("peer") {
            for (name, most) in [("unary", 1.0 / 3.0), ("stream", 1.0 / 8.0)] {
                let Some(ours) = line(name) else { continue };
                let share = ours.cpu() / peer.cpu();
                targets.push((
                    format!("{name}: CPU per check at most 1/{:.0} of the peer's", 1.0 / most),
                    format!("{share:.3}, 1/{:.1}", 1.0 / share),
                    share <= most,
                ));
                let (p99, theirs) = (ours.p99, peer.p99);
                targets.push((
                    format!("{name}: p99 no worse than the peer's"),
                    format!("{p99:.2?} against {theirs:.2?}"),
                    p99 <= theirs,
                ));
            }
        }
        Self { lines, targets }
    }

    pub(crate) fn met(&self) -> bool {
        self.targets.iter().all(|(_, _, met)| *met)
    }

    pub(crate) fn text(&self) -> String {
        let mut text = format!(
            "{:<8} {:>10} {:>14} {:>13} {:>11} {:>10} {:>10}\n",
            "", "checks/s", "server µs/chk", "Redis µs/chk", "sum µs/chk", "p50", "p99"
        );
        for line in &self.lines {
            text += &format!(
                "{:<8} {:>10.0} {:>14.2} {:>13.2} {:>11.2} {:>10} {:>10}\n",
                line.name,
                line.checks_a_second,
                line.server,
                line.redis,
                line.cpu(),
                format!("{:.2?}", line.p50),
                format!("{:.2?}", line.p99),
            );
        }
        for (target, came, met) in &self.targets {
            text += &format!("{} {target}: {came}\n", if *met { "met   " } else { "MISSED" });
        }
        text
    }
}
