//! Reads the text that `/metrics` shows back into families, for the exporter.
//!
//! There is no kept bridge from the `metrics` facade to OTLP, and a second recorder beside the first would double what
//! each count costs on the way of a frame. The text is made anyway, bounded, and has everything in it.

use std::collections::HashMap;

/// One metric with all its series.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Family {
    pub(super) name: String,
    pub(super) help: String,
    pub(super) series: Series,
}

pub(super) type Labels = Vec<(String, String)>;

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Series {
    Counter(Vec<(Labels, f64)>),
    Gauge(Vec<(Labels, f64)>),
    Histogram(Vec<(Labels, Histogram)>),
}

/// Cumulative, as Prometheus counts.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Histogram {
    /// Upper bounds and how many values are at or below each, without the infinite one.
    pub(super) buckets: Vec<(f64, u64)>,
    pub(super) sum: f64,
    pub(super) count: u64,
}

/// Reads a whole page; a line that cannot be read is left out.
pub(super) fn read(text: &str) -> Vec<Family> {
    let mut families: Vec<Family> = Vec::new();
    let mut help: HashMap<&str, &str> = HashMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            if let Some((name, text)) = rest.split_once(' ') {
                help.insert(name, text);
            }
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let Some((name, kind)) = rest.split_once(' ') else { continue };
            let series = match kind {
                "counter" => Series::Counter(Vec::new()),
                "histogram" => Series::Histogram(Vec::new()),
                _ => Series::Gauge(Vec::new()),
            };
            let help = help.get(name).copied().unwrap_or_default().to_owned();
            families.push(Family { name: name.to_owned(), help, series });
        } else if let (Some(family), Some((name, labels, value))) = (families.last_mut(), sample(line)) {
            add(family, name, labels, value);
        }
    }
    families
}

fn add(family: &mut Family, name: &str, mut labels: Labels, value: f64) {
    match &mut family.series {
        Series::Counter(series) | Series::Gauge(series) => series.push((labels, value)),
        Series::Histogram(series) => {
            let bound = labels.iter().position(|(label, _)| label == "le").map(|at| labels.remove(at).1);
            if series.last().is_none_or(|(known, _)| *known != labels) {
                series.push((labels, Histogram::default()));
            }
            let Some((_, histogram)) = series.last_mut() else { return };
            match (name.strip_prefix(family.name.as_str()), bound.and_then(|bound| bound.parse().ok())) {
                (Some("_sum"), _) => histogram.sum = value,
                (Some("_count"), _) => histogram.count = value as u64,
                (Some("_bucket"), Some(bound)) if f64::is_finite(bound) => {
                    histogram.buckets.push((bound, value as u64));
                }
                _ => {}
            }
        }
    }
}

/// `name{label="value",…} 1.5`
fn sample(line: &str) -> Option<(&str, Labels, f64)> {
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(end);
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Labels::new(), rest),
    };
    Some((name, labels, rest.split_whitespace().next()?.parse().ok()?))
}

/// What stands between the braces, and what follows them.
fn labels(mut rest: &str) -> Option<(Labels, &str)> {
    let mut labels = Labels::new();
    loop {
        rest = rest.trim_start_matches(',');
        if let Some(after) = rest.strip_prefix('}') {
            return Some((labels, after));
        }
        let (name, quoted) = rest.split_once("=\"")?;
        let mut value = String::new();
        let mut characters = quoted.char_indices();
        rest = loop {
            match characters.next()? {
                (at, '"') => break &quoted[at + 1..],
                (_, '\\') => match characters.next()?.1 {
                    'n' => value.push('\n'),
                    other => value.push(other),
                },
                (_, other) => value.push(other),
            }
        };
        labels.push((name.to_owned(), value));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_back() {
        let page = "# HELP frames_total Frames seen\n# TYPE frames_total counter\nframes_total{result=\"ok\",why=\"a \\\"b\\\", {c}\"} 7\n\n\
            # TYPE depth gauge\ndepth 2.5\n\n# TYPE took_seconds histogram\n\
            took_seconds_bucket{m=\"x\",le=\"0.1\"} 1\ntook_seconds_bucket{m=\"x\",le=\"+Inf\"} 3\ntook_seconds_sum{m=\"x\"} 4.5\ntook_seconds_count{m=\"x\"} 3\n\
            took_seconds_bucket{m=\"y\",le=\"0.1\"} 0\ntook_seconds_bucket{m=\"y\",le=\"+Inf\"} 0\ntook_seconds_sum{m=\"y\"} 0\ntook_seconds_count{m=\"y\"} 0\n";
        let label = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let families = read(page);
        assert_eq!(families.len(), 3);
        assert_eq!(families[0].help, "Frames seen");
        assert_eq!(
            families[0].series,
            Series::Counter(vec![(vec![label("result", "ok"), label("why", "a \"b\", {c}")], 7.0)])
        );
        assert_eq!(families[1].series, Series::Gauge(vec![(vec![], 2.5)]));
        let Series::Histogram(series) = &families[2].series else { panic!("{families:?}") };
        assert_eq!(series.len(), 2);
        assert_eq!(series[0].1, Histogram { buckets: vec![(0.1, 1)], sum: 4.5, count: 3 });
    }
}
