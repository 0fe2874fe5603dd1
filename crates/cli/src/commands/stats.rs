//! `sightline stats query`.

use std::{process::ExitCode, time::SystemTime};

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use sightline_proto::{
    stats::{
        Bucket as WireBucket, GroupBy as WireGroupBy, QueryRequest, Row,
        stats_service_client::StatsServiceClient,
    },
    verdict::Level,
};

use crate::{
    args::{Bucket, GroupBy, Stats, StatsQuery},
    connect::{Connection, explain},
    output,
};

pub(crate) async fn run(command: Stats) -> Result<ExitCode> {
    let Stats::Query(query) = command;
    let connection = Connection::open("stats", &query.endpoint, &query.remote).await?;
    let mut client = StatsServiceClient::new(connection.channel.clone());
    let mut request = request(&query)?;
    let mut rows = Vec::new();
    loop {
        let answer = client.query(connection.request(request.clone())?).await;
        let page = answer.map_err(|status| explain(&status))?.into_inner();
        for row in page.rows {
            match query.json {
                // Line by line: a long answer need not fit in memory.
                true => output::line(&json_of(&row, &query).to_string())?,
                false => rows.push(cells(&row, &query)),
            }
        }
        if page.next_page_token.is_empty() {
            break;
        }
        request.page_token = page.next_page_token;
    }
    if !query.json {
        let head: Vec<&str> = columns(&query).chain(["frames"]).collect();
        output::table(&head, &rows, &[head.len() - 1])?;
    }
    Ok(ExitCode::SUCCESS)
}

fn request(query: &StatsQuery) -> Result<QueryRequest> {
    let level = |name: &String| {
        Level::parse(name).map(i32::from).with_context(|| {
            format!("--level {name:?}: the levels are none, mild, suggestive, explicit and severe")
        })
    };
    Ok(QueryRequest {
        tenant: query.tenant.clone(),
        from: query.from.map(|time| SystemTime::from(time).into()),
        to: query.to.map(|time| SystemTime::from(time).into()),
        bucket: match query.bucket {
            None => WireBucket::Unspecified,
            Some(Bucket::Hour) => WireBucket::Hour,
            Some(Bucket::Day) => WireBucket::Day,
        }
        .into(),
        group_by: query
            .by
            .iter()
            .map(|by| match by {
                GroupBy::User => WireGroupBy::User.into(),
                GroupBy::Application => WireGroupBy::Application.into(),
                GroupBy::Level => WireGroupBy::Level.into(),
                GroupBy::Source => WireGroupBy::Source.into(),
            })
            .collect(),
        user_ids: query.user.clone(),
        applications: query.application.clone(),
        levels: query.level.iter().map(level).collect::<Result<_>>()?,
        page_size: 0,
        page_token: String::new(),
    })
}

fn columns(query: &StatsQuery) -> impl Iterator<Item = &'static str> {
    let bucket = query.bucket.map(|bucket| match bucket {
        Bucket::Hour => "hour",
        Bucket::Day => "day",
    });
    bucket.into_iter().chain(query.by.iter().map(|by| match by {
        GroupBy::User => "user",
        GroupBy::Application => "application",
        GroupBy::Level => "level",
        GroupBy::Source => "source",
    }))
}

fn cells(row: &Row, query: &StatsQuery) -> Vec<String> {
    let mut cells: Vec<String> = columns(query)
        .map(|column| match column {
            "hour" | "day" => bucket_start(row),
            "user" => row.user_id.clone(),
            "application" => row.application.clone(),
            "level" => row.level().short_name().into(),
            _ => row.source().short_name().into(),
        })
        .collect();
    cells.push(row.frames.to_string());
    cells
}

fn json_of(row: &Row, query: &StatsQuery) -> Value {
    let texts = cells(row, query);
    let mut object: Map<String, Value> =
        columns(query).map(str::to_owned).zip(texts.into_iter().map(Value::from)).collect();
    object.insert("frames".into(), json!(row.frames));
    object.into()
}

fn bucket_start(row: &Row) -> String {
    let start = row.bucket_start.and_then(|stamp| SystemTime::try_from(stamp).ok());
    start.map_or(String::new(), |time| humantime::format_rfc3339_seconds(time).to_string())
}
