//! A zip archive with stored records, each beginning on a 64-byte boundary, as PyTorch's reader likes to map them.

use super::ArchiveError;

/// Where each record's bytes begin is a multiple of this.
pub(super) const ALIGNMENT: usize = 64;

const LOCAL: u32 = 0x0403_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const END: u32 = 0x0605_4b50;
/// 1 January 1980, so that equal input gives equal bytes.
const DATE: u16 = 0x0021;
const LOCAL_LENGTH: usize = 30;

/// Collects records; [`Zip::finish`] gives the archive.
#[derive(Debug, Default)]
pub(super) struct Zip {
    bytes: Vec<u8>,
    directory: Vec<u8>,
    records: u16,
}

impl Zip {
    /// Appends a record.
    pub fn add(&mut self, name: &str, data: &[u8]) -> Result<(), ArchiveError> {
        let too_large = || ArchiveError::TooLarge(name.to_owned());
        let offset = u32::try_from(self.bytes.len()).map_err(|_| too_large())?;
        let size = u32::try_from(data.len()).map_err(|_| too_large())?;
        let name_length = u16::try_from(name.len()).map_err(|_| too_large())?;
        let crc = crc32fast::hash(data);
        // An extra field "FB" of as many bytes as alignment takes; it needs four for its own header.
        let head = self.bytes.len() + LOCAL_LENGTH + name.len() + 4;
        let fill = head.next_multiple_of(ALIGNMENT) - head;
        let common = |to: &mut Vec<u8>, extra: u16| {
            for field in [0, 0, 0, DATE] {
                to.extend_from_slice(&u16::to_le_bytes(field)); // flags, method (stored), time, date
            }
            for field in [crc, size, size] {
                to.extend_from_slice(&field.to_le_bytes());
            }
            to.extend_from_slice(&name_length.to_le_bytes());
            to.extend_from_slice(&extra.to_le_bytes());
        };
        self.bytes.extend_from_slice(&LOCAL.to_le_bytes());
        self.bytes.extend_from_slice(&0_u16.to_le_bytes()); // version needed
        common(&mut self.bytes, fill as u16 + 4);
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.extend_from_slice(b"FB");
        self.bytes.extend_from_slice(&(fill as u16).to_le_bytes());
        self.bytes.resize(self.bytes.len() + fill, b'Z');
        self.bytes.extend_from_slice(data);

        self.directory.extend_from_slice(&CENTRAL.to_le_bytes());
        self.directory.extend_from_slice(&[0; 4]); // version made by, version needed
        common(&mut self.directory, 0);
        self.directory.extend_from_slice(&[0; 10]); // comment length, disk, internal and external attributes
        self.directory.extend_from_slice(&offset.to_le_bytes());
        self.directory.extend_from_slice(name.as_bytes());
        self.records = self.records.checked_add(1).ok_or_else(too_large)?;
        Ok(())
    }

    /// The whole archive.
    pub fn finish(mut self) -> Result<Vec<u8>, ArchiveError> {
        let too_large = || ArchiveError::TooLarge("the archive".to_owned());
        let start = u32::try_from(self.bytes.len()).map_err(|_| too_large())?;
        let length = u32::try_from(self.directory.len()).map_err(|_| too_large())?;
        self.bytes.append(&mut self.directory);
        self.bytes.extend_from_slice(&END.to_le_bytes());
        self.bytes.extend_from_slice(&[0; 4]); // disk numbers
        self.bytes.extend_from_slice(&self.records.to_le_bytes());
        self.bytes.extend_from_slice(&self.records.to_le_bytes());
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(&start.to_le_bytes());
        self.bytes.extend_from_slice(&0_u16.to_le_bytes()); // comment length
        Ok(self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_these_bytes() {
        let mut zip = Zip::default();
        zip.add("m/version", b"3\n").unwrap();
        let bytes = zip.finish().unwrap();
        let mut golden = Vec::new();
        golden.extend_from_slice(b"PK\x03\x04\0\0\0\0\0\0\0\0\x21\0");
        golden.extend_from_slice(b"\xd1\x9e\x67\x55\x02\0\0\0\x02\0\0\0\x09\0\x19\0m/versionFB\x15\0");
        golden.extend_from_slice(&[b'Z'; 21]);
        golden.extend_from_slice(b"3\n");
        golden.extend_from_slice(b"PK\x01\x02\0\0\0\0\0\0\0\0\0\0\x21\0");
        golden.extend_from_slice(
            b"\xd1\x9e\x67\x55\x02\0\0\0\x02\0\0\0\x09\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0m/version",
        );
        golden.extend_from_slice(b"PK\x05\x06\0\0\0\0\x01\0\x01\0\x37\0\0\0\x42\0\0\0\0\0");
        assert_eq!(bytes, golden);
    }

    #[test]
    fn every_record_begins_on_a_boundary() {
        let mut zip = Zip::default();
        for length in 0..130_usize {
            let name = format!("{}/{length}", "n".repeat(length));
            let before = zip.bytes.len();
            zip.add(&name, &vec![7; length]).unwrap();
            assert_eq!((zip.bytes.len() - length) % ALIGNMENT, 0, "record {length} after {before}");
        }
    }
}
