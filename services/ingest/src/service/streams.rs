//! How many streams each user has open (C10).

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
};

use crate::error::IngestError;

type User = (String, String);

/// Counts open streams by tenant and user.
#[derive(Debug, Clone, Default)]
pub(super) struct OpenStreams {
    /// 0: any number.
    limit: usize,
    open: Arc<Mutex<HashMap<User, usize>>>,
}

/// One open stream; dropped when it ends.
#[derive(Debug)]
pub(super) struct OpenStream {
    streams: OpenStreams,
    user: User,
}

impl OpenStreams {
    pub(super) fn new(limit: usize) -> Self {
        Self { limit, open: Arc::default() }
    }

    /// Counts a stream, or refuses it. A stream that names no user is not counted: its frames name their own.
    pub(super) fn enter(&self, tenant: &str, user: &str) -> Result<Option<OpenStream>, IngestError> {
        if self.limit == 0 || user.is_empty() {
            return Ok(None);
        }
        let user = (tenant.to_owned(), user.to_owned());
        let mut open = self.open.lock().expect("no holder panics");
        let count = open.entry(user.clone()).or_default();
        if *count >= self.limit {
            return Err(IngestError::TooManyStreams(*count));
        }
        *count += 1;
        Ok(Some(OpenStream { streams: self.clone(), user }))
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        let mut open = self.streams.open.lock().expect("no holder panics");
        if let Some(count) = open.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.user);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_has_so_many_streams_and_no_more() {
        let streams = OpenStreams::new(2);
        let first = streams.enter("t", "ada").unwrap();
        let _second = streams.enter("t", "ada").unwrap();
        assert!(streams.enter("t", "ada").is_err());
        assert!(streams.enter("t", "bob").is_ok());
        drop(first);
        assert!(streams.enter("t", "ada").is_ok());
        assert!(streams.enter("t", "").unwrap().is_none());
    }
}
