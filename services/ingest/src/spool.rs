//! Records that wait on disk: a bounded queue in files, first in, first out.
//!
//! - A record is there again after a restart or SIGKILL once [`Spool::push`] returned; after a loss of power too with
//!   [`SpoolDurability::Power`], which ends every push in an fsync.
//! - Records are read in the order in which they were pushed, and stay until they are acknowledged. What was read and
//!   not acknowledged when the process ended is read again: delivery repeats, and who receives it must not mind.
//! - Past its bound the oldest records go, a segment at a time, and are counted: [`Pushed::dropped`].
//! - A record that is torn, because the process or the machine died in a write, ends its segment: what is before it is
//!   kept, what comes after it cannot be found and is said in the log.
//!
//! Files: a folder of segments `00000000000000000001.spool`, numbered in order. A segment is `SLspool1` and then records:
//! length (4 bytes, little-endian), CRC-32 of the payload (4 bytes), payload. A segment is deleted when all in it is
//! acknowledged. `lock` in the folder is locked while a process uses it.
//!
//! Everything here blocks: call it from a thread that may.

mod segment;
#[cfg(test)]
mod tests;

use std::{
    collections::VecDeque,
    fs::{self, File, TryLockError},
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use self::segment::{Reader, Segment};

/// What a record on disk survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SpoolDurability {
    /// SIGKILL of the process: it is in the kernel's page cache.
    Process,
    /// Loss of power too: every push ends in an fsync.
    Power,
}

/// Folders tried, for processes that share one: `0`, `1`, … under the folder that was named.
const FOLDERS: usize = 16;
/// Segments that a full spool has: dropping the oldest costs a 32nd of it.
const SEGMENTS: u64 = 32;
/// The smallest and the largest segment in bytes: a push must fit in one, and one is redelivered after a restart.
const SEGMENT_BYTES: (u64, u64) = (64 << 10, 8 << 20);
/// The smallest bound of a spool in bytes.
pub const MIN_BYTES: u64 = 2 * SEGMENT_BYTES.0;

/// Why a spool cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("`ingest.spool_dir` ({}): {problem}", path.display())]
pub struct SpoolError {
    path: PathBuf,
    problem: String,
    #[source]
    source: Option<io::Error>,
}

/// What a push did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pushed {
    /// Older records that had to go, and were never read.
    pub dropped: u64,
}

/// Records that were read.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// In order.
    pub records: Vec<Vec<u8>>,
    /// The number of the first.
    pub start: u64,
    /// The number after the last: give it to [`Spool::acknowledge`].
    pub end: u64,
    /// Records among them that the disk did not give back.
    pub lost: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Spool {
    folder: PathBuf,
    max_bytes: u64,
    durability: SpoolDurability,
    /// Oldest first; the last one is written to.
    segments: VecDeque<Segment>,
    reader: Option<Reader>,
    /// The number of the next record to be read, pushed, and of the first that is not acknowledged.
    read: u64,
    next: u64,
    acknowledged: u64,
    _lock: File,
}

