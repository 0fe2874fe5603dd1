//! Queries: rollups as one statement, in a read-only transaction with a time limit.

use std::time::{Duration, Instant};

use futures_util::{StreamExt, future::join};
use tokio_postgres::{
    CancelToken, Row as SqlRow,
    types::{ToSql, Type},
};
use tokio_postgres_rustls::MakeRustlsConnect;
use tracing::{debug, warn};

use super::{connect::Database, error::Trouble, names};
use crate::store::{Bucket, Group, Hour, Key, MAX_PAGE_BYTES, Page, Query, Row};

/// How long telling the server to stop may take.
const CANCEL: Duration = Duration::from_secs(5);
/// Queries that take longer are logged, by their shape.
const SLOW: Duration = Duration::from_secs(1);

/// A query as SQL, whose text depends only on the query's shape.
pub(super) struct Statement {
    pub sql: String,
    values: Vec<(Value, Type)>,
    /// How many columns the key has, and which of them are texts.
    texts: Vec<bool>,
}

type Value = Box<dyn ToSql + Sync + Send>;

/// Answers one page. Dropped before its end, it tells the server to stop.
pub(super) async fn answer(database: &Database, query: &Query, timeout: Duration) -> Result<Page, Trouble> {
    let statement = statement(query);
    let mut session = database.session().await?;
    session.open = true;
    let mut guard = CancelOnDrop { running: Some((session.client.cancel_token(), database.tls())) };
    let since = Instant::now();
    let begin = format!("BEGIN READ ONLY; SET LOCAL statement_timeout = {}", timeout.as_millis().max(1));
    let values =
        statement.values.iter().map(|(value, kind)| (value.as_ref() as &(dyn ToSql + Sync), kind.clone()));
    let rows = session.client.query_typed_raw(&statement.sql, values);
    let (begun, rows) = join(session.client.batch_execute(&begin), rows).await;
    let page = match (begun, rows) {
        (Err(error), _) | (_, Err(error)) => Err(Trouble::from(error)),
        (Ok(()), Ok(rows)) => collect(rows, query.limit, &statement.texts).await,
    };
    // Nothing was written: a rollback is as good, and ends a transaction that failed as well.
    let ended = session.client.batch_execute("ROLLBACK").await;
    session.open = ended.is_err();
    guard.running = None;
    let took = since.elapsed();
    if took > SLOW {
        warn!(statement = statement.sql, ?took, "a query was slow");
    }
    page
}

async fn collect(rows: tokio_postgres::RowStream, limit: usize, texts: &[bool]) -> Result<Page, Trouble> {
    let mut rows = std::pin::pin!(rows);
    let mut page = Page::default();
    let mut bytes = 0;
    while let Some(row) = rows.next().await {
        let row = read(&row?, texts)?;
        if page.rows.len() == limit || bytes > MAX_PAGE_BYTES {
            page.more = true;
            break;
        }
        bytes += row.key.iter().map(size_of_key).sum::<usize>();
        page.rows.push(row);
    }
    Ok(page)
}

fn size_of_key(key: &Key) -> usize {
    match key {
        Key::Number(_) => size_of::<i64>(),
        Key::Text(text) => text.len(),
    }
}

fn read(row: &SqlRow, texts: &[bool]) -> Result<Row, Trouble> {
    let mut key = Vec::with_capacity(texts.len());
    for (column, text) in texts.iter().enumerate() {
        key.push(match text {
            true => Key::Text(names::unescape(row.try_get(column)?)),
            false => Key::Number(row.try_get(column)?),
        });
    }
    let frames: i64 = row.try_get(texts.len())?;
    Ok(Row { key, frames: frames.unsigned_abs() })
}

/// An hour as the tables hold it.
fn hour(hour: Hour) -> i32 {
    i32::try_from(hour.0).unwrap_or(i32::MAX)
}

