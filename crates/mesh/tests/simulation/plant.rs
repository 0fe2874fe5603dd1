//! Bugs that are put in on purpose, in this test's own parts: a check that finds none of them checks nothing.

use std::{sync::Arc, time::Duration};

use sightline_mesh::client::{Answered, Cluster, Lane, Message, State};
use tokio::{sync::mpsc, time::sleep};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    lane::SimLane,
    ledger::{Kind, Ledger, MOMENT},
    scripted::{TestLane, ask},
};

/// A bug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    /// The lane takes an answer for that of the message before.
    MixesAnswers,
    /// The lane repeats what must not be.
    RepeatsAll,
    /// The lane counts credits twice.
    CountsTwice,
    /// The lane does not hear that a message was refused: nothing moves it, its credit stays out.
    ForgetsRefusals,
    /// Callers wait longer than they say.
    Oversleeps,
    /// A message goes to a replica that the cluster has ejected.
    PicksEjected,
}

impl Plant {
    pub const ALL: [Self; 6] = [
        Self::MixesAnswers,
        Self::RepeatsAll,
        Self::CountsTwice,
        Self::ForgetsRefusals,
        Self::Oversleeps,
        Self::PicksEjected,
    ];

    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|plant| format!("{plant:?}") == name)
    }

    /// What is said of the promise that it breaks.
    pub fn breaks(self) -> &'static str {
        match self {
            Self::MixesAnswers => "got the answer of",
            Self::RepeatsAll => "(Once) was acted on 2 times",
            Self::CountsTwice => "more credits than were granted",
            Self::ForgetsRefusals => "is not whole again",
            Self::Oversleeps => "after its deadline",
            Self::PicksEjected => "which is ejected",
        }
    }

    /// What the lane makes of a message of the server.
    pub fn read(self, message: Message<String>) -> Message<String> {
        match (self, message) {
            (Self::MixesAnswers, Message::Answer(answered)) => {
                let id = answered.id.saturating_sub(1).max(1);
                Message::Answer(Answered { id, ..answered })
            }
            (Self::CountsTwice, Message::Credits(count)) => Message::Credits(2 * count),
            (Self::ForgetsRefusals, Message::Refused(_)) => Message::Credits(0),
            (_, message) => message,
        }
    }

    /// How long a caller really waits.
    pub fn wait(plant: Option<Self>, timeout: Duration) -> Duration {
        if plant == Some(Self::Oversleeps) { timeout * 2 } else { timeout }
    }
}

/// A balancer that looks at nothing.
pub async fn pick_ejected(cluster: Cluster, ledger: Arc<Ledger>) {
    loop {
        sleep(MOMENT).await;
        let endpoints = cluster.endpoints().borrow().clone();
        let ejected = endpoints.iter().find(|endpoint| endpoint.state() == State::Ejected);
        let Some(transport) = ejected.and_then(|endpoint| endpoint.transport()) else { continue };
        // Longer than the moment in which it was ejected.
        sleep(MOMENT).await;
        let lane = SimLane { lane: TestLane { repeatable: false }, ledger: Arc::clone(&ledger), plant: None };
        let (send, receive) = mpsc::channel(2);
        ledger.begin("planted", Kind::Repeatable, Duration::from_secs(1));
        ledger.built("planted");
        send.try_send(lane.hello().unwrap()).unwrap();
        send.try_send(ask("planted".into())(1)).unwrap();
        let opened = lane.open(transport, cluster.request(ReceiverStream::new(receive))).await;
        ledger.gave_up("planted");
        return drop(opened);
    }
}
