//! A steady rate for minutes: does it keep up, what CPU does it take, does memory stay flat.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Result;
use sightline_servers::Postgres;
use sightline_stats::store::{Query, Store, StoreError};
use tokio::task::JoinSet;

use crate::{contestants, cpu, events, options::Options, print};

/// How often events are handed over.
const TICK: Duration = Duration::from_millis(25);
/// How often the state is printed.
const REPORT: Duration = Duration::from_secs(10);

/// Offers `options.rate` events/s for `options.seconds`, and compares the total at the end.
pub(crate) async fn run(options: &Options, postgres: &Postgres, url: &str) -> Result<()> {
    let store = Arc::new(contestants::store(url).await?);
    let batch = options.rate * usize::try_from(TICK.as_millis()).unwrap_or(1) / 1_000;
    let (mut sent, mut refused) = (0_usize, 0_usize);
    let (began, cpu_before) = (Instant::now(), cpu(postgres));
    let (mut reported, mut slowest) = (Instant::now(), Duration::ZERO);
    let mut on_their_way = JoinSet::new();
    let mut ticks = tokio::time::interval(TICK);
    while began.elapsed() < Duration::from_secs(options.seconds) {
        ticks.tick().await;
        let (store, events) = (Arc::clone(&store), events::make(batch, options.users));
        sent += batch;
        on_their_way.spawn(async move {
            let (since, mut refused) = (Instant::now(), 0);
            while let Err(error) = store.record(events.clone()).await {
                match error {
                    StoreError::QueueFull { .. } => refused += 1,
                    other => return Err(other),
                }
                tokio::time::sleep(TICK).await;
            }
            Ok((since.elapsed(), refused))
        });
        while let Some(done) = on_their_way.try_join_next() {
            let (took, times) = done??;
            slowest = slowest.max(took);
            refused += times;
        }
        if reported.elapsed() > REPORT {
            reported = Instant::now();
            print(&format!(
                "{:>4.0} s: {sent} events sent, {} batches on their way, slowest {slowest:.0?}, memory {} MiB",
                began.elapsed().as_secs_f64(),
                on_their_way.len(),
                events::own_memory() >> 20
            ));
            slowest = Duration::ZERO;
        }
    }
    while let Some(done) = on_their_way.join_next().await {
        done??;
    }
    let (took, used) = (began.elapsed(), cpu(postgres).saturating_sub(cpu_before));
    let counted = store.query(Query { limit: 1, ..Query::default() }).await?.rows[0].frames;
    print(&format!(
        "steady: {:.0} events/s for {:.0} s, {counted} of {sent} counted, {refused} batches refused and sent again, \
         {:.2} cores with the making of events ({:.1} µs per event)",
        sent as f64 / took.as_secs_f64(),
        took.as_secs_f64(),
        used.as_secs_f64() / took.as_secs_f64(),
        used.as_secs_f64() * 1e6 / sent as f64
    ));
    store.close().await;
    anyhow::ensure!(counted == sent as u64, "{counted} of {sent} events were counted");
    Ok(())
}
