//! How many bytes of messages went by, without the five bytes that gRPC puts before each.

/// Compressed flag and length.
const PREFIX: usize = 5;

/// Reads the lengths out of a body that comes in pieces of any size.
#[derive(Debug, Default)]
pub(crate) struct MessageSizes {
    total: u64,
    /// What is still to come of the current message.
    rest: usize,
    prefix: [u8; PREFIX],
    /// How much of the prefix is there.
    filled: usize,
}

impl MessageSizes {
    /// The next piece.
    pub(crate) fn add(&mut self, mut piece: &[u8]) {
        while !piece.is_empty() {
            if self.rest > 0 {
                let here = self.rest.min(piece.len());
                self.total += here as u64;
                self.rest -= here;
                piece = &piece[here..];
                continue;
            }
            let here = (PREFIX - self.filled).min(piece.len());
            self.prefix[self.filled..self.filled + here].copy_from_slice(&piece[..here]);
            self.filled += here;
            piece = &piece[here..];
            if self.filled == PREFIX {
                let [_, length @ ..] = self.prefix;
                self.rest = u32::from_be_bytes(length) as usize;
                self.filled = 0;
            }
        }
    }

    /// All messages so far.
    pub(crate) fn total(&self) -> u64 {
        self.total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let mut body = Vec::new();
        for length in [0usize, 7, 300, 1] {
            body.push(0);
            body.extend((length as u32).to_be_bytes());
            body.extend(vec![b'x'; length]);
        }
        for size in 1..body.len() + 1 {
            let mut sizes = MessageSizes::default();
            body.chunks(size).for_each(|piece| sizes.add(piece));
            assert_eq!(sizes.total(), 308, "in pieces of {size}");
        }
    }
}
