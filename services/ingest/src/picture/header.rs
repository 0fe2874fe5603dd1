//! What must be known of an image before a decoder is let at it. Reads headers only, allocates nothing.

/// Width and height that a PNG's header chunk gives (PNG specification, 11.2.1); `None` when it ends before.
pub(super) fn png(png: &[u8]) -> Option<(u32, u32)> {
    let side = |at: usize| Some(u32::from_be_bytes(png.get(at..at + 4)?.try_into().ok()?));
    Some((side(16)?, side(20)?))
}

/// Whether a JPEG's end marker stands where its own structure puts it (ITU-T T.81, annex B): after a scan, and not in a
/// segment such as the one that holds a thumbnail, which is a whole JPEG itself. What is appended behind is no matter.
pub(super) fn jpeg_is_whole(jpeg: &[u8]) -> bool {
    let (mut rest, mut scanned) = (jpeg, false);
    // Within a scan an FF of the data is followed by 00; before a marker any number of FF may stand.
    while let Some(at) = rest.windows(2).position(|pair| pair[0] == 0xff && !matches!(pair[1], 0x00 | 0xff)) {
        let marker = rest[at + 1];
        rest = &rest[at + 2..];
        match marker {
            0xd9 if scanned => return true,
            // Markers that stand alone: restarts, start and end, TEM.
            0x01 | 0xd0..=0xd9 => continue,
            0xda => scanned = true,
            _ => {}
        }
        let Some(&[high, low]) = rest.get(..2) else { return false };
        let length = usize::from(u16::from_be_bytes([high, low]));
        rest = rest.get(length.max(2)..).unwrap_or_default();
    }
    false
}

/// Width and height of every frame in a WebP, as the frames' own headers give them (RFC 9649, RFC 6386 9.1).
pub(super) fn webp_frames(webp: &[u8]) -> impl Iterator<Item = (u32, u32)> {
    /// Before the chunks inside an animation's frame: where it lies, its size, how long it shows.
    const ANIMATION_FRAME_HEADER: usize = 16;
    Chunks(webp.get(12..).unwrap_or_default()).flat_map(|(name, body)| {
        let inner = match name {
            b"ANMF" => body.get(ANIMATION_FRAME_HEADER..).unwrap_or_default(),
            _ => &[],
        };
        std::iter::once((name, body)).chain(Chunks(inner)).filter_map(|(name, body)| webp_frame(name, body))
    })
}

fn webp_frame(name: &[u8], body: &[u8]) -> Option<(u32, u32)> {
    const SIDE: u32 = 0x3fff;
    match name {
        b"VP8 " => {
            let side = |at: usize| Some(u16::from_le_bytes(body.get(at..at + 2)?.try_into().ok()?));
            Some((u32::from(side(6)?) & SIDE, u32::from(side(8)?) & SIDE))
        }
        b"VP8L" => {
            let bits = u32::from_le_bytes(body.get(1..5)?.try_into().ok()?);
            Some(((bits & SIDE) + 1, (bits >> 14 & SIDE) + 1))
        }
        _ => None,
    }
}

/// The chunks of a RIFF file one after the other: name and body, the last one as far as it goes.
struct Chunks<'a>(&'a [u8]);

impl<'a> Iterator for Chunks<'a> {
    type Item = (&'a [u8], &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (name, size) = (self.0.get(..4)?, self.0.get(4..8)?);
        let size = u32::from_le_bytes(size.try_into().ok()?) as usize;
        let body = &self.0[8..];
        // A body of odd length is filled up by one byte.
        self.0 = body.get(size.saturating_add(size & 1)..).unwrap_or_default();
        Some((name, body.get(..size).unwrap_or(body)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: &[u8] = &[0xff, 0xd8];
    const SCAN: &[u8] = &[0xff, 0xda, 0, 3, 9, 1, 2, 0xff, 0x00, 0xd9, 0xff, 0xd3, 4];
    const END: &[u8] = &[0xff, 0xd9];
    /// A segment of an application with a whole JPEG in it.
    const THUMBNAIL: &[u8] = &[0xff, 0xe1, 0, 12, 0xff, 0xd8, 0xff, 0xda, 0, 2, 7, 7, 0xff, 0xd9];

    #[test]
    fn a_jpeg_is_whole_when_its_own_end_is_there() {
        for (parts, whole) in [
            (&[START, SCAN, END][..], true),
            (&[START, THUMBNAIL, SCAN, END], true),
            (&[START, &[0xff, 0xff], THUMBNAIL, SCAN, THUMBNAIL, SCAN, END, b"appended"], true),
            (&[START, SCAN], false),
            (&[START, THUMBNAIL, SCAN], false),
            (&[START, THUMBNAIL, SCAN, THUMBNAIL], false),
            (&[START, THUMBNAIL], false),
            (&[START, END], false),
            (&[START, &[0xff, 0xe1]], false),
            (&[START, &[0xff, 0xe1, 0xff, 0xff], SCAN, END], false),
        ] {
            assert_eq!(jpeg_is_whole(&parts.concat()), whole, "{parts:?}");
        }
    }

    #[test]
    fn every_frame_of_a_webp_is_measured_wherever_it_lies() {
        let chunk = |name: &[u8], body: &[u8]| {
            let size = u32::try_from(body.len()).unwrap().to_le_bytes();
            [name, &size, body, &[0][..body.len() % 2]].concat()
        };
        let lossy = chunk(b"VP8 ", &[0, 0, 0, 0x9d, 1, 0x2a, 0xff, 0x3f, 16, 0]);
        let lossless = chunk(b"VP8L", &[0x2f, 0x02, 0xc0, 0x00, 0x10]);
        let animated = chunk(b"ANMF", &[&[0; 16][..], &chunk(b"ALPH", &[1]), &lossy].concat());
        let webp =
            [b"RIFF\0\0\0\0WEBP".to_vec(), chunk(b"VP8X", &[0; 10]), animated, lossless, lossy].concat();
        let frames: Vec<_> = webp_frames(&webp).collect();
        assert_eq!(frames, [(16_383, 16), (3, 4), (16_383, 16)]);
        for end in 0..webp.len() {
            webp_frames(&webp[..end]).for_each(drop);
        }
    }
}
