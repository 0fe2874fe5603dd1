//! What a world would otherwise take from outside: the system's randomness and its clock.
//!
//! tokio chooses at random which branch of a `select!` it polls first and in which order it wakes those who watch a value. Its
//! choices begin with the keys of std's hash maps, which std asks the system for by `getrandom`. And h2 forgets streams that
//! were reset a second ago by std's clock, which no runtime pauses. This program has both functions of libc itself, as
//! simulators like madsim have; what it is linked into is this test alone.

use std::{
    cell::Cell,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

/// What randomness is made of in this process.
static SEED: AtomicU64 = AtomicU64::new(0);
/// The time in the world, in nanoseconds.
static NOW: AtomicU64 = AtomicU64::new(0);
/// Where the world's clock begins, in seconds: std and tokio look back from it.
const EPOCH: i64 = 1_000_000;

thread_local! {
    /// Whether this is the thread of the world.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// This thread is the world's from now on.
pub fn enter(seed: u64) {
    SEED.store(seed, Ordering::SeqCst);
    INSIDE.set(true);
}

/// The world is so old.
pub fn tick(elapsed: Duration) {
    NOW.store(elapsed.as_nanos() as u64, Ordering::SeqCst);
}

/// See getrandom(2): fills the buffer and says how much it filled. The same bytes each time: what is made of them differs
/// by counters of its own.
#[allow(unsafe_code)] // there is no other way to stand in for a function of libc
#[unsafe(no_mangle)]
unsafe extern "C" fn getrandom(buffer: *mut u8, length: usize, _flags: u32) -> isize {
    let bytes = SEED.load(Ordering::SeqCst).to_le_bytes();
    for at in 0..length {
        // SAFETY: who calls getrandom(2) passes a buffer of `length` bytes that may be written.
        unsafe { buffer.add(at).write(bytes[at % bytes.len()]) };
    }
    length as isize
}

/// See clock_gettime(2): the world's time in the world, and the system's outside of it.
#[allow(unsafe_code)] // as above
#[unsafe(no_mangle)]
unsafe extern "C" fn clock_gettime(clock: libc::clockid_t, time: *mut libc::timespec) -> libc::c_int {
    if !INSIDE.get() {
        // SAFETY: the caller's own arguments, for the system call that this function stands for.
        return unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) } as libc::c_int;
    }
    let now = Duration::from_nanos(NOW.load(Ordering::SeqCst));
    let (tv_sec, tv_nsec) = (EPOCH + now.as_secs() as i64, i64::from(now.subsec_nanos()));
    // SAFETY: who calls clock_gettime(2) passes a place that may be written.
    unsafe { time.write(libc::timespec { tv_sec, tv_nsec }) };
    0
}
