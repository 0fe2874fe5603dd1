//! How many replicas there are: each says in Redis that it is alive, and remembers how many did when Redis goes away.

use std::{
    sync::{
        Arc, Weak,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use rand::Rng;
use sightline_redis::{Link, Script, Value};
use tokio::time::MissedTickBehavior;

/// How often a replica says that it is alive.
const BEAT: Duration = Duration::from_secs(1);
/// One that missed three beats counts as gone.
const GONE_MS: u64 = 4000;

/// Keeps the number true for as long as somebody holds it. Called inside a tokio runtime.
pub(super) fn watch(link: Link, prefix: &str) -> Arc<AtomicU32> {
    let count = Arc::new(AtomicU32::new(1));
    let key = format!("{prefix}replicas");
    let name = format!("{:032x}", rand::rng().random::<u128>());
    tokio::spawn(beat(link, key, name, Arc::downgrade(&count)));
    count
}

async fn beat(link: Link, key: String, name: String, count: Weak<AtomicU32>) {
    let script = Script::new(include_str!("replicas.lua"));
    let mut ticks = tokio::time::interval(BEAT);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(count) = count.upgrade() else { return };
        let alive = link.script(&script, |cmd| {
            cmd.arg(1).arg(&key).arg(&name).arg(GONE_MS);
        });
        if let Ok(Value::Int(alive)) = alive.await {
            count.store(u32::try_from(alive).unwrap_or(1).max(1), Ordering::Relaxed);
        }
    }
}
