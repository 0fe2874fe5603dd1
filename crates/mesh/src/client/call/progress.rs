//! What is done after an attempt has ended: the rules of retries and hedges, without any IO.

use std::time::Duration;

use tokio::time::Instant;

use super::{backoff::Pushback, policy::MethodPolicy, verdict::Verdict};

/// Attempts that reached no server, after which a call gives up. Each is a race with a connection's end, so several in a
/// row mean that the service is going away.
const UNSENT_ATTEMPTS: u32 = 8;

/// One call's attempts so far.
#[derive(Debug)]
pub(crate) struct Progress<'a> {
    policy: &'a MethodPolicy,
    /// Attempts begun, without those that reached nobody.
    attempts: u32,
    unsent: u32,
    /// Pauses made since the server last chose one itself.
    pauses: u32,
    /// A server said that the call must not be tried again.
    forbidden: bool,
}

/// What to do after an attempt has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// It is the call's end.
    End,
    /// Another attempt, which costs nobody anything.
    Free(Pause),
    /// Another attempt, if the budgets have one.
    Paid(Pause),
    /// No other attempt; the call may still be saved by one that is under way.
    Enough,
}

/// How long to wait before an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pause {
    None,
    /// The backoff's, before this retry, and no less than what was asked for by a server that sheds.
    Backoff(u32, Duration),
    /// The server's.
    Asked(Duration),
}

impl<'a> Progress<'a> {
    pub(crate) fn new(policy: &'a MethodPolicy) -> Self {
        Self { policy, attempts: 0, unsent: 0, pauses: 0, forbidden: false }
    }

    /// An attempt is begun; how many there were before it.
    pub(crate) fn begin(&mut self) -> u32 {
        self.attempts += 1;
        self.attempts - 1
    }

    /// When the next hedge is due.
    pub(crate) fn hedge_at(&self, now: Instant) -> Option<Instant> {
        self.policy.hedge_after.filter(|_| self.may_repeat()).and_then(|after| now.checked_add(after))
    }

    /// Whether the policy and the servers allow another attempt at a call that a server may have seen.
    pub(crate) fn may_repeat(&self) -> bool {
        self.policy.idempotent && !self.forbidden && self.attempts < self.policy.max_attempts
    }

    /// An attempt ended before its answer began.
    pub(crate) fn after(&mut self, verdict: &Verdict) -> Next {
        if verdict.no_endpoint {
            return Next::Enough;
        }
        if verdict.unsent {
            self.attempts = self.attempts.saturating_sub(1);
            self.unsent += 1;
            return match self.unsent {
                1 => Next::Free(Pause::None),
                ..UNSENT_ATTEMPTS => Next::Free(Pause::Backoff(self.unsent - 1, Duration::ZERO)),
                _ => Next::Enough,
            };
        }
        if verdict.pushback == Pushback::Never {
            self.forbidden = true;
        }
        let wanted = verdict.timed_out || self.policy.retry_on.contains(verdict.code);
        if !self.policy.idempotent || !wanted {
            return Next::End;
        }
        if !self.may_repeat() {
            return Next::Enough;
        }
        Next::Paid(match verdict.pushback {
            Pushback::After(delay) => {
                self.pauses = 0;
                Pause::Asked(delay)
            }
            _ if verdict.timed_out => Pause::None,
            _ => {
                self.pauses += 1;
                Pause::Backoff(self.pauses, verdict.shed.unwrap_or_default())
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use tonic::{Code, Status};

    use super::*;
    use crate::RpcError;

    fn answered(code: Code, pushback: Option<&str>) -> Verdict {
        let mut headers = HeaderMap::new();
        Status::new(code, "x").add_header(&mut headers).unwrap();
        if let Some(pushback) = pushback {
            headers.insert("grpc-retry-pushback-ms", pushback.parse().unwrap());
        }
        Verdict::of_headers(&headers).unwrap()
    }

    fn unsent() -> Verdict {
        Verdict { unsent: true, ..answered(Code::Unavailable, None) }
    }

    const BACKOFF: Pause = Pause::Backoff(1, Duration::ZERO);

    #[test]
    fn a_safe_call_is_tried_again_for_the_codes_of_its_policy_and_so_often() {
        let policy = MethodPolicy::idempotent();
        let mut progress = Progress::new(&policy);
        assert_eq!(progress.begin(), 0);
        assert_eq!(progress.after(&answered(Code::Unavailable, None)), Next::Paid(BACKOFF));
        assert_eq!(progress.begin(), 1);
        assert_eq!(progress.after(&answered(Code::Internal, None)), Next::End);
        let second = Pause::Backoff(2, Duration::ZERO);
        assert_eq!(progress.after(&answered(Code::Unavailable, None)), Next::Paid(second));
        assert_eq!(progress.begin(), 2);
        assert_eq!(progress.after(&answered(Code::Unavailable, None)), Next::Enough);
        assert_eq!(progress.after(&answered(Code::Ok, None)), Next::End);
    }

    #[test]
    fn an_unsafe_call_is_repeated_only_if_nobody_saw_it() {
        let policy = MethodPolicy::once();
        let mut progress = Progress::new(&policy);
        for pause in [Pause::None, BACKOFF] {
            progress.begin();
            assert_eq!(progress.after(&unsent()), Next::Free(pause));
        }
        progress.begin();
        assert_eq!(progress.after(&answered(Code::Unavailable, None)), Next::End);
        assert_eq!(progress.after(&Verdict::timed_out()), Next::End);
    }

    #[test]
    fn attempts_that_reach_nobody_are_free_and_bounded() {
        let policy = MethodPolicy::idempotent();
        let mut progress = Progress::new(&policy);
        let free = (0..100).take_while(|_| {
            assert_eq!(progress.begin(), 0, "not counted");
            matches!(progress.after(&unsent()), Next::Free(_))
        });
        assert_eq!(free.count(), 7);
        assert_eq!(progress.after(&Verdict::no_endpoint(&RpcError::unavailable("x"))), Next::Enough);
    }

    #[test]
    fn the_servers_word_goes_before_the_backoff() {
        let policy = MethodPolicy::idempotent().max_attempts(9).hedge_after(Duration::from_millis(5));
        let mut progress = Progress::new(&policy);
        progress.begin();
        let asked = Next::Paid(Pause::Asked(Duration::from_millis(700)));
        assert_eq!(progress.after(&answered(Code::Unavailable, Some("700"))), asked);
        assert_eq!(progress.after(&answered(Code::Unavailable, None)), Next::Paid(BACKOFF));
        assert_eq!(progress.after(&Verdict::timed_out()), Next::Paid(Pause::None));
        assert!(progress.may_repeat());
        assert_eq!(progress.after(&answered(Code::Unavailable, Some("-1"))), Next::Enough);
        assert!(!progress.may_repeat(), "no hedge either");
        assert_eq!(progress.after(&answered(Code::Unavailable, None)), Next::Enough);
    }
}
