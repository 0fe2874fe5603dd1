//! What a caller may be told, each with its gRPC code and stable reason (promise P8).
//!
//! | reason | code | when |
//! |---|---|---|
//! | `CHECK_MISSING` | `INVALID_ARGUMENT` | a message of a stream has no `check` |
//! | `TENANT_TOO_LONG` | `INVALID_ARGUMENT` | `tenant` has more than 128 characters |
//! | `TOO_MANY_KEYS` | `INVALID_ARGUMENT` | `keys` has more than 16 entries |
//! | `KEY_NAME_INVALID` | `INVALID_ARGUMENT` | a key of `keys` is empty or has more than 64 characters |
//! | `KEY_VALUE_EMPTY` | `INVALID_ARGUMENT` | a value of `keys` is empty: a value not known is left out |
//! | `KEY_VALUE_TOO_LONG` | `INVALID_ARGUMENT` | a value of `keys` has more than 256 characters |
//! | `HITS_OVER_BURST` | `INVALID_ARGUMENT` | `hits` is more than a rule that applies ever lets come at once |
//!
//! Being over a limit is no error: it is an answer with `allowed = false` and `retry_after`.

use sightline_mesh::RpcError;

use crate::{
    service::{MAX_KEY_CHARS, MAX_KEYS, MAX_TENANT_CHARS, MAX_VALUE_CHARS},
    store::StoreError,
};

/// Why a check was not decided. Nothing was charged. A message may name a key, never its value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// A message of a stream without its check.
    #[error("`check` is missing")]
    Missing,
    /// The tenant is too long.
    #[error("`tenant` has more than {MAX_TENANT_CHARS} characters")]
    TenantTooLong,
    /// Too many keys.
    #[error("`keys` has {0} entries; at most {MAX_KEYS}")]
    TooManyKeys(usize),
    /// A key that no rule could name; not repeated here.
    #[error("`keys` has a key that is empty or longer than {MAX_KEY_CHARS} characters")]
    KeyName,
    /// A value that is not one.
    #[error("`keys[{0:?}]` is empty; leave out a key whose value is not known")]
    ValueEmpty(String),
    /// A value is too long.
    #[error("`keys[{0:?}]` has more than {MAX_VALUE_CHARS} characters")]
    ValueTooLong(String),
    /// The store's word.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl CheckError {
    /// The stable reason, from the table above.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing => "CHECK_MISSING",
            Self::TenantTooLong => "TENANT_TOO_LONG",
            Self::TooManyKeys(_) => "TOO_MANY_KEYS",
            Self::KeyName => "KEY_NAME_INVALID",
            Self::ValueEmpty(_) => "KEY_VALUE_EMPTY",
            Self::ValueTooLong(_) => "KEY_VALUE_TOO_LONG",
            Self::Store(StoreError::HitsOverBurst { .. }) => "HITS_OVER_BURST",
        }
    }
}

impl From<CheckError> for RpcError {
    fn from(error: CheckError) -> Self {
        RpcError::invalid(error.reason(), error.to_string())
    }
}
