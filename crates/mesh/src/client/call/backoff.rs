//! How long to wait before the next attempt.

use std::time::Duration;

use http::HeaderMap;

/// A server's word on retries, in milliseconds; a negative number forbids them (gRFC A6).
pub(crate) const PUSHBACK: &str = "grpc-retry-pushback-ms";

/// The pause before a retry that the server said nothing about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The longest first pause: 25 ms. The next is at most twice as long, and so on.
    pub first: Duration,
    /// The longest of all: 1 s.
    pub longest: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { first: Duration::from_millis(25), longest: Duration::from_secs(1) }
    }
}

impl Backoff {
    /// Before retry number `retry`, counted from 1: a random time between half of the longest and the longest, so that
    /// calls that failed together do not come back together. `chance` is evenly from 0 to 1.
    pub fn pause(self, retry: u32, chance: f64) -> Duration {
        let doubled =
            self.first.saturating_mul(1u32.checked_shl(retry.saturating_sub(1)).unwrap_or(u32::MAX));
        doubled.min(self.longest).mul_f64(0.5 + chance / 2.0)
    }
}

/// What the server said of another try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pushback {
    /// Nothing.
    Unsaid,
    /// Not before so long.
    After(Duration),
    /// Not at all.
    Never,
}

impl Pushback {
    /// From the head or the trailers of an answer. A value that is no number forbids retries, as A6 says.
    pub(crate) fn read(headers: &HeaderMap) -> Self {
        let Some(value) = headers.get(PUSHBACK) else { return Self::Unsaid };
        match value.to_str().ok().and_then(|text| text.trim().parse::<i64>().ok()) {
            Some(milliseconds) => {
                u64::try_from(milliseconds).map_or(Self::Never, |ms| Self::After(Duration::from_millis(ms)))
            }
            None => Self::Never,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_to_a_bound_and_vary_by_half() {
        let backoff = Backoff::default();
        for (retry, longest) in
            [(1, 25), (2, 50), (3, 100), (6, 800), (7, 1000), (40, 1000), (u32::MAX, 1000)]
        {
            let longest = Duration::from_millis(longest);
            assert_eq!(backoff.pause(retry, 1.0), longest, "{retry}");
            assert_eq!(backoff.pause(retry, 0.0), longest / 2, "{retry}");
        }
    }

    #[test]
    fn a_servers_word_is_read_as_a6_says() {
        for (text, expected) in [
            (None, Pushback::Unsaid),
            (Some("0"), Pushback::After(Duration::ZERO)),
            (Some("250"), Pushback::After(Duration::from_millis(250))),
            (Some("-1"), Pushback::Never),
            (Some("soon"), Pushback::Never),
            (Some(""), Pushback::Never),
        ] {
            let mut headers = HeaderMap::new();
            if let Some(text) = text {
                headers.insert(PUSHBACK, text.parse().unwrap());
            }
            assert_eq!(Pushback::read(&headers), expected, "{text:?}");
        }
    }
}
