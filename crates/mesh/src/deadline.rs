//! How long the caller still waits.

use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use tokio::time::Instant;
use tonic::metadata::MetadataMap;

use crate::{RpcError, names::GRPC_TIMEOUT};

/// The point in time after which nobody reads the answer.
///
/// Read from the `grpc-timeout` header (gRPC over HTTP/2 specification) less [`Deadline::RETURN_MARGIN`], so that our
/// own answer with its reason reaches the caller before the caller's library gives up by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Deadline(Instant);

impl Deadline {
    /// What is kept back for the answer's way home: 10 ms, at most a tenth of the time given.
    pub const RETURN_MARGIN: Duration = Duration::from_millis(10);

    /// So long from now; 30 years for what is longer than the clock can count.
    pub fn after(timeout: Duration) -> Self {
        const LONGEST: Duration = Duration::from_secs(30 * 365 * 24 * 3600);
        let now = Instant::now();
        Self(now.checked_add(timeout).unwrap_or_else(|| now + LONGEST))
    }

    /// The caller's deadline, or `longest` from now if it gave none or a later one.
    pub fn from_metadata(metadata: &MetadataMap, longest: Duration) -> Self {
        match Self::timeout_in(metadata.as_ref()) {
            Some(asked) if asked < longest => {
                Self::after(asked.saturating_sub(Self::RETURN_MARGIN.min(asked / 10)))
            }
            _ => Self::after(longest),
        }
    }

    /// The caller's deadline, if it gave one, less [`Deadline::RETURN_MARGIN`].
    pub fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let asked = Self::timeout_in(headers)?;
        Some(Self::after(asked.saturating_sub(Self::RETURN_MARGIN.min(asked / 10))))
    }

    /// What `grpc-timeout` says.
    pub(crate) fn timeout_in(headers: &HeaderMap) -> Option<Duration> {
        headers.get(&GRPC_TIMEOUT)?.to_str().ok().and_then(parse_timeout)
    }

    /// What is left, as `grpc-timeout` says it to the next hop.
    pub fn header(self) -> HeaderValue {
        write_timeout(self.remaining())
    }

    /// What is left; zero when it has passed.
    pub fn remaining(self) -> Duration {
        self.0.saturating_duration_since(Instant::now())
    }

    /// Whether it has passed.
    pub fn passed(self) -> bool {
        self.remaining().is_zero()
    }

    /// As an instant of tokio's clock.
    pub fn instant(self) -> Instant {
        self.0
    }

    /// The earlier of two.
    #[must_use]
    pub fn min(self, other: Self) -> Self {
        Self(self.0.min(other.0))
    }

    /// Waits for `work` no longer than this.
    ///
    /// # Errors
    /// `DEADLINE_EXCEEDED` naming `stage`. A deadline already passed gives the error without starting the work.
    pub async fn bound<F: Future>(self, stage: &str, work: F) -> Result<F::Output, RpcError> {
        if self.passed() {
            return Err(RpcError::deadline(stage));
        }
        tokio::time::timeout_at(self.0, work).await.map_err(|_| RpcError::deadline(stage))
    }
}

/// In the smallest unit from microseconds that eight digits can hold; never 0, which the specification does not allow.
fn write_timeout(left: Duration) -> HeaderValue {
    const EIGHT_DIGITS: u128 = 99_999_999;
    let (micros, millis) = (left.as_micros().max(1), left.as_millis());
    let text = if micros <= EIGHT_DIGITS {
        format!("{micros}u")
    } else if millis <= EIGHT_DIGITS {
        format!("{millis}m")
    } else {
        format!("{}S", u128::from(left.as_secs()).min(EIGHT_DIGITS))
    };
    let mut value = HeaderValue::try_from(text).expect("digits and a letter");
    never_indexed(&mut value);
    value
}

/// For a value that is another in each call: HPACK is not to put it into its table, where it would push out what is the
/// same in all of them (RFC 7541, section 7.1.3; h2 does so for what is marked as sensitive).
pub(crate) fn never_indexed(value: &mut HeaderValue) {
    value.set_sensitive(true);
}

/// `TimeoutValue TimeoutUnit`: at most eight digits and one of H, M, S, m, u, n.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_the_specification_says() {
        for (text, expected) in [
            ("1H", Some(Duration::from_secs(3600))),
            ("250m", Some(Duration::from_millis(250))),
            ("99999999n", Some(Duration::from_nanos(99_999_999))),
            ("999999999n", None),
            ("5", None),
            ("", None),
            ("-5S", None),
        ] {
            assert_eq!(parse_timeout(text), expected, "{text}");
        }
    }

    #[test]
    fn timeouts_are_written_in_eight_digits_and_rounded_down() {
        for (left, expected) in [
            (Duration::ZERO, "1u"),
            (Duration::from_nanos(1_999), "1u"),
            (Duration::from_millis(250), "250000u"),
            (Duration::from_secs(100), "100000m"),
            (Duration::from_secs(200_000), "200000S"),
            (Duration::MAX, "99999999S"),
        ] {
            let written = write_timeout(left);
            assert_eq!(written, expected);
            let read = parse_timeout(written.to_str().unwrap()).unwrap();
            assert!(read <= left.max(Duration::from_micros(1)));
        }
    }

    #[test]
    fn a_time_beyond_the_clock_is_as_good_as_never() {
        let left = Deadline::after(Duration::MAX).remaining();
        assert!(left > Duration::from_secs(29 * 365 * 24 * 3600), "{left:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn work_is_not_started_after_the_deadline() {
        let deadline = Deadline::after(Duration::from_millis(10));
        assert!(deadline.bound("waiting", async { 5 }).await.is_ok());
        tokio::time::advance(Duration::from_millis(11)).await;
        let error = deadline.bound("waiting", async { panic!("started") }).await.unwrap_err();
        assert_eq!(error.reason, crate::reason::DEADLINE_EXCEEDED);
    }
}
