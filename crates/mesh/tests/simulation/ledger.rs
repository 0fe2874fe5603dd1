//! What happened to every message, and the promises that must hold:
//!
//! - A message is answered once, with its own answer, by a server that acted on it; or it fails, with a known reason. Both
//!   by its deadline.
//! - One that must not be repeated is acted on at most once; any other at most as often as it may be sent.
//! - One that must not be repeated, and was acted on, does not wait on a stream that broke.
//! - Where one replica is never in trouble, what may be repeated and has time is answered.
//! - No message is sent to an endpoint that is ejected, but in panic.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::{Arc, Mutex, MutexGuard, atomic::Ordering},
    time::Duration,
};

use sightline_mesh::{client::State, reason};

use crate::{
    plan::{MS, Plan},
    replica::Host,
    trace::Trace,
};

/// How a message is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// On a stream; may be repeated.
    Repeatable,
    /// On a stream; must not be.
    Once,
    /// A call that may be repeated.
    SafeCall,
    /// A call that must not be.
    UnsafeCall,
}

impl Kind {
    pub const ALL: [Self; 4] = [Self::Repeatable, Self::Once, Self::SafeCall, Self::UnsafeCall];

    pub fn may_repeat(self) -> bool {
        matches!(self, Self::Repeatable | Self::SafeCall)
    }
}

/// Timers have steps of 1 ms.
const STEP: Duration = Duration::from_millis(2);
/// What may be repeated and has so long is answered where a replica is never in trouble: three attempts have a second each.
const ENOUGH: Duration = Duration::from_secs(4);
/// Who waits on a stream hears of its end within this.
const NOTICED: Duration = Duration::from_millis(100);

/// Reasons for which a message may fail.
const KNOWN: [&str; 6] = [
    reason::DEADLINE_EXCEEDED,
    reason::SERVICE_UNAVAILABLE,
    reason::CLIENT_OVERLOADED,
    // Held back, because many before it were `FULL`.
    reason::THROTTLED,
    "FULL",
    // Of a call whose connection broke: no server gave a reason.
    "UNAVAILABLE",
];

struct Entry {
    kind: Kind,
    timeout: Duration,
    begun: Duration,
    /// When it was last put on a stream.
    built: Duration,
    /// The stream it was sent on last, and when that ended.
    line: Option<usize>,
    broke: Option<Duration>,
    outcome: Option<String>,
}

struct Inner {
    trace: Trace,
    messages: BTreeMap<String, Entry>,
    /// The endpoint of every stream that was opened.
    lines: Vec<String>,
    /// Each endpoint's states, from when on.
    states: BTreeMap<String, Vec<(Duration, State)>>,
    panics: Vec<(Duration, bool)>,
    broken: Vec<String>,
}

/// The book of one world.
pub struct Ledger {
    inner: Mutex<Inner>,
    must_answer: bool,
    max_attempts: usize,
    hosts: Vec<Arc<Host>>,
}

/// How long the world runs, on the host that asks.
pub fn now() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}

impl Ledger {
    pub fn new(plan: &Plan, hosts: Vec<Arc<Host>>) -> Arc<Self> {
        let (messages, states) = (BTreeMap::new(), BTreeMap::new());
        let (lines, panics, broken) = (Vec::new(), Vec::new(), Vec::new());
        let inner = Inner { trace: Trace::new(), messages, lines, states, panics, broken };
        let (must_answer, max_attempts) = (plan.must_answer(), plan.pool.max_attempts);
        Arc::new(Self { inner: Mutex::new(inner), must_answer, max_attempts, hosts })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap()
    }

    /// Something happened.
    pub fn note(&self, at: Duration, event: fmt::Arguments<'_>) {
        self.inner().trace.note(at, event);
    }

    /// A promise is broken.
    pub fn broken(&self, how: fmt::Arguments<'_>) {
        self.inner().broken(now(), how);
    }

    /// What is broken so far.
    pub fn all_broken(&self) -> Vec<String> {
        self.inner().broken.clone()
    }

