//! What a counter is called in Redis.
//!
//! `PREFIX{TAG}ID`. The id is a 128-bit BLAKE3 of tenant, rule and values, so a key says nothing of a user and is as short for
//! every caller. The tag, of which alone a Cluster computes the slot, is a 64-bit one of the tenant and the user; for a
//! rule that does not count users, of the tenant and its first key's value; for a gateway's descriptor, of its domain and
//! first entry. All rules of one user are so decided in one
//! step, on one node.
//!
//! The id knows a rule by its name: replicas with older and newer rules files agree about the rules that both have.

use crate::{gcra::Micros, rules::Counter, store::Check};

/// Slots of a Cluster: https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/
const SLOTS: u16 = 16_384;
/// The key of checks by which counters are kept together.
const USER: &str = "user";
/// What ids are hashed with. It is another letter whenever the layout of a counter's value (gcra.lua) is another one, so that
/// replicas of both versions never read each other's values: two doubles are as long as sixteen digits.
const LAYOUT: u8 = b'd';

/// A counter's name, without its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    tag: u64,
    pub(super) id: u128,
}

/// What a check costs a counter, and where that is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Charge {
    pub(super) key: Key,
    pub(super) quota: Micros,
    pub(super) hits: u32,
}

impl Key {
    fn of(tenant: &str, counter: &Counter<'_>) -> Self {
        let (keys, values) = (counter.rule.keys(), &counter.values);
        let value = |place: usize| values.get(place).copied().unwrap_or_default();
        let anchor = keys.iter().position(|key| key == USER).unwrap_or(0);
        let (name, value) = match keys.get(anchor) {
            Some(name) => (name.as_str(), value(anchor)),
            // A gateway's descriptor: its values are key, value, key, value.
            None => (value(0), value(1)),
        };
        let tag = hash(b't', [tenant, name, value].into_iter());
        let id =
            hash(LAYOUT, [tenant, counter.rule.name()].into_iter().chain(counter.values.iter().copied()));
        Self { tag: u64::from_le_bytes(first(&tag)), id: u128::from_le_bytes(first(&id)) }
    }

    /// Appends the key as Redis knows it.
    pub(super) fn write(&self, prefix: &str, out: &mut Vec<u8>) {
        out.extend_from_slice(prefix.as_bytes());
        out.push(b'{');
        write_hex(&self.tag.to_be_bytes(), out);
        out.push(b'}');
        write_hex(&self.id.to_be_bytes(), out);
    }

    /// The slot in a Cluster.
    pub(super) fn slot(&self) -> u16 {
        let mut tag = Vec::with_capacity(16);
        write_hex(&self.tag.to_be_bytes(), &mut tag);
        crc16(&tag) % SLOTS
    }
}

/// The charges of a check, in its order.
pub(super) fn charges(check: &Check<'_>) -> Vec<Charge> {
    let charge = |counter: &Counter<'_>| Charge {
        key: Key::of(check.tenant, counter),
        quota: counter.rule.quota().in_micros(),
        hits: counter.hits,
    };
    check.counters.iter().map(charge).collect()
}

/// Of texts, each after its length: ("a", "bc") and ("ab", "c") differ.
fn hash<'a>(kind: u8, texts: impl Iterator<Item = &'a str>) -> blake3::Hash {
    // On the stack for what callers usually send: one update costs more than copying the texts.
    let mut bytes = [0_u8; 256];
    let mut filled = 1;
    bytes[0] = kind;
    let mut hasher = None;
    for text in texts {
        for part in [&(text.len() as u32).to_le_bytes()[..], text.as_bytes()] {
            if hasher.is_none() && filled + part.len() <= bytes.len() {
                bytes[filled..filled + part.len()].copy_from_slice(part);
                filled += part.len();
            } else {
                let hasher = hasher.get_or_insert_with(|| {
                    let mut hasher = blake3::Hasher::new();
                    hasher.update(&bytes[..filled]);
                    hasher
                });
                hasher.update(part);
            }
        }
    }
    hasher.map_or_else(|| blake3::hash(&bytes[..filled]), |hasher| hasher.finalize())
}

fn first<const N: usize>(hash: &blake3::Hash) -> [u8; N] {
    hash.as_bytes()[..N].try_into().expect("a hash has 32 bytes")
}

fn write_hex(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        out.extend_from_slice(&[DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]);
    }
}

/// CRC-16/XMODEM, as the Cluster specification says.
fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(
            crc ^ u16::from(*byte) << 8,
            |crc, _| {
                if crc & 0x8000 == 0 { crc << 1 } else { crc << 1 ^ 0x1021 }
            },
        )
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::rules::RuleSet;

    fn keys_of(tenant: &str, values: &[(&str, &str)]) -> Vec<Key> {
        let rules = "[[rule]]\nname = \"a\"\nkeys = [\"user\"]\nlimit = 1\nper = \"1s\"\nburst = 1\n\
                     [[rule]]\nname = \"b\"\nkeys = [\"device\", \"user\"]\nlimit = 1\nper = \"1s\"\nburst = 1\n\
                     [[rule]]\nname = \"c\"\nkeys = [\"ip\"]\nlimit = 1\nper = \"1s\"\nburst = 1\n";
        let rules = RuleSet::parse("test", rules).unwrap();
        let values: HashMap<_, _> =
            values.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let counters = rules.applying(tenant, &values, 1);
        charges(&Check { tenant, counters }).iter().map(|charge| charge.key).collect()
    }

    #[test]
    fn a_users_counters_share_a_slot_and_no_name() {
        let keys = keys_of("acme", &[("user", "ada"), ("device", "d"), ("ip", "::1")]);
        assert_eq!(keys[0].slot(), keys[1].slot());
        assert_ne!(keys[0].id, keys[1].id);
        assert_ne!(keys[0].tag, keys[2].tag);
        assert_ne!(keys_of("acme", &[("user", "bob")])[0].tag, keys[0].tag);
        assert_ne!(keys_of("emca", &[("user", "ada")])[0].id, keys[0].id);
        assert_ne!(keys_of("acm", &[("user", "eada")])[0].id, keys[0].id, "texts are not glued together");
        let mut text = Vec::new();
        keys[0].write("p:", &mut text);
        let text = String::from_utf8(text).unwrap();
        assert!(text.starts_with("p:{") && text.len() == 2 + 18 + 32 && !text.contains("ada"), "{text}");
    }

    #[test]
    fn names_are_the_same_in_every_process_and_version() {
        let key = keys_of("acme", &[("user", "ada")])[0];
        let long = "u".repeat(1000);
        let longer = keys_of(&long, &[("user", &long)])[0];
        // Written down once: a replica that named them otherwise would count by itself.
        assert_eq!(format!("{:016x} {:032x}", key.tag, key.id), PINNED);
        assert_ne!(longer.id, keys_of(&long, &[("user", &long[1..])])[0].id);
    }

    const PINNED: &str = "c9223a7e89a33044 d3c85a332b956a0856025a3cf943aa56";

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(crc16(b"123456789"), 0x31C3);
        assert_eq!(crc16(b"foo") % SLOTS, 12_182, "as CLUSTER KEYSLOT foo says");
    }
}
