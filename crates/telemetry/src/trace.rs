//! One trace per frame, across processes: W3C trace context in and out, and spans that cost nothing where nobody looks.
//!
//! Spans of traces are apart from the spans of logs: they have the target [`TARGET`], only the OTLP layer sees them and
//! the log lines stay as they are. Their names are `service.operation`.
//!
//! - Without `telemetry.otlp_endpoint` ([`is_on`] is false) the macros give `Span::none()`: one relaxed load.
//! - [`Parent::begin`]: whether the trace of something that begins here is kept. Most are not: they get an id, for the log
//!   lines of all that runs in [`Parent::around`], and no span.
//! - [`root_span!`](crate::root_span): the first span of a frame here, if its trace is kept.
//! - [`child_span!`](crate::child_span), [`child_of!`](crate::child_of): only when that was decided with yes.
//! - [`continued_span!`](crate::continued_span): for a message of a stream, whose [`traceparent`] is sent only when
//!   sampled: a frame that is not sampled costs the services behind ingest nothing.
//!
//! No field of a span ever holds a user's id, pixels, a token or a hash.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::atomic::{AtomicU64, Ordering},
};

use opentelemetry::{
    Context, Value,
    trace::{SpanContext, SpanId, Status, TraceContextExt, TraceFlags, TraceId, TraceState},
};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

/// The target of every span that belongs to a trace.
pub const TARGET: &str = "sightline::trace";

/// The name of the metadata and of the fields that carry a [`Parent`] (W3C Trace Context).
pub const TRACEPARENT: &str = "traceparent";

/// Traces are not sent.
const OFF: u64 = u64::MAX;
/// Trace ids are 128 random bits; of their last 63, so many of `1 << 63` values are of traces that are kept, as the SDK's
/// `TraceIdRatioBased` has it.
static KEPT: AtomicU64 = AtomicU64::new(OFF);

/// Traces are sent from now on, this share of those that begin here.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // a share is between 0 and 1
pub(crate) fn turn_on(share: f64) {
    KEPT.store((share * (1_u64 << 63) as f64) as u64, Ordering::Relaxed);
}

/// Whether traces are sent anywhere.
pub fn is_on() -> bool {
    KEPT.load(Ordering::Relaxed) != OFF
}

/// Whether the current span belongs to a trace that is kept.
pub fn is_sampled() -> bool {
    is_on() && Context::map_current(|context| context.span().span_context().is_sampled())
}

/// The current span for another process, as W3C Trace Context writes it; empty, without an allocation, when the trace is
/// not kept.
pub fn traceparent() -> String {
    Parent::current().traceparent()
}

/// Where a span comes from: a span of another process or thread.
#[derive(Debug, Clone, Default)]
pub struct Parent(Option<SpanContext>);

impl Parent {
    /// Reads `00-TRACE-SPAN-FLAGS`. What is none is no parent, as the standard asks: a bad header fails no call.
    pub fn read(text: &str) -> Self {
        if text.is_empty() || !is_on() {
            return Self(None);
        }
        Self(parse(text))
    }

    /// The current span, sampled or not; none outside of a trace.
    pub fn current() -> Self {
        if !is_on() {
            return Self(None);
        }
        let current = Context::map_current(|context| context.span().span_context().clone());
        Self(current.is_valid().then_some(current))
    }

    /// A span of this process.
    pub fn of(span: &Span) -> Self {
        if span.is_disabled() {
            return Self(None);
        }
        let context = span.context().span().span_context().clone();
        Self(context.is_valid().then_some(context))
    }

    /// Decides whether the trace of something that begins here is kept, where it does not go on with another's: then
    /// this stays none, and [`root_span!`](crate::root_span) begins a trace. A trace that is not kept has an id all the same.
    #[must_use]
    pub fn begin(self) -> Self {
        let share = KEPT.load(Ordering::Relaxed);
        if self.0.is_some() || share == OFF {
            return self;
        }
        let ids = RandomIdGenerator::default();
        let trace = ids.new_trace_id();
        if is_among(trace, share) {
            return self;
        }
        let (span, flags) = (ids.new_span_id(), TraceFlags::NOT_SAMPLED);
        Self(Some(SpanContext::new(trace, span, flags, false, TraceState::NONE)))
    }

