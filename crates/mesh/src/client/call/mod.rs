//! What [`super::Channel`] does with a call, piece by piece.
//!
//! - [`policy`]: what may be done with a method's calls, in one table.
//! - [`attempt`]: one attempt; [`progress`]: what follows its end; [`drive`]: all attempts of a call until an answer
//!   begins; [`answer`]: from there to the answer's end.
//! - [`budget`], [`throttle`], [`backoff`]: how much, whether at all, and when.
//! - [`tree`], [`inherit`]: what is handed from a call to the calls it causes, on the client's and the server's side.
//! - [`replay`]: request bodies kept for another attempt. [`verdict`]: what an answer says. [`observe`]: metrics and spans;
//!   [`meter`]: the same for calls that are made without a channel.

mod answer;
mod attempt;
mod backoff;
mod budget;
mod drive;
mod inherit;
mod meter;
mod observe;
mod policy;
mod progress;
mod replay;
mod throttle;
mod tree;
mod verdict;

pub(super) use attempt::Call;
pub use backoff::Backoff;
pub use budget::{RetryBudget, RetryBudgetOptions};
pub(super) use drive::run;
pub use inherit::{Inherit, Inheriting};
pub(super) use meter::Meter;
pub(super) use observe::{ByCode, CallRecord, Counters, Method, Nth, lost, won};
pub use policy::{Codes, MethodPolicies, MethodPolicy, PolicyError};
pub(super) use replay::{Kept, Replay};
pub use throttle::{Throttle, ThrottleOptions};
pub use tree::{ATTEMPTS_LEFT, AttemptBudget, CallContext};