    pub fn hash(&self) -> u64 {
        self.inner().trace.hash()
    }

    /// How often servers acted on a message.
    fn acted(&self, name: &str) -> usize {
        let of = |host: &Arc<Host>| host.script.acted.lock().unwrap().get(name).copied().unwrap_or(0);
        self.hosts.iter().map(of).sum()
    }

    /// How the messages ended, by kind.
    pub fn tally(&self) -> BTreeMap<(Kind, String), usize> {
        let mut tally = BTreeMap::new();
        for entry in self.inner().messages.values() {
            let outcome = entry.outcome.clone().unwrap_or_else(|| "nothing".into());
            *tally.entry((entry.kind, outcome)).or_default() += 1;
        }
        tally
    }
}

impl Inner {
    fn broken(&mut self, at: Duration, how: fmt::Arguments<'_>) {
        self.trace.note(at, format_args!("BROKEN: {how}"));
        self.broken.push(format!("at {} ms: {how}", at.as_millis()));
    }

    /// Whether the endpoint was ejected during the whole of the moment `at`, and no panic was on.
    fn was_ejected(&self, authority: &str, at: Duration) -> bool {
        let states = self.states.get(authority).map_or(&[][..], Vec::as_slice);
        let calm = |(when, panic): &(Duration, bool)| *when < at && !panic;
        let last_panic = self.panics.iter().rev().find(|(when, _)| *when <= at);
        let last = states.iter().rev().find(|(when, _)| *when <= at);
        last.is_some_and(|(when, state)| *when < at && *state == State::Ejected)
            && last_panic.is_none_or(calm)
    }
}

/// What callers tell.
impl Ledger {
    pub fn begin(&self, name: &str, kind: Kind, timeout: Duration) {
        let at = now();
        let inner = &mut *self.inner();
        inner.trace.note(at, format_args!("{name} {kind:?} within {timeout:?}"));
        let (line, broke, outcome) = (None, None, None);
        let entry = Entry { kind, timeout, begun: at, built: at, line, broke, outcome };
        let before = inner.messages.insert(name.to_owned(), entry);
        assert!(before.is_none(), "two messages are called {name}");
    }

    /// The caller no longer waits.
    pub fn gave_up(&self, name: &str) {
        let at = now();
        let inner = &mut *self.inner();
        inner.trace.note(at, format_args!("{name} is given up"));
        inner.messages.get_mut(name).unwrap().outcome = Some("given up".into());
    }

    /// The caller heard this: an answer, or the reason why there is none.
    pub fn end(&self, name: &str, heard: Result<String, String>) {
        let (at, acted) = (now(), self.acted(name));
        let inner = &mut *self.inner();
        inner.trace.note(at, format_args!("{name} {heard:?}, acted on {acted} times"));
        let Entry { kind, timeout, begun, broke, .. } = inner.messages[name];
        let mut broken = Vec::new();
        if at > begun + timeout + STEP {
            broken.push(format!("{} ms after its deadline", (at - begun - timeout).as_millis()));
        }
        match &heard {
            Ok(answer) if answer != name => broken.push(format!("got the answer of {answer}")),
            Ok(_) if acted == 0 => broken.push("was answered and nobody acted on it".into()),
            Ok(_) => {}
            Err(reason) if !KNOWN.contains(&reason.as_str()) => broken.push(format!("failed: {reason}")),
            Err(reason) if reason == "FULL" && !kind.may_repeat() && acted > 0 => {
                broken.push("was refused and acted on".into());
            }
            // Its policy leaves a call to whoever refused it.
            Err(reason) if reason == "FULL" && kind == Kind::SafeCall => {}
            Err(reason) if kind.may_repeat() && self.must_answer && timeout >= ENOUGH => {
                broken.push(format!("failed with {reason} though one replica was there all the time"));
            }
            Err(_) => {}
        }
        // One that a server refused moves, and may wait for a credit elsewhere.
        if kind == Kind::Once && acted > 0 && broke.is_some_and(|broke| at > broke + NOTICED) {
            broken.push("waited on a stream that broke".into());
        }
        for how in broken {
            inner.broken(at, format_args!("{name} ({kind:?}) {how}"));
        }
        inner.messages.get_mut(name).unwrap().outcome =
            Some(heard.map_or_else(|why| why, |_| "answered".into()));
    }

