use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use super::*;

fn record(n: u64) -> Vec<u8> {
    format!("record {n} {}", "x".repeat(usize::try_from(n % 50).unwrap())).into_bytes()
}

fn records(range: std::ops::Range<u64>) -> Vec<Vec<u8>> {
    range.map(record).collect()
}

fn open(folder: &Path) -> Spool {
    Spool::open(folder, 64 << 20, SpoolDurability::Process).unwrap()
}

/// Reads and acknowledges all, and gives the records.
fn drain(spool: &mut Spool) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let batch = spool.read(7);
        if batch.records.is_empty() {
            return all;
        }
        all.extend(batch.records);
        spool.acknowledge(batch.end).unwrap();
    }
}

#[test]
fn records_come_back_in_order_and_their_files_go() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(folder.path(), MIN_BYTES * 4, SpoolDurability::Power).unwrap();
    for start in (0..5_000).step_by(50) {
        assert_eq!(spool.push(&records(start..start + 50)).unwrap().dropped, 0);
    }
    assert_eq!((spool.len(), spool.unread()), (5_000, 5_000));
    assert!(spool.segments.len() > 2, "it takes several files");
    assert_eq!(drain(&mut spool), records(0..5_000));
    assert!(spool.is_empty() && spool.bytes() == 0);
    assert_eq!(fs::read_dir(folder.path().join("0")).unwrap().count(), 1, "only the lock is left");
    spool.push(&records(0..3)).unwrap();
    assert_eq!(drain(&mut spool), records(0..3), "and it goes on");
}

#[test]
fn what_was_not_acknowledged_is_read_again_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = open(folder.path());
    spool.push(&records(0..100)).unwrap();
    assert_eq!(spool.read(60).records, records(0..60));
    spool.acknowledge(60).unwrap();
    drop(spool);
    let mut spool = open(folder.path());
    // The file is not through: all of it comes again, and what is new comes after it.
    spool.push(&records(100..110)).unwrap();
    assert_eq!(drain(&mut spool), records(0..110));
    drop(spool);
    assert!(open(folder.path()).is_empty());
}

#[test]
fn rewinding_reads_again_what_was_not_acknowledged() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = open(folder.path());
    spool.push(&records(0..20)).unwrap();
    spool.read(15);
    spool.acknowledge(5).unwrap();
    spool.rewind();
    assert_eq!(drain(&mut spool), records(5..20));
}

#[test]
fn past_its_bound_the_oldest_records_go_and_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(folder.path(), MIN_BYTES, SpoolDurability::Process).unwrap();
    let mut dropped = 0;
    for start in (0..10_000).step_by(20) {
        dropped += spool.push(&records(start..start + 20)).unwrap().dropped;
        assert!(spool.bytes() <= MIN_BYTES);
    }
    assert!(dropped > 0);
    assert_eq!(spool.len(), 10_000 - dropped);
    assert_eq!(drain(&mut spool), records(dropped..10_000));
}

#[test]
fn records_that_were_read_are_not_counted_as_dropped() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(folder.path(), MIN_BYTES, SpoolDurability::Process).unwrap();
    spool.push(&records(0..500)).unwrap();
    spool.read(500);
    let mut dropped = 0;
    for start in (500..10_000).step_by(500) {
        dropped += spool.push(&records(start..start + 500)).unwrap().dropped;
    }
    let left = drain(&mut spool).len() as u64;
    assert_eq!(500 + dropped + left, 10_000);
}

#[test]
fn a_torn_tail_costs_only_what_is_torn() {
    let folder = tempfile::tempdir().unwrap();
    let whole = {
        let mut spool = open(folder.path());
        spool.push(&records(0..10)).unwrap();
        fs::read(folder.path().join("0/00000000000000000001.spool")).unwrap()
    };
    let last = whole.len() - (record(9).len() + 8);
    // Cut anywhere in the last record, or with any byte of it flipped.
    for cut in last..whole.len() {
        fs::write(folder.path().join("0/00000000000000000001.spool"), &whole[..cut]).unwrap();
        assert_eq!(drain(&mut open(folder.path())), records(0..9), "cut at {cut}");
        let mut flipped = whole.clone();
        flipped[cut] ^= 0x10;
        fs::write(folder.path().join("0/00000000000000000001.spool"), &flipped).unwrap();
        assert_eq!(drain(&mut open(folder.path())), records(0..9), "flipped at {cut}");
    }
    fs::write(folder.path().join("0/00000000000000000001.spool"), &whole[..4]).unwrap();
    assert!(open(folder.path()).is_empty(), "a file with half a header");
}

#[test]
fn what_the_disk_does_not_give_back_is_counted_and_passed_over() {
    let folder = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(folder.path(), MIN_BYTES * 4, SpoolDurability::Process).unwrap();
    while spool.segments.len() < 2 {
        let next = spool.next;
        spool.push(&records(next..next + 10)).unwrap();
    }
    let (first, all) = (spool.segments[0].records, spool.next);
    fs::write(folder.path().join("0/00000000000000000001.spool"), "gone").unwrap();
    let batch = spool.read(usize::MAX);
    assert_eq!((batch.start, batch.lost, batch.end), (0, first, all));
    assert_eq!(batch.records, records(first..all));
    spool.acknowledge(batch.end).unwrap();
    assert!(spool.is_empty());
}

#[test]
fn two_processes_do_not_share_a_folder_and_leftovers_are_found() {
    let folder = tempfile::tempdir().unwrap();
    let mut first = open(folder.path());
    let mut second = open(folder.path());
    first.push(&records(0..5)).unwrap();
    second.push(&records(5..9)).unwrap();
    assert_eq!(drain(&mut first), records(0..5));
    drop((first, second));
    // Only the second's folder holds something, so it is taken first.
    assert_eq!(drain(&mut open(folder.path())), records(5..9));
}

#[test]
fn a_folder_that_cannot_be_used_is_named() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let error = Spool::open(&folder.path().join("file"), 1 << 20, SpoolDurability::Process).unwrap_err();
    assert!(error.to_string().starts_with("`ingest.spool_dir`") && error.to_string().contains("file/0"));
    let held: Vec<Spool> = (0..FOLDERS).map(|_| open(folder.path())).collect();
    let error = Spool::open(folder.path(), 1 << 20, SpoolDurability::Process).unwrap_err();
    assert!(error.to_string().contains("16 other processes"), "{error}");
    drop(held);
}

/// Set for the process that is killed.
const FOLDER: &str = "SPOOL_KILL_TEST_FOLDER";

/// The process that is killed; does nothing when it runs as a test of its own.
#[test]
fn pushing_process() {
    let Some(folder) = std::env::var_os(FOLDER) else { return };
    let mut spool = open(Path::new(&folder));
    for n in spool.len().. {
        spool.push(&records(n..n + 1)).unwrap();
        println!("pushed {n}");
    }
}

#[test]
fn pushed_records_survive_sigkill() {
    let folder = tempfile::tempdir().unwrap();
    let mut pushed = 0;
    for _ in 0..5 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["spool::tests::pushing_process", "--exact", "--nocapture"])
            .env(FOLDER, folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut said = lines.map_while(Result::ok).filter_map(|line| {
            let (_, n) = line.split_once("pushed ")?;
            n.parse::<u64>().ok()
        });
        let reached = said.find(|n| *n > pushed + 200).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        pushed = said.last().unwrap_or(reached) + 1;
    }
    let all = drain(&mut open(folder.path()));
    assert!(all.len() as u64 >= pushed);
    assert_eq!(all, records(0..all.len() as u64));
}
