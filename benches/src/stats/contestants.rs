//! Who writes events, and how.

use std::sync::Arc;

use anyhow::{Result, anyhow};
use futures_util::pin_mut;
use sightline_config::ServerUrl;
use sightline_stats::{
    StatsConfig,
    store::{
        Event, Store,
        postgres::{PostgresStore, migrations},
    },
};
use sightline_telemetry::dependencies::Dependencies;
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls, binary_copy::BinaryCopyInWriter, types::Type};

/// Events in a batch, as ingest sends them (`ingest.record_batch`).
const BATCH: usize = 500;
/// Batches on their way at once: eight replicas of ingest with four each.
const IN_FLIGHT: usize = 32;
/// Rows in one COPY.
const COPY_ROWS: usize = 5_000;
const COLUMNS: [Type; 7] =
    [Type::UUID, Type::INT4, Type::INT2, Type::INT2, Type::TEXT, Type::TEXT, Type::TEXT];

/// Our store, with its defaults.
pub(crate) async fn store(url: &str) -> Result<PostgresStore> {
    let config = StatsConfig { postgres_url: Some(ServerUrl::new(url)), ..StatsConfig::default() };
    migrations::migrate(&config).await?;
    Ok(PostgresStore::open(&config, &Dependencies::default()).await?)
}

/// Gives all events to the store, and returns how many it acknowledged as new.
pub(crate) async fn record(store: &Arc<PostgresStore>, all: &[Event]) -> Result<u64> {
    let mut batches = all.chunks(BATCH);
    let mut on_their_way = JoinSet::new();
    let mut stored = 0;
    loop {
        while on_their_way.len() < IN_FLIGHT
            && let Some(batch) = batches.next()
        {
            let (store, batch) = (Arc::clone(store), batch.to_vec());
            on_their_way.spawn(async move { store.record(batch).await });
        }
        let Some(done) = on_their_way.join_next().await else { return Ok(stored) };
        stored += u64::from(done??.stored);
    }
}

/// A table as that of the store's events, with the same unique index and no more.
pub(crate) async fn plain(url: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(connection);
    client
        .batch_execute(
            "CREATE TABLE raw (key uuid PRIMARY KEY, hour int4 NOT NULL, level int2 NOT NULL, source int2 NOT NULL,
             tenant text COLLATE \"C\" NOT NULL, user_id text COLLATE \"C\" NOT NULL, application text COLLATE \"C\" NOT NULL)",
        )
        .await?;
    Ok(client)
}

/// One INSERT per event, each its own transaction.
pub(crate) async fn insert(client: &Client, all: &[Event]) -> Result<u64> {
    let sql = "INSERT INTO raw VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING";
    let statement = client.prepare_typed(sql, &COLUMNS).await?;
    let mut stored = 0;
    for event in all {
        let (hour, level, source) = numbers(event)?;
        stored += client
            .execute(
                &statement,
                &[&event.id, &hour, &level, &source, &event.tenant, &event.user, &event.application],
            )
            .await?;
    }
    Ok(stored)
}

/// Binary COPY.
pub(crate) async fn copy(client: &Client, all: &[Event]) -> Result<u64> {
    let mut stored = 0;
    for rows in all.chunks(COPY_ROWS) {
        let sink = client.copy_in("COPY raw FROM STDIN (FORMAT binary)").await?;
        let writer = BinaryCopyInWriter::new(sink, &COLUMNS);
        pin_mut!(writer);
        for event in rows {
            let (hour, level, source) = numbers(event)?;
            writer
                .as_mut()
                .write(&[&event.id, &hour, &level, &source, &event.tenant, &event.user, &event.application])
                .await?;
        }
        stored += writer.finish().await?;
    }
    Ok(stored)
}

fn numbers(event: &Event) -> Result<(i32, i16, i16)> {
    let hour = i32::try_from(event.hour.0).map_err(|_| anyhow!("the clock is far in the future"))?;
    Ok((hour, event.level.into(), event.source.into()))
}
