//! The system's randomness, from the seed.
//!
//! tokio chooses at random which branch of a `select!` it polls first and in which order it wakes those who watch a value. Its
//! choices begin with the keys of std's hash maps, which std asks the system for by `getrandom`. This program has its own
//! (as simulators like madsim have): a world that nothing outside of it touches. It is only in this program.

use std::sync::atomic::{AtomicU64, Ordering};

/// What randomness is made of in this process.
static SEED: AtomicU64 = AtomicU64::new(0);

/// To be called once, before anything random happened on the thread of the world.
pub fn sow(seed: u64) {
    SEED.store(seed, Ordering::SeqCst);
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
