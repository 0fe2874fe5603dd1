//! Finished spans on their way out: a bounded queue that never makes a frame wait, and a task that sends batches.
//!
//! The SDK's own batch processor also bounds its queue, but keeps the number of what it dropped to itself and works on
//! a thread outside of the runtime; what is dropped here is a metric.

use std::{future::Future, time::Duration};

use metrics::{Counter, counter};
use opentelemetry::Context;
use opentelemetry_sdk::{
    error::OTelSdkResult,
    trace::{Span, SpanData, SpanExporter, SpanProcessor},
};
use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};
use tracing::{info, warn};

/// Spans in one message: about half a megabyte, well under gRPC's default of 4 MiB.
const BATCH: usize = 512;
/// How long a batch that is not full waits for more: what a look at a trace just made has to wait.
const LINGER: Duration = Duration::from_millis(500);

/// The end of the queue that spans go into.
#[derive(Debug)]
pub(super) struct Queue {
    spans: mpsc::Sender<SpanData>,
    dropped: Dropped,
}

/// A counter, which is not `Debug`.
struct Dropped(Counter);

impl std::fmt::Debug for Dropped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Dropped")
    }
}

fn counted(result: &'static str) -> Counter {
    counter!("telemetry_spans_total", "result" => result)
}

/// A queue of `places` spans, and the work that sends them until `stop` turns true.
pub(super) fn queue<E: SpanExporter + 'static>(
    exporter: E,
    places: usize,
    patience: Duration,
    stop: watch::Receiver<bool>,
) -> (Queue, impl Future<Output = ()>) {
    let (sender, receiver) = mpsc::channel(places);
    let queue = Queue { spans: sender, dropped: Dropped(counted("dropped")) };
    (queue, send(exporter, receiver, patience, stop))
}

impl SpanProcessor for Queue {
    fn on_start(&self, _: &mut Span, _: &Context) {}

    fn on_end(&self, span: SpanData) {
        if span.span_context.is_sampled() && self.spans.try_send(span).is_err() {
            self.dropped.0.increment(1);
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        Ok(())
    }

    /// The task is stopped by its owner, who waits for it without blocking a thread.
    fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
        Ok(())
    }
}

async fn send<E: SpanExporter>(
    exporter: E,
    mut spans: mpsc::Receiver<SpanData>,
    patience: Duration,
    mut stop: watch::Receiver<bool>,
) {
    let (sent, failed) = (counted("sent"), counted("failed"));
    let mut batch = Vec::with_capacity(BATCH);
    let mut well = true;
    loop {
        tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop), if !spans.is_closed() => spans.close(),
            count = spans.recv_many(&mut batch, BATCH) => if count == 0 { break },
        }
        if !spans.is_closed() {
            fill(&mut spans, &mut batch, &mut stop).await;
        }
        if batch.is_empty() {
            continue;
        }
        let count = batch.len() as u64;
        let problem = match timeout(patience, exporter.export(std::mem::take(&mut batch))).await {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("no answer within {patience:?}")),
        };
        match &problem {
            None => sent.increment(count),
            Some(_) => failed.increment(count),
        }
        // Once per change: a collector that is away for an hour is one line.
        if problem.is_none() != well {
            well = problem.is_none();
            match problem {
                None => info!("traces are taken again"),
                Some(problem) => warn!("traces cannot be sent, and are dropped and counted: {problem}"),
            }
        }
    }
}

/// Waits for more, until the batch is full or [`LINGER`] is over.
async fn fill(
    spans: &mut mpsc::Receiver<SpanData>,
    batch: &mut Vec<SpanData>,
    stop: &mut watch::Receiver<bool>,
) {
    let full = async {
        while batch.len() < BATCH {
            let room = BATCH - batch.len();
            if spans.recv_many(batch, room).await == 0 {
                break;
            }
        }
    };
    tokio::select! {
        () = full => {}
        () = sleep(LINGER) => {}
        _ = stop.wait_for(|stop| *stop) => {}
    }
}

#[cfg(test)]
mod tests {
    use metrics_exporter_prometheus::PrometheusBuilder;
    use opentelemetry::trace::{Tracer, TracerProvider};
    use opentelemetry_sdk::{error::OTelSdkError, trace::SdkTracerProvider};
    use tokio::time::Instant;

    use super::*;

    /// What the collector does with a batch.
    #[derive(Debug, Clone, Copy)]
    enum Collector {
        Takes,
        Refuses,
        Hangs,
    }

    impl SpanExporter for Collector {
        async fn export(&self, _: Vec<SpanData>) -> OTelSdkResult {
            match self {
                Self::Takes => Ok(()),
                Self::Refuses => Err(OTelSdkError::InternalFailure("no".into())),
                Self::Hangs => std::future::pending().await,
            }
        }
    }

    /// Ends so many spans over a queue of 100, stops, and gives the counters and how long stopping took.
    async fn send_spans(collector: Collector, count: usize) -> (String, Duration) {
        let recorder = PrometheusBuilder::new().build_recorder();
        let _here = metrics::set_default_local_recorder(&recorder);
        let (stop, stopped) = watch::channel(false);
        let (queue, sending) = queue(collector, 100, Duration::from_secs(5), stopped);
        let provider = SdkTracerProvider::builder().with_span_processor(queue).build();
        let tracer = provider.tracer("test");
        let sending = tokio::spawn(sending);
        for _ in 0..count {
            drop(tracer.start("span"));
        }
        sleep(Duration::from_secs(1)).await;
        let since = Instant::now();
        stop.send_replace(true);
        sending.await.unwrap();
        (recorder.handle().render(), since.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn spans_are_sent() {
        let (text, took) = send_spans(Collector::Takes, 60).await;
        assert!(text.contains("telemetry_spans_total{result=\"sent\"} 60"), "{text}");
        assert!(text.contains("telemetry_spans_total{result=\"dropped\"} 0"), "{text}");
        assert!(took < Duration::from_millis(10), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn past_its_bound_the_queue_drops_and_counts() {
        let (text, _) = send_spans(Collector::Takes, 1_000).await;
        assert!(text.contains("telemetry_spans_total{result=\"sent\"} 100"), "{text}");
        assert!(text.contains("telemetry_spans_total{result=\"dropped\"} 900"), "{text}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_collector_that_refuses_or_hangs_costs_the_spans_and_nothing_else() {
        let (text, _) = send_spans(Collector::Refuses, 60).await;
        assert!(text.contains("telemetry_spans_total{result=\"failed\"} 60"), "{text}");
        let (text, took) = send_spans(Collector::Hangs, 60).await;
        assert!(text.contains("telemetry_spans_total{result=\"failed\"} 60"), "{text}");
        assert!(took <= Duration::from_secs(5), "{took:?}");
    }
}
