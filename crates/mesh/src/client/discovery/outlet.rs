//! Where a source's answers leave it: changed sets and problems, each said once.

use std::{
    future::Future,
    sync::{Mutex, PoisonError},
};

use metrics::{counter, describe_counter, describe_gauge, gauge};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tracing::{debug, info, warn};

use super::{AddressStream, DiscoverError};
use crate::client::Address;

/// Answers that may wait for whoever listens. It reads at once; more than a few waiting would be stale.
const WAITING: usize = 4;

/// The sending end of an [`AddressStream`].
pub(super) struct Outlet {
    source: String,
    sender: mpsc::Sender<Result<Vec<Address>, DiscoverError>>,
    last: Mutex<Last>,
    max_addresses: usize,
}

#[derive(Default)]
struct Last {
    set: Vec<Address>,
    troubled: bool,
}

impl Outlet {
    /// Runs `task` with an outlet until it ends or nobody listens any more; what it sends is the stream.
    pub(super) fn stream<F>(
        source: String,
        max_addresses: usize,
        task: impl FnOnce(Outlet) -> F,
    ) -> AddressStream
    where
        F: Future<Output = ()> + Send + 'static,
    {
        describe_counter!(
            "mesh_discovery_answers_total",
            "Answers to the question where a service is, by source and outcome"
        );
        describe_gauge!("mesh_discovery_addresses", "Addresses in the last good answer, by source");
        let (sender, receiver) = mpsc::channel(WAITING);
        let listening = sender.clone();
        let task = task(Self { source, sender, last: Mutex::default(), max_addresses });
        tokio::spawn(async move {
            tokio::select! {
                () = listening.closed() => {}
                () = task => {}
            }
        });
        Box::pin(ReceiverStream::new(receiver))
    }

    /// A whole set was found. It is passed on if it differs from the last, or ends a problem. An empty one is a problem.
    pub(super) async fn found(&self, mut set: Vec<Address>) {
        set.sort();
        set.dedup_by(|twin, kept| {
            let same = twin.authority == kept.authority;
            if same {
                kept.zone = kept.zone.take().or_else(|| twin.zone.take());
                kept.weight = kept.weight.max(twin.weight);
            }
            same
        });
        if set.is_empty() {
            return self.problem("the answer is empty; the last set that was not stays in use").await;
        }
        if set.len() > self.max_addresses {
            let (found, most) = (set.len(), self.max_addresses);
            return self
                .problem(&format!("{found} addresses were found, more than max_addresses = {most}"))
                .await;
        }
        let Ok(permit) = self.sender.reserve().await else { return };
        let mut last = self.last();
        if last.set == set && !last.troubled {
            return self.count("same");
        }
        if last.troubled {
            info!(source = self.source, addresses = set.len(), "discovery works again");
        }
        self.count(if last.set == set { "same" } else { "changed" });
        gauge!("mesh_discovery_addresses", "source" => self.source.clone()).set(set.len() as f64);
        *last = Last { set: set.clone(), troubled: false };
        permit.send(Ok(set));
    }

    /// No set was found.
    pub(super) async fn problem(&self, problem: &str) {
        let Ok(permit) = self.sender.reserve().await else { return };
        let known = std::mem::replace(&mut self.last().troubled, true);
        // Once; what follows until it is over is for whoever looks closely.
        match known {
            true => debug!(source = self.source, "discovery failed again: {problem}"),
            false => warn!(source = self.source, "discovery failed: {problem}"),
        }
        self.count("failed");
        permit.send(Err(DiscoverError { source_name: self.source.clone(), problem: problem.to_owned() }));
    }

    /// The set passed on last.
    pub(super) fn known(&self) -> Vec<Address> {
        self.last().set.clone()
    }

    fn last(&self) -> std::sync::MutexGuard<'_, Last> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, outcome: &'static str) {
        counter!("mesh_discovery_answers_total", "source" => self.source.clone(), "outcome" => outcome)
            .increment(1);
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt;

    use super::*;

    fn addresses(of: &[&str]) -> Vec<Address> {
        of.iter().map(|text| Address::new(text).unwrap()).collect()
    }

    #[tokio::test]
    async fn only_changes_and_ends_of_problems_are_passed_on() {
        let mut answers = Outlet::stream("test".into(), 2, |outlet| async move {
            outlet.found(addresses(&["b:1", "a:1", "b:1"])).await;
            outlet.found(addresses(&["a:1", "b:1"])).await;
            outlet.found(vec![]).await;
            outlet.found(addresses(&["a:1", "b:1"])).await;
            outlet.found(addresses(&["a:1", "b:1", "c:1"])).await;
            assert_eq!(outlet.known(), addresses(&["a:1", "b:1"]));
        });
        assert_eq!(answers.next().await.unwrap().unwrap(), addresses(&["a:1", "b:1"]));
        let empty = answers.next().await.unwrap().unwrap_err();
        assert!(empty.to_string().starts_with("test: the answer is empty"), "{empty}");
        assert_eq!(answers.next().await.unwrap().unwrap(), addresses(&["a:1", "b:1"]));
        let many = answers.next().await.unwrap().unwrap_err();
        assert_eq!(many.problem, "3 addresses were found, more than max_addresses = 2");
        assert!(answers.next().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_source_ends_when_nobody_listens() {
        let (alive, ended) = tokio::sync::oneshot::channel::<()>();
        let answers = Outlet::stream("test".into(), 1, |_| async move {
            let _alive = alive;
            std::future::pending::<()>().await;
        });
        drop(answers);
        assert!(ended.await.is_err(), "dropped, not sent");
    }
}
