//! Everything that happens in a world, in order: as a hash, and as text for who wants to read it.

use std::{fmt, time::Duration};

/// FNV-1a (Fowler, Noll, Vo): the offset basis and the prime for 64 bits.
const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

/// What happened so far.
#[derive(Debug)]
pub struct Trace {
    hash: u64,
    shown: bool,
}

impl Trace {
    pub fn new() -> Self {
        Self { hash: BASIS, shown: std::env::var_os("SIGHTLINE_SIM_TRACE").is_some() }
    }

    /// Something happened.
    pub fn note(&mut self, at: Duration, event: fmt::Arguments<'_>) {
        let line = format!("{:>6} ms  {event}", at.as_millis());
        for byte in line.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(PRIME);
        }
        if self.shown {
            println!("{line}");
        }
    }

    pub fn hash(&self) -> u64 {
        self.hash
    }
}
