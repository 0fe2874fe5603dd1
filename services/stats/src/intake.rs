//! Checks the events of a batch and makes them the store's. One bad event refuses its batch.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prost_types::Timestamp;
use sightline_mesh::auth::Claims;
use sightline_proto::{stats as proto, verdict::Level};
use uuid::Uuid;

use crate::{
    config::StatsConfig,
    error::StatsError,
    store::{Event, Hour},
};

/// The longest name (tenant, user, application, device), in characters.
pub const MAX_NAME_CHARS: usize = 128;
/// The longest model, in characters: "name@version" is longer than either.
const MAX_MODEL_CHARS: usize = 160;
/// How far a sender's clock may be ahead.
const MAX_AHEAD: Duration = Duration::from_secs(3600);
/// Sources are not checked against those known here: during an upgrade a newer ingest may know more.
const MAX_SOURCE: i32 = 63;

/// What a batch must keep to.
#[derive(Debug, Clone)]
pub(crate) struct Intake {
    max_batch_events: usize,
    dedupe_window: Duration,
}

impl Intake {
    pub(crate) fn new(config: &StatsConfig) -> Self {
        Self { max_batch_events: config.max_batch_events, dedupe_window: config.dedupe_window.0 }
    }

    /// Checks a batch that arrived at `now` from the bearer of `claims`.
    pub(crate) fn check(
        &self,
        events: Vec<proto::Event>,
        claims: Option<&Claims>,
        now: SystemTime,
    ) -> Result<Vec<Event>, StatsError> {
        if events.len() > self.max_batch_events {
            return Err(StatsError::BatchTooLarge { count: events.len(), limit: self.max_batch_events });
        }
        let times = Times::new(now, self.dedupe_window);
        events.into_iter().enumerate().map(|(index, event)| check(index, event, claims, &times)).collect()
    }
}

/// Seconds since the epoch between which an event may have happened.
struct Times {
    oldest: Hour,
    latest_second: i64,
}

impl Times {
    fn new(now: SystemTime, window: Duration) -> Self {
        let latest = now + MAX_AHEAD;
        Self { oldest: oldest_hour(now, window), latest_second: seconds(latest) }
    }
}

/// The first hour of which events are taken.
pub(crate) fn oldest_hour(now: SystemTime, window: Duration) -> Hour {
    Hour::from_seconds(seconds(now).saturating_sub_unsigned(window.as_secs()).max(0))
}

fn seconds(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |since| i64::try_from(since.as_secs()).unwrap_or(i64::MAX))
}

fn check(
    index: usize,
    event: proto::Event,
    claims: Option<&Claims>,
    times: &Times,
) -> Result<Event, StatsError> {
    let id = Uuid::try_parse(&event.event_id).ok().filter(|id| !id.is_nil());
    let id = id.ok_or(StatsError::EventId { index })?;
    for (name, text, limit) in [
        ("tenant", &event.tenant, MAX_NAME_CHARS),
        ("user_id", &event.user_id, MAX_NAME_CHARS),
        ("application", &event.application, MAX_NAME_CHARS),
        ("device_id", &event.device_id, MAX_NAME_CHARS),
        ("model", &event.model, MAX_MODEL_CHARS),
    ] {
        check_length(text, limit, || format!("events[{index}].{name}"))?;
    }
    if event.user_id.is_empty() {
        return Err(StatsError::EventUser { index });
    }
    let field = || format!("events[{index}].tenant");
    check_tenant(&event.tenant, claims, field)?;
    let level = check_level(event.level).ok_or(StatsError::EventLevel { index, level: event.level })?;
    let source = u8::try_from(event.source).ok().filter(|_| (1..=MAX_SOURCE).contains(&event.source));
    let source = source.ok_or(StatsError::EventSource { index, source_number: event.source })?;
    let hour = check_time(index, event.occurred_at, times)?;
    Ok(Event {
        id,
        hour,
        tenant: event.tenant,
        user: event.user_id,
        application: event.application,
        level,
        source,
    })
}

fn check_time(index: usize, time: Option<Timestamp>, times: &Times) -> Result<Hour, StatsError> {
    let bad = |problem| StatsError::EventTime { index, problem };
    let time = time.ok_or(bad("is unset"))?;
    if !(0..1_000_000_000).contains(&time.nanos) || time.seconds < 0 {
        return Err(bad("is not a valid timestamp after 1970"));
    }
    if time.seconds > times.latest_second {
        return Err(bad("lies more than an hour in the future"));
    }
    let hour = Hour::from_seconds(time.seconds);
    if hour < times.oldest { Err(StatsError::EventTooOld { index }) } else { Ok(hour) }
}

/// Refuses a name that is too long.
pub(crate) fn check_name(text: &str, field: impl FnOnce() -> String) -> Result<(), StatsError> {
    check_length(text, MAX_NAME_CHARS, field)
}

