//! What can go wrong with PostgreSQL, said without values: a server's message names columns, its details show rows.

use std::{error::Error, fmt::Write, time::Duration};

use tokio_postgres::error::SqlState;

/// Why a statement or a connection failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// No connection could be had.
    #[error("no connection to PostgreSQL: {0}")]
    Unreachable(String),
    /// The server or the wire failed.
    #[error("{}", describe(.0))]
    Postgres(#[from] tokio_postgres::Error),
    /// Nothing came back in time.
    #[error("PostgreSQL did not answer within {0:?}")]
    Slow(Duration),
    /// What the database holds is not what this code expects.
    #[error("{0}")]
    Unexpected(String),
}

impl Trouble {
    /// Whether the same may work when it is tried again at once. Writes may be repeated: ids make them count once.
    pub(super) fn is_transient(&self) -> bool {
        let Self::Postgres(error) = self else { return matches!(self, Self::Unreachable(_)) };
        let Some(code) = error.code() else { return true };
        // Classes 08 (connection), 40 (serialization, deadlock), 53 (resources), 57P (shutdown, starting).
        let class = &code.code()[..2];
        ["08", "40", "53"].contains(&class)
            || code.code().starts_with("57P")
            || [SqlState::LOCK_NOT_AVAILABLE, SqlState::CHECK_VIOLATION].contains(code)
    }

    /// Whether the server lacks the partition of a row: another replica dropped it, or nobody made it yet.
    pub(super) fn lacks_partition(&self) -> bool {
        matches!(self, Self::Postgres(error) if error.code() == Some(&SqlState::CHECK_VIOLATION))
    }

    /// Whether the server cannot be used, whatever is asked of it.
    pub(super) fn is_of_the_server(&self) -> bool {
        match self {
            Self::Unreachable(_) => true,
            Self::Postgres(error) => error.code().is_none_or(|code| {
                code.code().starts_with("57P") || ["08", "53"].contains(&&code.code()[..2])
            }),
            Self::Slow(_) | Self::Unexpected(_) => false,
        }
    }
}

/// The server's code and message, without the details that show values; or the wire's chain of causes.
pub(super) fn describe(error: &tokio_postgres::Error) -> String {
    if let Some(said) = error.as_db_error() {
        return format!("PostgreSQL: {} ({})", said.message(), said.code().code());
    }
    let mut text = format!("PostgreSQL: {error}");
    let mut cause = error.source();
    while let Some(source) = cause {
        // Writing to a String cannot fail.
        let _ = write!(text, ": {source}");
        cause = source.source();
    }
    text
}