    /// Runs what belongs to a trace that is not kept, so that it is known not to be, and log lines have its id. Where it is
    /// kept that is its span's affair.
    pub async fn around<F: Future>(&self, future: F) -> F::Output {
        let Some(context) = self.0.as_ref().filter(|context| !context.is_sampled()) else {
            return future.await;
        };
        let context = Context::new().with_remote_span_context(context.clone());
        let mut future = pin!(future);
        poll_fn(|task| {
            let _current = context.clone().attach();
            future.as_mut().poll(task)
        })
        .await
    }

    /// Whether there is one.
    pub fn is_some(&self) -> bool {
        self.0.is_some()
    }

    /// Whether it is a span of this process.
    pub fn is_local(&self) -> bool {
        self.0.as_ref().is_some_and(|context| !context.is_remote())
    }

    /// Whether there is one and its trace is kept.
    pub fn is_sampled(&self) -> bool {
        self.0.as_ref().is_some_and(SpanContext::is_sampled)
    }

    /// Whether what begins here as a part of it gets a span.
    pub fn is_kept(&self) -> bool {
        is_on() && self.0.as_ref().is_none_or(SpanContext::is_sampled)
    }

    /// See [`traceparent`].
    pub fn traceparent(&self) -> String {
        match &self.0 {
            Some(context) if context.is_sampled() => {
                format!("00-{}-{}-01", context.trace_id(), context.span_id())
            }
            _ => String::new(),
        }
    }

    /// Makes `span`, which nobody has entered yet, a child of this.
    pub fn adopt(&self, span: &Span) {
        if let Some(context) = &self.0 {
            // Fails only for a span that is filtered away or was entered: then it stays where it is.
            span.set_parent(Context::new().with_remote_span_context(context.clone())).ok();
        }
    }

    /// Links `span` to this: work done for several traces at once.
    pub fn link(&self, span: &Span) {
        if let Some(context) = &self.0 {
            span.add_link(context.clone());
        }
    }
}

/// Whether a trace is one of those that are kept.
fn is_among(trace: TraceId, share: u64) -> bool {
    let [.., a, b, c, d, e, f, g, h] = trace.to_bytes();
    u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 1 < share
}

/// `version "-" trace-id "-" parent-id "-" trace-flags`, all in lower-case hexadecimal. A later version may go on behind.
fn parse(text: &str) -> Option<SpanContext> {
    let mut fields = text.trim().split('-');
    let mut next = |digits: usize| {
        let field = fields.next()?;
        let hexadecimal = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (field.len() == digits && field.bytes().all(hexadecimal)).then_some(field)
    };
    let version = next(2).filter(|version| *version != "ff")?;
    let (trace, span, flags) = (next(32)?, next(16)?, next(2)?);
    if version == "00" && fields.next().is_some() {
        return None;
    }
    let context = SpanContext::new(
        TraceId::from_hex(trace).ok()?,
        SpanId::from_hex(span).ok()?,
        TraceFlags::new(u8::from_str_radix(flags, 16).ok()?) & TraceFlags::SAMPLED,
        true,
        TraceState::NONE,
    );
    context.is_valid().then_some(context)
}

/// Says something more of a span that is made already.
pub fn attribute(span: &Span, key: &'static str, value: impl Into<Value>) {
    if !span.is_disabled() {
        span.set_attribute(key, value);
    }
}

/// How a call ended: the gRPC code, and the stable reason when it is an error. By the conventions for servers only codes
/// that are a fault of ours make the span an error.
pub fn ended(span: &Span, code: i32, reason: &str) {
    /// UNKNOWN, DEADLINE_EXCEEDED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE, DATA_LOSS.
    const FAULTS: [i32; 6] = [2, 4, 12, 13, 14, 15];
    if span.is_disabled() {
        return;
    }
    span.set_attribute("rpc.grpc.status_code", i64::from(code));
    if !reason.is_empty() {
        span.set_attribute("error.type", reason.to_owned());
    }
    if FAULTS.contains(&code) {
        span.set_status(Status::error(reason.to_owned()));
    }
}