fn check_length(text: &str, limit: usize, field: impl FnOnce() -> String) -> Result<(), StatsError> {
    // Bytes are at least as many as characters: counting is only for the rare case.
    if text.len() > limit {
        let chars = text.chars().count();
        if chars > limit {
            return Err(StatsError::FieldTooLong { field: field(), chars, limit });
        }
    }
    Ok(())
}

/// A token of a tenant reaches that tenant only; one without a tenant is the installation's own.
pub(crate) fn check_tenant(
    tenant: &str,
    claims: Option<&Claims>,
    field: impl FnOnce() -> String,
) -> Result<(), StatsError> {
    match claims {
        Some(claims) if !claims.tenant.is_empty() && claims.tenant != tenant => {
            Err(StatsError::Tenant { field: field() })
        }
        _ => Ok(()),
    }
}

/// The number of a level, if it is one.
pub(crate) fn check_level(level: i32) -> Option<u8> {
    match Level::try_from(level) {
        Ok(Level::Unspecified) | Err(_) => None,
        Ok(known) => u8::try_from(known as i32).ok(),
    }
}

#[cfg(test)]
mod tests {
    use sightline_config::HumanDuration;

    use super::*;

    const DAY: i64 = 24 * 3600;
    const NOW: i64 = 1_800_000_000;

    fn check_one(event: proto::Event) -> Result<Event, String> {
        let window = HumanDuration::from_secs(7 * 24 * 3600);
        let intake = Intake::new(&StatsConfig { dedupe_window: window, ..StatsConfig::default() });
        let now = UNIX_EPOCH + Duration::from_secs(NOW.unsigned_abs());
        let events = intake.check(vec![event], None, now).map_err(|error| error.to_string())?;
        Ok(events.into_iter().next().unwrap())
    }

    fn event_at(seconds: i64) -> proto::Event {
        proto::Event {
            event_id: "018f2a6e-7c1d-7000-8000-000000000001".into(),
            occurred_at: Some(Timestamp { seconds, nanos: 0 }),
            user_id: "u".into(),
            level: Level::Mild as i32,
            source: 1,
            ..proto::Event::default()
        }
    }

    #[test]
    fn events_are_taken_as_long_as_their_ids_are_remembered() {
        assert_eq!(check_one(event_at(NOW)).unwrap().hour, Hour(NOW / 3600));
        assert!(check_one(event_at(NOW - 7 * DAY)).is_ok());
        assert!(check_one(event_at(NOW - 7 * DAY - 3600)).unwrap_err().contains("`stats.dedupe_window`"));
        assert!(check_one(event_at(NOW + 3600)).is_ok());
        assert!(check_one(event_at(NOW + 3601)).unwrap_err().contains("in the future"));
        for absurd in [-1, i64::MIN, i64::MAX] {
            assert!(
                check_one(event_at(absurd)).unwrap_err().starts_with("events[0].occurred_at"),
                "{absurd}"
            );
        }
    }

    #[test]
    fn names_are_measured_in_characters() {
        assert!(check_one(proto::Event { user_id: "ü".repeat(128), ..event_at(NOW) }).is_ok());
        assert_eq!(
            check_one(proto::Event { user_id: "ü".repeat(129), ..event_at(NOW) }).unwrap_err(),
            "events[0].user_id has 129 characters; at most 128 are allowed"
        );
        assert!(check_one(proto::Event { model: "m".repeat(160), ..event_at(NOW) }).is_ok());
        assert_eq!(
            check_one(proto::Event { model: "m".repeat(161), ..event_at(NOW) }).unwrap_err(),
            "events[0].model has 161 characters; at most 160 are allowed"
        );
    }

    #[test]
    fn a_source_that_only_a_newer_ingest_knows_is_counted() {
        assert_eq!(check_one(proto::Event { source: 4, ..event_at(NOW) }).unwrap().source, 4);
        assert!(check_one(proto::Event { source: 0, ..event_at(NOW) }).is_err());
        assert!(check_one(proto::Event { source: -1, ..event_at(NOW) }).is_err());
    }

    #[test]
    fn a_tenants_token_reaches_no_other_tenant() {
        let claims =
            |tenant: &str| Claims { sub: String::new(), tenant: tenant.into(), scope: String::new() };
        let check =
            |tenant, claims: Option<Claims>| check_tenant(tenant, claims.as_ref(), || "tenant".into());
        assert!(check("a", None).is_ok());
        assert!(check("a", Some(claims(""))).is_ok());
        assert!(check("a", Some(claims("a"))).is_ok());
        assert!(check("b", Some(claims("a"))).is_err());
        assert!(check("", Some(claims("a"))).is_err());
    }
}
