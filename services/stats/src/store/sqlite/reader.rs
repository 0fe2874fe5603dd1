//! The threads that answer queries, each with a read-only connection of its own.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::Receiver,
    },
    time::Instant,
};

use rusqlite::{
    Connection, Row as SqlRow, params_from_iter,
    types::{Value, ValueRef},
};
use tokio::sync::oneshot;
use tracing::error;

use super::writer::failed;
use crate::{
    events,
    store::{Bucket, Group, Hour, Key, MAX_PAGE_BYTES, Page, Query, Row, StoreError},
};

/// SQLite asks whether to go on after so many steps of its virtual machine: about every 0.1 ms.
const STEPS_BETWEEN_CHECKS: i32 = 10_000;

/// A query that waits.
#[derive(Debug)]
pub(super) struct Job {
    pub query: Query,
    pub reply: oneshot::Sender<Result<Page, StoreError>>,
    /// Set when nobody waits for the answer any more.
    pub abandoned: Arc<AtomicBool>,
}

/// Works until nobody can send any more, and all that was sent is done.
pub(super) fn run(mut connection: Connection, jobs: &Mutex<Receiver<Job>>) {
    loop {
        let job = jobs.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).recv();
        let Ok(job) = job else { return };
        if job.abandoned.load(Ordering::Relaxed) {
            continue;
        }
        let started = Instant::now();
        let answer = answer(&mut connection, &job);
        if job.abandoned.load(Ordering::Relaxed) {
            continue;
        }
        events::queried(started.elapsed());
        let answer = answer.map_err(|source| {
            error!(error = %source, "a statistics query failed");
            failed(source)
        });
        // The caller went away between the check and here.
        let _ = job.reply.send(answer);
    }
}

