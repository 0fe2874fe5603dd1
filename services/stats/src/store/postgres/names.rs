//! Names as PostgreSQL can keep them: its texts hold any character but NUL.
//!
//! NUL is written as `\u{1}\u{1}` and U+0001 as `\u{1}\u{2}`. Every other name is kept as it is, and the order of names
//! (by bytes, as `COLLATE "C"` compares) stays the same, so that pages join as in the SQLite store.

use std::borrow::Cow;

const ESCAPE: char = '\u{1}';
const NUL: char = '\u{1}';
const ITSELF: char = '\u{2}';

/// The name as it is stored.
pub(super) fn escape(name: &str) -> Cow<'_, str> {
    if !name.bytes().any(|byte| byte <= 1) {
        return Cow::Borrowed(name);
    }
    let mut stored = String::with_capacity(name.len() + 4);
    for character in name.chars() {
        match character {
            '\0' => stored.extend([ESCAPE, NUL]),
            ESCAPE => stored.extend([ESCAPE, ITSELF]),
            other => stored.push(other),
        }
    }
    Cow::Owned(stored)
}

/// The name that was stored as this.
pub(super) fn unescape(stored: String) -> String {
    if !stored.contains(ESCAPE) {
        return stored;
    }
    let mut name = String::with_capacity(stored.len());
    let mut characters = stored.chars();
    while let Some(character) = characters.next() {
        match character {
            ESCAPE => name.push(if characters.next() == Some(NUL) { '\0' } else { ESCAPE }),
            other => name.push(other),
        }
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_and_keep_their_order() {
        // Every text of up to four of these characters: those that are escaped, and their neighbours.
        let characters = ['\0', '\u{1}', '\u{2}', 'a', '🦀'];
        let mut names = vec![String::new()];
        for _ in 0..4 {
            let longer =
                names.iter().flat_map(|name| characters.map(|character| format!("{name}{character}")));
            names = longer.chain(names.clone()).collect();
        }
        names.sort_unstable();
        names.dedup();
        let stored: Vec<String> = names.iter().map(|name| escape(name).into_owned()).collect();
        assert!(stored.is_sorted(), "the order is kept");
        assert!(stored.iter().all(|name| !name.contains('\0')));
        assert_eq!(stored.into_iter().map(unescape).collect::<Vec<_>>(), names);
        assert!(matches!(escape("an ordinary name"), Cow::Borrowed(_)));
    }
}
