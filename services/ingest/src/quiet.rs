//! One line in the log for many of a kind.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

/// Lets one line through in so long, and counts what it held back.
#[derive(Debug)]
pub(crate) struct Quiet {
    pause: Duration,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    last: Option<Instant>,
    held_back: u64,
}

impl Quiet {
    /// One line in `pause`.
    pub(crate) const fn new(pause: Duration) -> Self {
        Self { pause, state: Mutex::new(State { last: None, held_back: 0 }) }
    }

    /// `Some` when a line may be written: how many were not since the one before.
    pub(crate) fn may_say(&self) -> Option<u64> {
        let state = &mut *self.state.lock().expect("no holder panics");
        let now = Instant::now();
        if state.last.is_some_and(|last| now.duration_since(last) < self.pause) {
            state.held_back += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_said_and_the_rest_are_counted() {
        let quiet = Quiet::new(Duration::from_secs(3600));
        assert_eq!((quiet.may_say(), quiet.may_say(), quiet.may_say()), (Some(0), None, None));
        quiet.state.lock().unwrap().last = None;
        assert_eq!(quiet.may_say(), Some(2));
        let always = Quiet::new(Duration::ZERO);
        assert_eq!((always.may_say(), always.may_say()), (Some(0), Some(0)));
    }
}
