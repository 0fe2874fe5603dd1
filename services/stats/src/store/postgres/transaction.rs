//! Transactions that work behind PgBouncer in transaction mode: nothing is left on a connection, no statement has a
//! name, and settings are `SET LOCAL`.

use std::time::{Duration, Instant};

use bb8::PooledConnection;
use futures_util::future::join;
use tokio_postgres::{
    Client, Row,
    types::{ToSql, Type},
};
use tracing::warn;

use super::{
    connect::{Database, Shared},
    error::Trouble,
};

/// Statements that take longer are logged.
const SLOW: Duration = Duration::from_secs(1);
/// How long a rollback may take before the connection is given up instead.
const ROLLBACK: Duration = Duration::from_secs(1);

/// A parameter and its type: with the types given, a statement is sent and run in one round trip.
pub(super) type Parameter<'p> = (&'p (dyn ToSql + Sync), Type);

/// A statement, and what the log calls it: neither holds a value.
#[derive(Debug, Clone, Copy)]
pub(super) struct Statement<'s> {
    pub name: &'static str,
    pub sql: &'s str,
}

/// An open transaction. Dropped without an end, it takes its connection with it.
pub(super) struct Transaction<'d> {
    session: PooledConnection<'d, Shared>,
    /// What opens it, sent together with the first statement.
    begin: Option<String>,
}

/// `BEGIN` with the longest that each statement may take.
pub(super) fn begin(timeout: Duration) -> String {
    format!("BEGIN; SET LOCAL statement_timeout = {}; SET LOCAL jit = off", timeout.as_millis().max(1))
}

impl<'d> Transaction<'d> {
    /// On a connection of the pool; `begin` goes out with the first statement.
    pub(super) async fn new(database: &'d Database, begin: String) -> Result<Self, Trouble> {
        Ok(Self { session: database.session().await?, begin: Some(begin) })
    }

    pub(super) fn client(&self) -> &Client {
        &self.session.client
    }

    /// Marks the transaction as open and sends what opens it, without waiting.
    fn opening(&mut self) -> String {
        self.session.open = true;
        self.begin.take().unwrap_or_default()
    }

    /// Runs a statement.
    pub(super) async fn query(
        &mut self,
        statement: Statement<'_>,
        parameters: &[Parameter<'_>],
    ) -> Result<Vec<Row>, Trouble> {
        let (opening, since) = (self.opening(), Instant::now());
        let rows = self.client().query_typed(statement.sql, parameters);
        // The empty text is a statement to PostgreSQL: it would cost a round trip of its own.
        let rows = if opening.is_empty() {
            rows.await
        } else {
            let (opened, rows) = join(self.client().batch_execute(&opening), rows).await;
            opened?;
            rows
        };
        timed(statement, since);
        Ok(rows?)
    }

    /// Runs statements without parameters, one after another.
    pub(super) async fn run(&mut self, name: &'static str, sql: &str) -> Result<(), Trouble> {
        let (opening, since) = (self.opening(), Instant::now());
        let all = if opening.is_empty() { sql.to_owned() } else { format!("{opening}; {sql}") };
        self.client().batch_execute(&all).await?;
        timed(Statement { name, sql: "" }, since);
        Ok(())
    }

    /// Runs the last statement and commits in one round trip: when the statement fails, PostgreSQL makes a rollback of
    /// the commit.
    pub(super) async fn finish(
        mut self,
        statement: Statement<'_>,
        parameters: &[Parameter<'_>],
    ) -> Result<(), Trouble> {
        let (opening, since) = (self.opening(), Instant::now());
        if !opening.is_empty() {
            self.client().batch_execute(&opening).await?;
        }
        let work = self.client().execute_typed(statement.sql, parameters);
        let (done, committed) = join(work, self.client().batch_execute("COMMIT")).await;
        timed(statement, since);
        // After an answer to COMMIT, whatever it was, no transaction is open.
        self.session.open = committed.is_err();
        done?;
        committed?;
        Ok(())
    }

    /// Makes it last.
    pub(super) async fn commit(mut self) -> Result<(), Trouble> {
        if self.begin.is_some() {
            return Ok(());
        }
        let since = Instant::now();
        self.client().batch_execute("COMMIT").await?;
        timed(Statement { name: "commit", sql: "" }, since);
        self.session.open = false;
        Ok(())
    }

    /// Takes it back, so that the connection can be used again.
    pub(super) async fn rollback(mut self) {
        if self.begin.is_some() {
            return;
        }
        let rolled_back = tokio::time::timeout(ROLLBACK, self.client().batch_execute("ROLLBACK")).await;
        self.session.open = !matches!(rolled_back, Ok(Ok(())));
    }
}

fn timed(statement: Statement<'_>, since: Instant) {
    let took = since.elapsed();
    if took > SLOW {
        warn!(statement = statement.name, ?took, "a statement was slow");
    }
}