impl Spool {
    /// Opens or makes a spool of at most `max_bytes` in a folder under `dir` that no other process uses; one that has
    /// records from before comes first.
    ///
    /// # Errors
    /// [`SpoolError`], naming the folder.
    pub fn open(dir: &Path, max_bytes: u64, durability: SpoolDurability) -> Result<Self, SpoolError> {
        let fail = |path: &Path, problem: &str| {
            let (path, problem) = (path.to_owned(), problem.to_owned());
            move |source| SpoolError { path, problem: format!("{problem}: {source}"), source: Some(source) }
        };
        let mut empty = None;
        for number in 0..FOLDERS {
            let folder = dir.join(number.to_string());
            fs::create_dir_all(&folder).map_err(fail(&folder, "cannot be made"))?;
            let lock = File::create(folder.join("lock")).map_err(fail(&folder, "cannot be written to"))?;
            match lock.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(error)) => return Err(fail(&folder, "cannot be locked")(error)),
            }
            let spool = Self::load(folder.clone(), max_bytes, durability, lock)
                .map_err(fail(&folder, "cannot be read"))?;
            if !spool.is_empty() {
                info!(records = spool.len(), "events from before wait in {}", folder.display());
                return Ok(spool);
            }
            empty.get_or_insert(spool);
        }
        let problem = format!("{FOLDERS} other processes use the folders in it; name another folder");
        empty.ok_or(SpoolError { path: dir.to_owned(), problem, source: None })
    }

    fn load(folder: PathBuf, max_bytes: u64, durability: SpoolDurability, lock: File) -> io::Result<Self> {
        let mut numbers: Vec<u64> = Vec::new();
        for entry in fs::read_dir(&folder)? {
            let name = entry?.file_name();
            numbers.extend(name.to_str().and_then(|name| name.strip_suffix(".spool")?.parse::<u64>().ok()));
        }
        numbers.sort_unstable();
        let mut segments = VecDeque::new();
        let mut next = 0;
        for number in numbers {
            let segment = Segment::load(&folder, number, next)?;
            if segment.records == 0 {
                segment.delete()?;
                continue;
            }
            next += segment.records;
            segments.push_back(segment);
        }
        let mut spool = Self {
            folder,
            max_bytes: max_bytes.max(MIN_BYTES),
            durability,
            segments,
            reader: None,
            read: 0,
            next,
            acknowledged: 0,
            _lock: lock,
        };
        // The bound may have been lowered since.
        let dropped = spool.make_room(0)?;
        if dropped > 0 {
            warn!(dropped, "the oldest events on disk are beyond `ingest.spool_max_bytes` and were dropped");
        }
        Ok(spool)
    }

    /// Records that are not acknowledged.
    pub fn len(&self) -> u64 {
        self.next - self.acknowledged
    }

    /// The number of the first record that is not acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// Whether all is acknowledged.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Records that were not read yet.
    pub fn unread(&self) -> u64 {
        self.next - self.read
    }

    /// What it takes on disk.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.bytes).sum()
    }

    fn segment_bytes(&self) -> u64 {
        (self.max_bytes / SEGMENTS).clamp(SEGMENT_BYTES.0, SEGMENT_BYTES.1)
    }

    /// Adds records. When this returns they survive what the durability says.
    ///
    /// # Errors
    /// The system's: then none of them is in the spool, and older ones are as they were.
    ///
    /// # Panics
    /// Never: a record's length is checked.
    pub fn push(&mut self, records: &[Vec<u8>]) -> io::Result<Pushed> {
        let mut pushed = Pushed::default();
        let framed = segment::frame(records)?;
        let size = framed.len() as u64;
        let full = |segment: &Segment, limit| segment.bytes + size > limit && segment.records > 0;
        pushed.dropped = self.make_room(size)?;
        let limit = self.segment_bytes();
        if self.segments.back().is_none_or(|segment| full(segment, limit) || segment.is_read_only()) {
            let number = self.segments.back().map_or(0, |segment| segment.number) + 1;
            self.segments.push_back(Segment::create(&self.folder, number, self.next)?);
        }
        if let Some(segment) = self.segments.back_mut() {
            segment.append(&framed, records.len() as u64, self.durability)?;
            self.next += records.len() as u64;
        }
        Ok(pushed)
    }

    /// Deletes the oldest segments until `more` bytes fit, and says how many unread records that cost.
    fn make_room(&mut self, more: u64) -> io::Result<u64> {
        let mut dropped = 0;
        while self.bytes() + more > self.max_bytes && !self.segments.is_empty() {
            let Some(oldest) = self.segments.pop_front() else { break };
            let end = oldest.end();
            dropped += end.saturating_sub(self.read.max(oldest.first));
            if self.read < end {
                self.read = end;
                self.reader = None;
            }
            self.acknowledged = self.acknowledged.max(end);
            oldest.delete()?;
        }
        Ok(dropped)
    }

    /// The next records, at most `max`; none when all were read. What a broken disk does not give back is skipped, to the
    /// end of its segment, counted and said in the log.
    pub fn read(&mut self, max: usize) -> Batch {
        let mut batch = Batch { start: self.read, ..Batch::default() };
        while batch.records.len() < max
            && let Some(segment) = self.segments.iter().find(|segment| self.read < segment.end())
        {
            let end = segment.end();
            match segment.read(&mut self.reader, self.read, max - batch.records.len()) {
                Ok(records) => {
                    self.read += records.len() as u64;
                    batch.records.extend(records);
                }
                Err(error) => {
                    warn!(lost = end - self.read, "events on disk cannot be read: {error}");
                    batch.lost += end - self.read;
                    self.read = end;
                }
            }
        }
        batch.end = self.read;
        batch
    }

    /// Says that all records before the number `end` arrived: they are not read again after a restart, once their
    /// segment is through.
    ///
    /// # Errors
    /// The system's.
    pub fn acknowledge(&mut self, end: u64) -> io::Result<()> {
        self.acknowledged = self.acknowledged.max(end.min(self.next));
        while let Some(oldest) = self.segments.front()
            && oldest.end() <= self.acknowledged
        {
            if self.reader.as_ref().is_some_and(|reader| reader.number == oldest.number) {
                self.reader = None;
            }
            let Some(oldest) = self.segments.pop_front() else { break };
            oldest.delete()?;
        }
        Ok(())
    }

    /// Reads again from the first record that is not acknowledged.
    pub fn rewind(&mut self) {
        self.read = self.acknowledged;
        self.reader = None;
    }
}
