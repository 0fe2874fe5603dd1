//! Values that carry their unit.

use std::{fmt, net::SocketAddr, ops::Deref, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A length of time, written `"250ms"`, `"5s"` or `"1m 30s"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HumanDuration(pub Duration);

impl HumanDuration {
    /// So many seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// So many milliseconds.
    pub const fn from_millis(milliseconds: u64) -> Self {
        Self(Duration::from_millis(milliseconds))
    }
}

impl Deref for HumanDuration {
    type Target = Duration;
    fn deref(&self) -> &Duration {
        &self.0
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

impl FromStr for HumanDuration {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text)
            .map(Self)
            .map_err(|_| format!("{text:?} is not a duration such as \"5s\" or \"1m 30s\""))
    }
}

/// A number of bytes, written `"10MB"` (powers of 1,000), `"64KiB"` (powers of 1,024), `"4096B"` or plainly `4096`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// So many megabytes of 1,000,000 bytes.
    pub const fn mb(count: u64) -> Self {
        Self(count * 1_000_000)
    }

    /// So many mebibytes of 1,048,576 bytes.
    pub const fn mib(count: u64) -> Self {
        Self(count << 20)
    }

    /// As a length in memory.
    pub fn bytes(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// Printed with the first unit that divides the number.
const UNITS: [(&str, u64); 7] = [
    ("GiB", 1 << 30),
    ("GB", 1_000_000_000),
    ("MiB", 1 << 20),
    ("MB", 1_000_000),
    ("KiB", 1 << 10),
    ("kB", 1_000),
    ("B", 1),
];

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let divides = |(_, bytes): &&(&str, u64)| self.0 >= *bytes && self.0.is_multiple_of(*bytes);
        let (unit, bytes) = UNITS.iter().find(divides).unwrap_or(&("B", 1));
        write!(f, "{}{unit}", self.0 / bytes)
    }
}

impl FromStr for ByteSize {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a size such as \"10MB\" or \"64KiB\"");
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let unit = text[digits.len()..].trim();
        let number: u64 = digits.trim().parse().map_err(|_| bad())?;
        let bytes = match unit {
            "" => 1,
            unit => UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)).ok_or_else(bad)?.1,
        };
        number.checked_mul(bytes).map(Self).ok_or_else(bad)
    }
}

macro_rules! text_serde {
    ($type:ty, $number:expr) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Visitor;
                impl de::Visitor<'_> for Visitor {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str("a text with a unit")
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                    fn visit_u64<E: de::Error>(self, number: u64) -> Result<$type, E> {
                        $number(number).map_err(E::custom)
                    }
                    fn visit_i64<E: de::Error>(self, number: i64) -> Result<$type, E> {
                        let number = u64::try_from(number).map_err(|_| E::custom("must not be negative"))?;
                        self.visit_u64(number)
                    }
                }
                deserializer.deserialize_any(Visitor)
            }
        }
    };
}

text_serde!(HumanDuration, |number: u64| if number == 0 {
    Ok(HumanDuration::from_secs(0))
} else {
    Err(format!("{number} has no unit: write \"{number}s\" or \"{number}ms\""))
});
text_serde!(ByteSize, |number: u64| Ok::<_, String>(ByteSize(number)));

text_serde!(Listen, |number: u64| Err(format!(
    "{number} is neither an address such as \"127.0.0.1:7400\" nor \"off\""
)));

/// Where a server listens, or `"off"`: a key that can be turned off in every layer, which an unset one cannot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen(pub Option<SocketAddr>);

impl Listen {
    /// Nowhere.
    pub const OFF: Self = Self(None);

    /// On this address; port 0 is any free one.
    pub const fn at(address: SocketAddr) -> Self {
        Self(Some(address))
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => address.fmt(f),
            None => f.write_str("off"),
        }
    }
}

impl FromStr for Listen {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if text == "off" {
            return Ok(Self::OFF);
        }
        text.parse()
            .map(Self::at)
            .map_err(|_| format!("{text:?} is neither an address such as \"127.0.0.1:7400\" nor \"off\""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_and_print_with_their_unit() {
        for (text, bytes, printed) in [
            ("10MiB", 10 << 20, "10MiB"),
            ("64 kib", 64 << 10, "64KiB"),
            ("1500", 1500, "1500B"),
            ("10 MB", 10_000_000, "10MB"),
            ("0", 0, "0B"),
            ("2GiB", 2 << 30, "2GiB"),
        ] {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!((size.0, size.to_string().as_str()), (bytes, printed));
        }
        for text in ["", "MiB", "10 parsecs", "-1", "99999999999GiB"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
    }

    #[test]
    fn durations_read_and_print() {
        assert_eq!("1m 30s".parse::<HumanDuration>().unwrap().0, Duration::from_secs(90));
        assert_eq!(HumanDuration::from_millis(250).to_string(), "250ms");
        assert!("5".parse::<HumanDuration>().is_err());
    }
}