pub(super) fn statement(query: &Query) -> Statement {
    let bucket = query.bucket.map(|bucket| match bucket {
        Bucket::Hour => ("hour", false),
        // Hours are never negative, so the division rounds down, to midnight UTC.
        Bucket::Day => ("hour / 24 * 24", false),
    });
    let groups = query.groups.iter().map(|group| match group {
        Group::User => ("user_id", true),
        Group::Application => ("application", true),
        Group::Level => ("level", false),
        Group::Source => ("source", false),
    });
    let (keys, texts): (Vec<&str>, Vec<bool>) = bucket.into_iter().chain(groups).unzip();

    let mut from = query.from.unwrap_or_default();
    if let (Some(_), Some([Key::Number(bucket), ..])) = (query.bucket, query.after.as_deref()) {
        // The key's comparison below says the same, but not in a way that an index understands.
        from = from.max(Hour(*bucket));
    }
    let to = query.to.unwrap_or(Hour(i64::MAX));
    let tenant = names::escape(&query.tenant).into_owned();
    let mut values: Vec<(Value, Type)> = vec![
        (Box::new(tenant), Type::TEXT),
        (Box::new(hour(from)), Type::INT4),
        (Box::new(hour(to)), Type::INT4),
    ];
    let mut condition = "tenant = $1 AND hour >= $2 AND hour < $3".to_owned();
    for (column, wanted) in [("user_id", &query.users), ("application", &query.applications)] {
        if !wanted.is_empty() {
            let wanted: Vec<String> = wanted.iter().map(|name| names::escape(name).into_owned()).collect();
            values.push((Box::new(wanted), Type::TEXT_ARRAY));
            condition += &format!(" AND {column} = ANY(${})", values.len());
        }
    }
    if !query.levels.is_empty() {
        let levels: Vec<i16> = query.levels.iter().map(|level| i16::from(*level)).collect();
        values.push((Box::new(levels), Type::INT2_ARRAY));
        condition += &format!(" AND level = ANY(${})", values.len());
    }
    if let Some(after) = &query.after {
        let mut places = Vec::new();
        for key in after {
            values.push(match key {
                Key::Number(number) => (Box::new(hour(Hour(*number))), Type::INT4),
                Key::Text(text) => (Box::new(names::escape(text).into_owned()), Type::TEXT),
            });
            places.push(format!("${}", values.len()));
        }
        condition += &format!(" AND ({}) > ({})", keys.join(", "), places.join(", "));
    }
    // One more row than asked for tells whether there is another page.
    let limit = i64::try_from(query.limit).map_or(i64::MAX, |limit| limit.saturating_add(1));
    values.push((Box::new(limit), Type::INT8));
    Statement { sql: text(&keys, &texts, &condition, values.len()), values, texts }
}

fn text(keys: &[&str], texts: &[bool], condition: &str, limit: usize) -> String {
    let table = "sightline_stats.rollups";
    if keys.is_empty() {
        return format!(
            "SELECT coalesce(sum(frames), 0)::int8 FROM {table} WHERE {condition} LIMIT ${limit}"
        );
    }
    let list = keys.join(", ");
    let selected: Vec<String> = keys
        .iter()
        .zip(texts)
        .map(|(key, text)| if *text { (*key).to_owned() } else { format!("({key})::int8") })
        .collect();
    format!(
        "SELECT {}, sum(frames)::int8 FROM {table} WHERE {condition} GROUP BY {list} ORDER BY {list} LIMIT ${limit}",
        selected.join(", ")
    )
}

/// Tells the server to stop a statement that nobody waits for any more.
struct CancelOnDrop {
    running: Option<(CancelToken, MakeRustlsConnect)>,
}

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        let Some((token, tls)) = self.running.take() else { return };
        // Outside a runtime the process is ending, and its connections with it.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(async move {
            match tokio::time::timeout(CANCEL, token.cancel_query(tls)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => {
                    debug!("a query could not be cancelled: {}", super::error::describe(&error));
                }
                Err(_) => debug!("a query could not be cancelled in time"),
            }
        });
    }
}
