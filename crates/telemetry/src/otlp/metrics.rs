//! Sends what `/metrics` shows, every so often.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use opentelemetry_proto::tonic::{
    collector::metrics::v1::{ExportMetricsServiceRequest, metrics_service_client::MetricsServiceClient},
    common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value},
    metrics::v1::{
        AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint,
        ResourceMetrics, ScopeMetrics, Sum, metric::Data, number_data_point::Value as Number,
    },
    resource::v1::Resource as WireResource,
};
use opentelemetry_sdk::Resource;
use tokio::{
    sync::watch,
    time::{sleep, timeout},
};
use tonic::{Code, transport::Channel};
use tracing::{info, warn};

use super::prometheus::{self, Family, Labels, Series};

const CUMULATIVE: i32 = AggregationTemporality::Cumulative as i32;

/// Sends every `every` until `stop` turns true, and once more then. Ends when the other side takes no metrics, as Jaeger
/// does not.
pub(super) async fn send(
    channel: Channel,
    resource: Resource,
    every: Duration,
    patience: Duration,
    mut stop: watch::Receiver<bool>,
) {
    let started = nanoseconds();
    let mut client = MetricsServiceClient::new(channel);
    let resource = wire(&resource);
    let mut well = true;
    loop {
        let last = tokio::select! {
            () = sleep(every) => false,
            _ = stop.wait_for(|stop| *stop) => true,
        };
        let metrics = prometheus::read(&crate::metrics::render());
        let request = request(resource.clone(), metrics, started, nanoseconds());
        let problem = match timeout(patience, client.export(request)).await {
            Ok(Ok(_)) => None,
            Ok(Err(status)) if status.code() == Code::Unimplemented => {
                info!("the OTLP endpoint takes traces only: no metrics are sent");
                return;
            }
            Ok(Err(status)) => Some(status.message().to_owned()),
            Err(_) => Some(format!("no answer within {patience:?}")),
        };
        if problem.is_none() != well {
            well = problem.is_none();
            match problem {
                None => info!("metrics are taken again"),
                Some(problem) => warn!("metrics cannot be sent: {problem}"),
            }
        }
        if last {
            return;
        }
    }
}

fn nanoseconds() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

fn text(key: &str, value: String) -> KeyValue {
    let value = Some(AnyValue { value: Some(Value::StringValue(value)) });
    KeyValue { key: key.to_owned(), value, ..KeyValue::default() }
}

fn wire(resource: &Resource) -> WireResource {
    let attributes = resource.iter().map(|(key, value)| text(key.as_str(), value.to_string())).collect();
    WireResource { attributes, ..WireResource::default() }
}

fn request(
    resource: WireResource,
    families: Vec<Family>,
    started: u64,
    now: u64,
) -> ExportMetricsServiceRequest {
    let metrics = families.into_iter().map(|family| metric(family, started, now)).collect();
    let scope = InstrumentationScope { name: "sightline".into(), ..InstrumentationScope::default() };
    let scope_metrics = vec![ScopeMetrics { scope: Some(scope), metrics, ..ScopeMetrics::default() }];
    let resource_metrics =
        vec![ResourceMetrics { resource: Some(resource), scope_metrics, ..ResourceMetrics::default() }];
    ExportMetricsServiceRequest { resource_metrics }
}

fn metric(family: Family, started: u64, now: u64) -> Metric {
    let numbers = |series: Vec<(Labels, f64)>| -> Vec<NumberDataPoint> {
        let point = |(labels, value)| NumberDataPoint {
            attributes: attributes(labels),
            start_time_unix_nano: started,
            time_unix_nano: now,
            value: Some(Number::AsDouble(value)),
            ..NumberDataPoint::default()
        };
        series.into_iter().map(point).collect()
    };
    let data = match family.series {
        Series::Gauge(series) => Data::Gauge(Gauge { data_points: numbers(series) }),
        Series::Counter(series) => Data::Sum(Sum {
            data_points: numbers(series),
            aggregation_temporality: CUMULATIVE,
            is_monotonic: true,
        }),
        Series::Histogram(series) => Data::Histogram(Histogram {
            data_points: series
                .into_iter()
                .map(|(labels, histogram)| distribution(labels, &histogram, started, now))
                .collect(),
            aggregation_temporality: CUMULATIVE,
        }),
    };
    Metric { name: family.name, description: family.help, data: Some(data), ..Metric::default() }
}

/// OTLP counts each bucket by itself, Prometheus all up to it.
fn distribution(
    labels: Labels,
    histogram: &prometheus::Histogram,
    started: u64,
    now: u64,
) -> HistogramDataPoint {
    let mut below = 0;
    let mut bucket_counts: Vec<u64> = Vec::with_capacity(histogram.buckets.len() + 1);
    for (_, up_to) in &histogram.buckets {
        bucket_counts.push(up_to.saturating_sub(below));
        below = *up_to;
    }
    bucket_counts.push(histogram.count.saturating_sub(below));
    HistogramDataPoint {
        attributes: attributes(labels),
        start_time_unix_nano: started,
        time_unix_nano: now,
        count: histogram.count,
        sum: Some(histogram.sum),
        bucket_counts,
        explicit_bounds: histogram.buckets.iter().map(|(bound, _)| *bound).collect(),
        ..HistogramDataPoint::default()
    }
}

fn attributes(labels: Labels) -> Vec<KeyValue> {
    labels.into_iter().map(|(name, value)| text(&name, value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cumulative_buckets_become_one_count_each() {
        let histogram = prometheus::Histogram { buckets: vec![(0.1, 2), (1.0, 5)], sum: 3.0, count: 9 };
        let point = distribution(vec![], &histogram, 1, 2);
        assert_eq!(point.bucket_counts, [2, 3, 4]);
        assert_eq!(point.explicit_bounds, [0.1, 1.0]);
        assert_eq!(point.bucket_counts.iter().sum::<u64>(), point.count);
    }
}
