//! `Query` between the wire and the store.

use prost_types::Timestamp;
use sightline_mesh::auth::Claims;
use sightline_proto::stats::{self as proto, GroupBy, QueryRequest, QueryResponse};

use crate::{
    error::StatsError,
    intake::{check_level, check_name, check_tenant},
    page_token::{self, Fingerprint},
    store::{Bucket, Group, Hour, Key, Page, Query, Row},
};

/// Rows per page when the caller does not say.
const DEFAULT_PAGE_SIZE: u32 = 1_000;
/// Rows per page at most.
pub const MAX_PAGE_SIZE: u32 = 10_000;
/// Values in one filter at most: more is a job for `group_by`.
pub const MAX_FILTER_VALUES: usize = 1_000;

/// Checks a request of the bearer of `claims`.
pub(crate) fn check(
    request: QueryRequest,
    claims: Option<&Claims>,
) -> Result<(Query, Fingerprint), StatsError> {
    let fingerprint = Fingerprint::of(&request);
    check_tenant(&request.tenant, claims, || "tenant".into())?;
    check_name(&request.tenant, || "tenant".into())?;
    check_names("user_ids", &request.user_ids)?;
    check_names("applications", &request.applications)?;
    if request.page_size > MAX_PAGE_SIZE {
        return Err(StatsError::PageSize { size: request.page_size, limit: MAX_PAGE_SIZE });
    }
    let page_size = if request.page_size == 0 { DEFAULT_PAGE_SIZE } else { request.page_size };
    let mut query = Query {
        from: request.from.map(|from| hour("from", from, 0)).transpose()?,
        to: request.to.map(|to| hour("to", to, 1)).transpose()?,
        bucket: bucket(request.bucket)?,
        groups: groups(&request.group_by)?,
        levels: levels(&request.levels)?,
        tenant: request.tenant,
        users: request.user_ids,
        applications: request.applications,
        limit: page_size as usize,
        after: None,
    };
    if matches!((query.from, query.to), (Some(from), Some(to)) if from >= to) {
        return Err(StatsError::TimeRange);
    }
    if !request.page_token.is_empty() {
        query.after = Some(page_token::decode(&request.page_token, fingerprint, &query)?);
    }
    Ok((query, fingerprint))
}

fn check_names(field: &'static str, names: &[String]) -> Result<(), StatsError> {
    check_count(field, names.len())?;
    names.iter().enumerate().try_for_each(|(index, name)| check_name(name, || format!("{field}[{index}]")))
}

fn check_count(field: &'static str, count: usize) -> Result<(), StatsError> {
    if count > MAX_FILTER_VALUES {
        return Err(StatsError::Filter { field, count, limit: MAX_FILTER_VALUES });
    }
    Ok(())
}

/// The hour of a time; a time within it gives the hour `within` later: 0 rounds down, 1 rounds up.
fn hour(field: &'static str, time: Timestamp, within: i64) -> Result<Hour, StatsError> {
    if time.seconds < 0 || !(0..1_000_000_000).contains(&time.nanos) {
        return Err(StatsError::Time { field });
    }
    let hour = Hour::from_seconds(time.seconds);
    let whole = time.seconds == hour.seconds() && time.nanos == 0;
    Ok(if whole { hour } else { Hour(hour.0 + within) })
}

fn bucket(number: i32) -> Result<Option<Bucket>, StatsError> {
    match proto::Bucket::try_from(number) {
        Ok(proto::Bucket::Unspecified) => Ok(None),
        Ok(proto::Bucket::Hour) => Ok(Some(Bucket::Hour)),
        Ok(proto::Bucket::Day) => Ok(Some(Bucket::Day)),
        Err(_) => Err(StatsError::Bucket(number)),
    }
}

/// In the order asked for; asking twice changes nothing.
fn groups(numbers: &[i32]) -> Result<Vec<Group>, StatsError> {
    let mut groups = Vec::new();
    for (index, &number) in numbers.iter().enumerate() {
        let group = match GroupBy::try_from(number) {
            Ok(GroupBy::User) => Group::User,
            Ok(GroupBy::Application) => Group::Application,
            Ok(GroupBy::Level) => Group::Level,
            Ok(GroupBy::Source) => Group::Source,
            Ok(GroupBy::Unspecified) | Err(_) => return Err(StatsError::GroupBy { index, group: number }),
        };
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    Ok(groups)
}

fn levels(numbers: &[i32]) -> Result<Vec<u8>, StatsError> {
    check_count("levels", numbers.len())?;
    let check = |(index, &level)| check_level(level).ok_or(StatsError::Level { index, level });
    numbers.iter().enumerate().map(check).collect()
}

/// A page as the answer to `query`.
pub(crate) fn answer(page: Page, query: &Query, fingerprint: Fingerprint) -> QueryResponse {
    let next_page_token = match page.rows.last() {
        Some(last) if page.more => page_token::encode(fingerprint, &last.key),
        _ => String::new(),
    };
    let rows = page.rows.into_iter().map(|found| row(found, query)).collect();
    QueryResponse { rows, next_page_token }
}

fn row(found: Row, query: &Query) -> proto::Row {
    let mut row = proto::Row { frames: found.frames, ..proto::Row::default() };
    let mut key = found.key.into_iter();
    if query.bucket.is_some()
        && let Some(Key::Number(hour)) = key.next()
    {
        row.bucket_start = Some(Timestamp { seconds: Hour(hour).seconds(), nanos: 0 });
    }
    for (group, key) in query.groups.iter().zip(key) {
        match (group, key) {
            (Group::User, Key::Text(user)) => row.user_id = user,
            (Group::Application, Key::Text(application)) => row.application = application,
            (Group::Level, Key::Number(level)) => row.level = i32::try_from(level).unwrap_or_default(),
            (Group::Source, Key::Number(source)) => row.source = i32::try_from(source).unwrap_or_default(),
            (Group::User | Group::Application, Key::Number(_)) | (_, Key::Text(_)) => {
                unreachable!(
                    "users and applications are texts in every store, levels and sources are numbers"
                )
            }
        }
    }
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_is_widened_to_whole_hours() {
        let range = |from: (i64, i32), to: (i64, i32)| {
            let time = |(seconds, nanos)| Some(Timestamp { seconds, nanos });
            let request = QueryRequest { from: time(from), to: time(to), ..QueryRequest::default() };
            check(request, None).map(|(query, _)| (query.from.unwrap().0, query.to.unwrap().0)).ok()
        };
        assert_eq!(range((7200, 0), (10_800, 0)), Some((2, 3)));
        assert_eq!(range((7201, 0), (7202, 0)), Some((2, 3)));
        assert_eq!(range((7200, 1), (10_800, 1)), Some((2, 4)));
        assert_eq!(range((7200, 0), (7200, 0)), None);
        assert_eq!(range((0, 0), (i64::MAX, 0)), Some((0, i64::MAX / 3600 + 1)));
    }
}
