//! `sightline limits check`.

use std::{collections::HashMap, process::ExitCode, time::Duration};

use anyhow::{Context, Result};
use serde_json::json;
use sightline_proto::ratelimiter::{
    CheckRequest, CheckResponse, RuleStatus, WhenAway, rate_limiter_service_client::RateLimiterServiceClient,
};

use crate::{
    args::Limits,
    connect::{Connection, explain},
    output,
};

pub(crate) async fn run(command: Limits) -> Result<ExitCode> {
    let Limits::Check { endpoint, tenant, hits, keys, json, remote } = command;
    let keys = keys
        .iter()
        .map(|key| {
            let (name, value) =
                key.split_once('=').with_context(|| format!("{key:?}: write it as user=ada"))?;
            Ok((name.to_owned(), value.to_owned()))
        })
        .collect::<Result<HashMap<_, _>>>()?;
    let connection = Connection::open("ratelimiter", &endpoint, &remote).await?;
    let mut client = RateLimiterServiceClient::new(connection.channel.clone());
    let answer = client.check(connection.request(CheckRequest { tenant, keys, hits })?).await;
    let response = answer.map_err(|status| explain(&status))?.into_inner();
    if json {
        as_json(&response)?;
    } else {
        as_table(&response)?;
    }
    Ok(if response.allowed { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn seconds(time: Option<prost_types::Duration>) -> f64 {
    time.and_then(|time| Duration::try_from(time).ok()).unwrap_or_default().as_secs_f64()
}

/// What the rule did without its shared counters, when it had to.
fn when_away(rule: &RuleStatus) -> Option<&'static str> {
    match rule.when_away() {
        WhenAway::Unspecified => None,
        WhenAway::Open => Some("open"),
        WhenAway::Closed => Some("closed"),
        WhenAway::LocalShare => Some("local_share"),
    }
}

fn as_json(response: &CheckResponse) -> Result<()> {
    let rules: Vec<_> = response
        .rules
        .iter()
        .map(|rule| {
            json!({
                "rule": rule.rule,
                "limit": rule.limit,
                "remaining": rule.remaining,
                "reset_after_seconds": seconds(rule.reset_after),
                "when_away": when_away(rule),
            })
        })
        .collect();
    let answer = json!({
        "allowed": response.allowed,
        "refused_by": response.refused_by,
        "retry_after_seconds": seconds(response.retry_after),
        "degraded": response.degraded,
        "rules": rules,
    });
    output::line(&answer.to_string())
}

fn as_table(response: &CheckResponse) -> Result<()> {
    match response.allowed {
        true => output::line("allowed")?,
        false => output::line(&format!(
            "refused by {}; retry after {:.3} s",
            response.refused_by,
            seconds(response.retry_after)
        ))?,
    }
    if response.degraded {
        let did =
            response.rules.iter().filter_map(|rule| Some(format!("{} {}", rule.rule, when_away(rule)?)));
        let did: Vec<_> = did.collect();
        output::line(&format!(
            "the shared counters are away; each rule did what it declares: {}",
            did.join(", ")
        ))?;
    }
    let rows: Vec<Vec<String>> = response
        .rules
        .iter()
        .map(|rule| {
            let reset = format!("{:.3} s", seconds(rule.reset_after));
            vec![rule.rule.clone(), rule.limit.to_string(), rule.remaining.to_string(), reset]
        })
        .collect();
    output::table(&["rule", "limit", "remaining", "reset after"], &rows, &[1, 2, 3])
}
