//! Structured logs.

use std::{fmt, io::IsTerminal};

use opentelemetry::{Context, trace::TraceContextExt};
use opentelemetry_sdk::trace::SdkTracer;
use serde::{Deserialize, Serialize};
use tracing::{Event, Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt, filter_fn},
    fmt::{
        FmtContext, FormatEvent, FormatFields,
        format::{Format as Line, Writer},
        layer,
    },
    prelude::*,
    registry::LookupSpan,
};

use crate::{TelemetryConfig, TelemetryError, trace};

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Text on a terminal, JSON elsewhere.
    Auto,
    /// For people.
    Text,
    /// One object a line.
    Json,
}

pub(crate) fn filter(directives: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::try_new(directives).map_err(|_| TelemetryError::Log(directives.to_owned()))
}

/// Sends this process's events to standard error, and the spans of [`trace`] to `tracer`. False when a subscriber was
/// there already, as in tests that start several meshes in one process: then nothing changes.
pub(crate) fn init(config: &TelemetryConfig, tracer: Option<SdkTracer>) -> Result<bool, TelemetryError> {
    let filter = filter(&config.log)?;
    let Some(tracer) = tracer else {
        // One filter for all: what it refuses is not even asked for.
        return Ok(tracing_subscriber::registry()
            .with(filter)
            .with(lines(config.log_format))
            .try_init()
            .is_ok());
    };
    let of_traces = filter_fn(|metadata| metadata.is_span() && metadata.target() == trace::TARGET);
    let traces = tracing_opentelemetry::layer()
        .with_tracer(tracer)
        .with_location(false)
        .with_threads(false)
        .with_target(false)
        .with_tracked_inactivity(false)
        .with_filter(of_traces.with_max_level_hint(LevelFilter::INFO));
    let of_logs = filter_fn(|metadata| metadata.target() != trace::TARGET);
    let lines = lines(config.log_format).with_filter(filter.and(of_logs));
    Ok(tracing_subscriber::registry().with(traces).with(lines).try_init().is_ok())
}

fn lines<S>(format: Format) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
{
    let text = match format {
        Format::Auto => std::io::stderr().is_terminal(),
        Format::Text => true,
        Format::Json => false,
    };
    let lines = layer().with_writer(std::io::stderr);
    if text {
        // As the layer itself decides; the line is written to a buffer first, which knows nothing of colours.
        let colours = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let line = Line::default().with_target(false).with_ansi(colours);
        lines.event_format(WithTrace { line, end: "" }).boxed()
    } else {
        let line = Line::default().json().flatten_event(true).with_current_span(true).with_span_list(false);
        lines.json().event_format(WithTrace { line, end: "}" }).boxed()
    }
}

/// Adds the id of the current trace to the end of a line.
struct WithTrace<L> {
    line: L,
    /// What closes the line, before which the id goes.
    end: &'static str,
}

impl<S, N, L> FormatEvent<S, N> for WithTrace<L>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
    L: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let current = if trace::is_on() {
            Context::map_current(|context| context.span().span_context().trace_id())
        } else {
            opentelemetry::TraceId::INVALID
        };
        if current == opentelemetry::TraceId::INVALID {
            return self.line.format_event(context, writer, event);
        }
        let mut line = String::new();
        self.line.format_event(context, Writer::new(&mut line), event)?;
        let line = line.trim_end_matches('\n');
        match line.strip_suffix(self.end).filter(|_| !self.end.is_empty()) {
            Some(open) => writeln!(writer, "{open},\"trace_id\":\"{current}\"{}", self.end),
            None => writeln!(writer, "{line} trace_id={current}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_both_kinds_can_be_made() {
        for format in [Format::Auto, Format::Text, Format::Json] {
            drop(lines::<tracing_subscriber::Registry>(format));
        }
    }
}