fn answer(connection: &mut Connection, job: &Job) -> rusqlite::Result<Page> {
    let abandoned = Arc::clone(&job.abandoned);
    connection.progress_handler(STEPS_BETWEEN_CHECKS, Some(move || abandoned.load(Ordering::Relaxed)))?;
    let Statement { sql, values, keys } = statement(&job.query);
    let mut statement = connection.prepare_cached(&sql)?;
    let mut rows = statement.query(params_from_iter(values))?;
    let mut page = Page::default();
    let mut bytes = 0;
    while let Some(row) = rows.next()? {
        if page.rows.len() == job.query.limit || bytes > MAX_PAGE_BYTES {
            page.more = true;
            break;
        }
        let row = read(row, keys)?;
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

fn read(row: &SqlRow<'_>, keys: usize) -> rusqlite::Result<Row> {
    let mut key = Vec::with_capacity(keys);
    for column in 0..keys {
        key.push(match row.get_ref(column)? {
            ValueRef::Integer(number) => Key::Number(number),
            _ => Key::Text(row.get(column)?),
        });
    }
    let frames: i64 = row.get(keys)?;
    Ok(Row { key, frames: frames.unsigned_abs() })
}

/// A query as SQL. The text depends only on the query's shape, so that prepared statements are found again.
struct Statement {
    sql: String,
    values: Vec<Value>,
    /// How many columns the key has.
    keys: usize,
}

fn statement(query: &Query) -> Statement {
    let bucket = query.bucket.map(|bucket| match bucket {
        Bucket::Hour => "hour",
        // Hours are never negative, so the division rounds down, to midnight UTC.
        Bucket::Day => "hour / 24 * 24",
    });
    let groups = query.groups.iter().map(|group| match group {
        Group::User => "user_id",
        Group::Application => "application",
        Group::Level => "level",
        Group::Source => "source",
    });
    let keys: Vec<&str> = bucket.into_iter().chain(groups).collect();
    let list = keys.join(", ");

    let mut from = query.from.unwrap_or_default();
    if let (Some(_), Some([Key::Number(bucket), ..])) = (query.bucket, query.after.as_deref()) {
        // The key's comparison below says the same, but not in a way that an index understands.
        from = from.max(Hour(*bucket));
    }
    let to = query.to.unwrap_or(Hour(i64::MAX));
    let mut values: Vec<Value> = vec![query.tenant.clone().into(), from.0.into(), to.0.into()];
    let mut condition = "tenant = ?1 AND hour >= ?2 AND hour < ?3".to_owned();
    for (column, wanted) in [
        ("user_id", json(&query.users)),
        ("application", json(&query.applications)),
        ("level", json(&query.levels)),
    ] {
        if let Some(wanted) = wanted {
            values.push(wanted.into());
            condition += &format!(" AND {column} IN (SELECT value FROM json_each(?{}))", values.len());
        }
    }
    if let Some(after) = &query.after {
        let mut places = Vec::new();
        for key in after {
            values.push(match key {
                Key::Number(number) => (*number).into(),
                Key::Text(text) => text.clone().into(),
            });
            places.push(format!("?{}", values.len()));
        }
        condition += &format!(" AND ({list}) > ({})", places.join(", "));
    }

    // SQLite cannot guess how many values the list holds, and would rather read every user's hours.
    let table = if query.users.is_empty() { "rollups" } else { "rollups INDEXED BY rollups_by_user" };
    // One more row than asked for tells whether there is another page.
    values.push(i64::try_from(query.limit).map_or(i64::MAX, |limit| limit.saturating_add(1)).into());
    let limit = values.len();
    let sql = if keys.is_empty() {
        format!("SELECT coalesce(sum(frames), 0) FROM {table} WHERE {condition} LIMIT ?{limit}")
    } else {
        format!(
            "SELECT {list}, sum(frames) FROM {table} WHERE {condition} \
             GROUP BY {list} ORDER BY {list} LIMIT ?{limit}"
        )
    };
    Statement { sql, values, keys: keys.len() }
}

/// The values as a JSON array; `None` when there are none.
fn json<T: serde::Serialize>(values: &[T]) -> Option<String> {
    let values = (!values.is_empty()).then_some(values)?;
    Some(serde_json::to_string(values).expect("strings and small numbers are always JSON"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{config::StatsConfig, store::sqlite::open};

    fn plan(query: &Query) -> String {
        let location = open::Location::new(Path::new(":memory:"), Path::new(""));
        let connection = open::writer(&location, &StatsConfig::default()).unwrap();
        let Statement { sql, values, .. } = statement(query);
        let mut statement = connection.prepare(&format!("EXPLAIN QUERY PLAN {sql}")).unwrap();
        let rows = statement.query_map(params_from_iter(values), |row| row.get::<_, String>(3)).unwrap();
        rows.map(Result::unwrap).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn one_users_counts_are_found_without_reading_the_others() {
        let query =
            Query { users: vec!["u1".into()], bucket: Some(Bucket::Day), limit: 10, ..Query::default() };
        let plan = plan(&query);
        assert!(plan.contains("rollups_by_user (tenant=? AND user_id=? AND hour>? AND hour<?)"), "{plan}");
    }

    #[test]
    fn a_tenants_hours_are_read_in_order_and_never_sorted() {
        let query = Query {
            bucket: Some(Bucket::Hour),
            groups: vec![Group::User],
            after: Some(vec![Key::Number(5), Key::Text("u".into())]),
            limit: 10,
            ..Query::default()
        };
        let plan = plan(&query);
        assert!(plan.contains("PRIMARY KEY (tenant=? AND hour>? AND hour<?)"), "{plan}");
        assert!(!plan.contains("TEMP B-TREE"), "{plan}");
    }

    #[test]
    fn a_query_that_nobody_waits_for_is_stopped() {
        let location = open::Location::new(Path::new(":memory:"), Path::new(""));
        let mut connection = open::writer(&location, &StatsConfig::default()).unwrap();
        connection
            .execute_batch(
                "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n LIMIT 20000)
                 INSERT INTO rollups SELECT '', n % 10, 'u' || n, '', 1, 1, 1 FROM n",
            )
            .unwrap();
        let mut ask = |abandoned| {
            let query = Query { groups: vec![Group::User], limit: 1, ..Query::default() };
            let (reply, _) = oneshot::channel();
            answer(&mut connection, &Job { query, reply, abandoned: Arc::new(AtomicBool::new(abandoned)) })
        };
        let error = ask(true).unwrap_err();
        assert_eq!(error.sqlite_error_code(), Some(rusqlite::ErrorCode::OperationInterrupted));
        assert!(ask(false).unwrap().more, "the connection is good for the next query");
    }
}
