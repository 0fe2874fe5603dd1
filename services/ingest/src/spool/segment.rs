//! One file of a spool.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufReader, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use tracing::warn;

use super::SpoolDurability;

const MAGIC: &[u8; 8] = b"SLspool1";
/// Length and checksum.
const HEAD: usize = 8;
/// The largest record: far more than an event takes, and little enough to be read without thought.
pub(super) const MAX_RECORD: usize = 64 << 10;

/// A file of records.
#[derive(Debug)]
pub(super) struct Segment {
    path: PathBuf,
    pub number: u64,
    /// The number of its first record, in this process.
    pub first: u64,
    pub records: u64,
    pub bytes: u64,
    /// `None` for files of an earlier process, and after a failed write: they are not written to any more.
    file: Option<File>,
}

/// Records as they are in the file.
pub(super) fn frame(records: &[Vec<u8>]) -> io::Result<Vec<u8>> {
    let mut framed = Vec::with_capacity(records.iter().map(|record| record.len() + HEAD).sum());
    for record in records {
        let length = u32::try_from(record.len()).ok().filter(|_| record.len() <= MAX_RECORD);
        let length = length.ok_or_else(|| io::Error::other("a record is larger than 64 KiB"))?;
        framed.extend_from_slice(&length.to_le_bytes());
        framed.extend_from_slice(&crc32fast::hash(record).to_le_bytes());
        framed.extend_from_slice(record);
    }
    Ok(framed)
}

impl Segment {
    fn path(folder: &Path, number: u64) -> PathBuf {
        folder.join(format!("{number:020}.spool"))
    }

    pub(super) fn create(folder: &Path, number: u64, first: u64) -> io::Result<Self> {
        let path = Self::path(folder, number);
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&path)?;
        file.write_all(MAGIC)?;
        Ok(Self { path, number, first, records: 0, bytes: MAGIC.len() as u64, file: Some(file) })
    }

    /// A file of an earlier process: counts its whole records.
    pub(super) fn load(folder: &Path, number: u64, first: u64) -> io::Result<Self> {
        let path = Self::path(folder, number);
        let bytes = fs::metadata(&path)?.len();
        let mut segment = Self { path, number, first, records: 0, bytes, file: None };
        let (mut whole, mut records) = (0, 0);
        if let Ok(mut reader) = segment.reader(first) {
            whole = MAGIC.len() as u64;
            while whole < bytes {
                let Ok(record) = reader.next() else { break };
                whole += (record.len() + HEAD) as u64;
                records += 1;
            }
        }
        if whole < bytes {
            let (torn, path) = (bytes - whole, segment.path.display());
            warn!(torn, records, "{path} ends in a torn record: the bytes after its whole records are lost");
        }
        segment.records = records;
        Ok(segment)
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.file.is_none()
    }

    pub(super) fn append(
        &mut self,
        framed: &[u8],
        records: u64,
        durability: SpoolDurability,
    ) -> io::Result<()> {
        let Some(file) = &mut self.file else { return Err(io::Error::other("the segment is closed")) };
        let written = file.write_all(framed).and_then(|()| match durability {
            SpoolDurability::Process => Ok(()),
            SpoolDurability::Power => file.sync_data(),
        });
        if let Err(error) = written {
            // What went in of it is cut off, or else nothing more is written behind it.
            if file.set_len(self.bytes).and_then(|()| file.seek(SeekFrom::Start(self.bytes))).is_err() {
                self.file = None;
            }
            return Err(error);
        }
        self.records += records;
        self.bytes += framed.len() as u64;
        Ok(())
    }

    /// The number after its last record.
    pub(super) fn end(&self) -> u64 {
        self.first + self.records
    }

    /// At most `max` records from the number `from` on. `reader` is kept for the next call; after an error there is none.
    pub(super) fn read(
        &self,
        reader: &mut Option<Reader>,
        from: u64,
        max: usize,
    ) -> io::Result<Vec<Vec<u8>>> {
        let mut own = match reader.take().filter(|reader| reader.number == self.number) {
            Some(reader) => reader,
            None => self.reader(from)?,
        };
        let count = usize::try_from(self.end() - from).unwrap_or(usize::MAX).min(max);
        let records = (0..count).map(|_| own.next()).collect::<io::Result<_>>()?;
        *reader = Some(own);
        Ok(records)
    }

    /// Reads from the record with this number on.
    fn reader(&self, record: u64) -> io::Result<Reader> {
        let mut file = BufReader::new(File::open(&self.path)?);
        let mut magic = [0; MAGIC.len()];
        file.read_exact(&mut magic)?;
        if &magic != MAGIC {
            return Err(io::Error::other(format!("{} is not a spool's segment", self.path.display())));
        }
        let mut reader = Reader { number: self.number, file };
        for _ in self.first..record {
            reader.next()?;
        }
        Ok(reader)
    }

    pub(super) fn delete(self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }
}

/// A place in a segment.
#[derive(Debug)]
pub(super) struct Reader {
    pub number: u64,
    file: BufReader<File>,
}

impl Reader {
    /// The next record. It is an error when there is none, or when it is torn.
    fn next(&mut self) -> io::Result<Vec<u8>> {
        let mut head = [0; HEAD];
        self.file.read_exact(&mut head)?;
        let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        let length = usize::try_from(number(0)).unwrap_or(usize::MAX);
        if length > MAX_RECORD {
            return Err(io::Error::other("a record's length cannot be"));
        }
        let mut record = vec![0; length];
        self.file.read_exact(&mut record)?;
        if crc32fast::hash(&record) != number(4) {
            return Err(io::Error::other("a record's checksum is wrong"));
        }
        Ok(record)
    }
}
