//! The arguments and the answer of `gcra.lua`.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use sightline_redis::{Cmd, Value};

use super::key::Charge;

/// What is done to a check's counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Op {
    /// Charge all or none.
    Charge = 0,
    /// Give back what was charged.
    Refund = 1,
}

/// What the script says of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Every counter had room.
    pub(super) admitted: bool,
    /// Of each counter, microseconds until it is as if never used.
    pub(super) used: Vec<u64>,
}

/// What the script is told of time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    /// Microseconds since 1970 in tests; 0: Redis's own clock.
    pub(super) now: u64,
    /// Milliseconds for which a key outlives what its value says.
    pub(super) grace_ms: u64,
    /// Microseconds for which a key is kept longer than needed, so that not every charge sets its time to live.
    pub(super) spare: u64,
}

/// A call of the script.
#[derive(Debug, Default)]
pub(super) struct Call {
    keys: Vec<Vec<u8>>,
    packed: Vec<u8>,
    /// Counters of each check, in order.
    sizes: Vec<usize>,
}

impl Call {
    /// For `checks`, whose keys are all in one slot.
    pub(super) fn new<'a>(
        prefix: &str,
        times: Times,
        checks: impl Iterator<Item = (Op, &'a [Charge])> + Clone,
    ) -> Self {
        let mut places: HashMap<u128, u64, BuildHasherDefault<Id>> = HashMap::default();
        let (mut keys, mut head, mut body, mut sizes) =
            (Vec::new(), vec![times.now, times.grace_ms, times.spare], Vec::new(), Vec::new());
        for (op, charges) in checks {
            body.extend([op as u64, charges.len() as u64]);
            sizes.push(charges.len());
            for charge in charges {
                let place = *places.entry(charge.key.id).or_insert_with(|| {
                    let mut key = Vec::with_capacity(prefix.len() + 50);
                    charge.key.write(prefix, &mut key);
                    keys.push(key);
                    head.extend([charge.quota.interval, charge.quota.refill]);
                    keys.len() as u64
                });
                body.extend([place, u64::from(charge.hits)]);
            }
        }
        let mut packed = Vec::with_capacity(8 + 4 * (head.len() + body.len()));
        array(head.len() + body.len(), &mut packed);
        head.iter().chain(&body).for_each(|number| integer(*number, &mut packed));
        Self { keys, packed, sizes }
    }

    /// Adds keys and arguments.
    pub(super) fn fill(&self, cmd: &mut Cmd) {
        cmd.arg(self.keys.len());
        for key in &self.keys {
            cmd.arg(&key[..]);
        }
        cmd.arg(&self.packed[..]);
    }

    /// Takes the answer apart; `None` when it is not one.
    pub(super) fn read(&self, answer: &Value) -> Option<Vec<Verdict>> {
        let Value::Array(numbers) = answer else { return None };
        let mut numbers = numbers.iter().map(|number| match number {
            Value::Int(number) => u64::try_from(*number).ok(),
            _ => None,
        });
        let _now = numbers.next()??;
        let mut verdicts = Vec::with_capacity(self.sizes.len());
        for size in &self.sizes {
            let admitted = numbers.next()?? == 1;
            let used = numbers.by_ref().take(*size).collect::<Option<Vec<u64>>>()?;
            if used.len() != *size {
                return None;
            }
            verdicts.push(Verdict { admitted, used });
        }
        Some(verdicts)
    }
}

/// An id is a hash already.
#[derive(Default)]
pub(super) struct Id(u64);

impl Hasher for Id {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {
        unreachable!("an id writes one u128");
    }
    #[allow(clippy::cast_possible_truncation)] // half of a hash is a hash
    fn write_u128(&mut self, id: u128) {
        self.0 = id as u64;
    }
}

/// The head of a MessagePack array: https://github.com/msgpack/msgpack/blob/master/spec.md
fn array(length: usize, out: &mut Vec<u8>) {
    let length = u32::try_from(length).expect("a batch is bounded");
    out.push(0xdd);
    out.extend_from_slice(&length.to_be_bytes());
}

/// A MessagePack unsigned integer, as short as it can be.
fn integer(number: u64, out: &mut Vec<u8>) {
    let bytes = number.to_be_bytes();
    match number {
        0..0x80 => out.push(bytes[7]),
        0x80..0x100 => out.extend_from_slice(&[0xcc, bytes[7]]),
        0x100..0x1_0000 => out.extend_from_slice(&[0xcd, bytes[6], bytes[7]]),
        0x1_0000..0x1_0000_0000 => {
            out.push(0xce);
            out.extend_from_slice(&bytes[4..]);
        }
        _ => {
            out.push(0xcf);
            out.extend_from_slice(&bytes);
        }
    }
}
