//! CPU time, from /proc: steadier than throughput on a machine that is not ours alone.

use std::{collections::BTreeMap, fs, time::Duration};

/// The unit of times in /proc: fixed at 100 a second towards user space on every Linux.
const TICK: Duration = Duration::from_millis(10);

/// Of one process and its children, living and reaped.
pub fn of_tree(process: u32) -> Duration {
    let (ticks, _) = stat(process).unwrap_or_default();
    // Workers of a master are few: one look through /proc is cheap enough.
    let children = processes().filter(|child| stat(*child).is_some_and(|(_, parent)| parent == process));
    children.map(of_tree).fold(TICK * ticks, |sum, child| sum + child)
}

/// Of this process.
pub fn own() -> Duration {
    TICK * stat(std::process::id()).unwrap_or_default().0
}

/// Of everything on the machine that did something.
pub fn machine() -> Duration {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let first = text.lines().next().unwrap_or_default();
    let ticks: Vec<u32> = first.split_whitespace().skip(1).filter_map(|word| word.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal: all but the two of waiting.
    ticks
        .iter()
        .take(8)
        .enumerate()
        .filter(|(at, _)| *at != 3 && *at != 4)
        .map(|(_, ticks)| TICK * *ticks)
        .sum()
}

/// Of each thread's name in a process; threads that ended are not there.
pub fn by_thread(process: u32) -> BTreeMap<String, Duration> {
    let mut times = BTreeMap::new();
    let Ok(tasks) = fs::read_dir(format!("/proc/{process}/task")) else { return times };
    for task in tasks.filter_map(Result::ok) {
        let read = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
        let nanoseconds = read("schedstat").split_whitespace().next().and_then(|word| word.parse().ok());
        let name = read("comm").trim().to_owned();
        *times.entry(name).or_default() += Duration::from_nanos(nanoseconds.unwrap_or_default());
    }
    times
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Ticks of a process and its reaped children, and its parent; see proc_pid_stat(5).
fn stat(process: u32) -> Option<(u32, u32)> {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name in parentheses may hold spaces; the numbers come after the last parenthesis.
    let words: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| words.get(at)?.parse::<u32>().ok();
    // Counted from the state, which is field 3 of the manual: utime 14, stime 15, cutime 16, cstime 17, ppid 4.
    Some(((11..15).filter_map(number).sum(), number(1)?))
}