/// How a call that this process made ended: by the conventions for clients every code but OK is an error, except for a
/// call that this process itself gave up (CANCELLED).
pub fn answered(span: &Span, code: i32, reason: &str) {
    if span.is_disabled() {
        return;
    }
    span.set_attribute("rpc.grpc.status_code", i64::from(code));
    if code > 1 {
        span.set_attribute("error.type", reason.to_owned());
        span.set_status(Status::error(reason.to_owned()));
    }
}

/// The first span of something here: `root_span!(parent.begin(), "ingest.frame", otel.kind = "server", …)`. Without a
/// parent it begins a trace that is kept; with one whose trace is not kept it is none.
#[macro_export]
macro_rules! root_span {
    ($parent:expr, $name:literal $(, $($fields:tt)*)?) => {
        if $crate::trace::Parent::is_kept(&$parent) {
            let span = ::tracing::info_span!(target: $crate::trace::TARGET, $name $(, $($fields)*)?);
            $crate::trace::Parent::adopt(&$parent, &span);
            span
        } else {
            ::tracing::Span::none()
        }
    };
}

/// Goes on with the trace of a message, if it is kept: `continued_span!(parent, "classifier.infer", …)`.
#[macro_export]
macro_rules! continued_span {
    ($parent:expr, $name:literal $(, $($fields:tt)*)?) => {
        if $crate::trace::Parent::is_sampled(&$parent) {
            $crate::root_span!($parent, $name $(, $($fields)*)?)
        } else {
            ::tracing::Span::none()
        }
    };
}

/// A part of the current span, if its trace is kept: `child_span!("redis.eval", otel.kind = "client")`.
#[macro_export]
macro_rules! child_span {
    ($name:literal $(, $($fields:tt)*)?) => {
        if $crate::trace::is_sampled() {
            ::tracing::info_span!(target: $crate::trace::TARGET, $name $(, $($fields)*)?)
        } else {
            ::tracing::Span::none()
        }
    };
}

/// A part of a span at hand, if that one is kept: `child_of!(span, "classifier.queue")`.
#[macro_export]
macro_rules! child_of {
    ($span:expr, $name:literal $(, $($fields:tt)*)?) => {
        if $span.is_disabled() {
            ::tracing::Span::none()
        } else {
            ::tracing::info_span!(target: $crate::trace::TARGET, parent: $span.id(), $name $(, $($fields)*)?)
        }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn a_traceparent_is_read_as_the_standard_says() {
        let context = parse(GOOD).unwrap();
        assert_eq!(Parent(Some(context.clone())).traceparent(), GOOD);
        assert!(context.is_sampled() && context.is_remote());
        assert!(!parse(&GOOD.replace("-01", "-00")).unwrap().is_sampled());
        assert!(parse(&format!("{}-more", GOOD.replacen("00", "01", 1))).is_some(), "a later version");
    }

    #[test]
    fn what_is_no_traceparent_is_no_parent() {
        for bad in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4bf92f3577b34da6a3ce929d0e0e473é-00f067aa0ba902b7-01",
        ] {
            assert!(parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn the_share_that_is_asked_for_is_kept() {
        let ids = RandomIdGenerator::default();
        let kept = |share: u64| (0..100_000).filter(|_| is_among(ids.new_trace_id(), share)).count();
        assert_eq!((kept(0), kept(1 << 63)), (0, 100_000));
        let hundredth = kept((1 << 63) / 100);
        assert!((800..1_200).contains(&hundredth), "{hundredth} of 100,000; 6 standard deviations are 190");
    }

    #[test]
    fn where_nothing_is_sent_no_span_is_made() {
        assert!(!is_on());
        assert!(!Parent::default().begin().is_some());
        assert!(root_span!(Parent::default(), "a.b", x = 1).is_disabled());
        assert!(continued_span!(Parent::read(GOOD), "a.b").is_disabled());
        assert!(child_span!("a.b").is_disabled());
        assert_eq!(traceparent(), "");
    }
}