    /// Nobody sends any more. Looks at what can only be said at the end.
    pub fn close(&self) {
        let names: Vec<(String, Kind, bool)> = {
            let inner = self.inner();
            let of = |(name, entry): (&String, &Entry)| (name.clone(), entry.kind, entry.outcome.is_some());
            inner.messages.iter().map(of).collect()
        };
        for (name, kind, ended) in names {
            let (acted, most) = (self.acted(&name), if kind.may_repeat() { self.max_attempts } else { 1 });
            if acted > most {
                self.broken(format_args!("{name} ({kind:?}) was acted on {acted} times"));
            }
            if !ended {
                self.broken(format_args!("{name} ({kind:?}) still waits"));
            }
        }
        for host in &self.hosts {
            let greedy = host.script.greedy.load(Ordering::SeqCst);
            if greedy > 0 {
                self.broken(format_args!("{}: {greedy} messages beyond the credits granted", host.name));
            }
        }
    }
}

/// What streams tell.
impl Ledger {
    /// A stream was opened to an endpoint.
    pub fn opened(&self, authority: &str) -> usize {
        let at = now();
        let inner = &mut *self.inner();
        inner.lines.push(authority.to_owned());
        inner.trace.note(at, format_args!("stream {} to {authority}", inner.lines.len() - 1));
        inner.lines.len() - 1
    }

    /// A message is put on a stream.
    pub fn built(&self, name: &str) {
        let at = now();
        if let Some(entry) = self.inner().messages.get_mut(name) {
            (entry.built, entry.line, entry.broke) = (at, None, None);
        }
    }

    /// The connection took a message from a stream.
    pub fn sent(&self, line: usize, name: &str) {
        let at = now();
        let inner = &mut *self.inner();
        inner.trace.note(at, format_args!("{name} on stream {line}"));
        let Some(entry) = inner.messages.get_mut(name) else { return };
        entry.line = Some(line);
        let built = entry.built;
        let authority = inner.lines[line].clone();
        if inner.was_ejected(&authority, built) {
            inner.broken(at, format_args!("{name} was sent to {authority}, which is ejected"));
        }
    }

    /// The connection is done with a stream.
    pub fn ended(&self, line: usize) {
        let at = now();
        let inner = &mut *self.inner();
        inner.trace.note(at, format_args!("stream {line} ended"));
        for entry in inner.messages.values_mut() {
            if entry.outcome.is_none() && entry.line == Some(line) {
                entry.broke = Some(at);
            }
        }
    }
}

/// What is seen of the cluster.
impl Ledger {
    pub fn state(&self, authority: &str, state: State) {
        let at = now();
        let inner = &mut *self.inner();
        let states = inner.states.entry(authority.to_owned()).or_default();
        if states.last().is_none_or(|(_, last)| *last != state) {
            states.push((at, state));
            inner.trace.note(at, format_args!("{authority} is {}", state.name()));
        }
    }

    pub fn panic(&self, panic: bool) {
        let at = now();
        let inner = &mut *self.inner();
        if inner.panics.last().is_none_or(|(_, last)| *last != panic) {
            inner.panics.push((at, panic));
            inner.trace.note(at, format_args!("panic: {panic}"));
        }
    }

    /// How often an endpoint was in each state.
    pub fn visits(&self) -> HashMap<State, usize> {
        let mut visits = HashMap::new();
        for (_, state) in self.inner().states.values().flatten() {
            *visits.entry(*state).or_default() += 1;
        }
        visits
    }
}

/// A pause that lets everything happen that happens at one moment.
pub const MOMENT: Duration = MS;
