//! Where the next page starts, as text that means nothing to the caller: hex of 8 bytes of the request's BLAKE3 and
//! the last row's key as JSON. A token is no secret and grants nothing: a forged one only starts somewhere else.

use prost::Message;
use sightline_proto::stats::QueryRequest;

use crate::{
    error::StatsError,
    store::{Group, Key, Query},
};

const FINGERPRINT_BYTES: usize = 8;

/// What a token is bound to: the request without its token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fingerprint([u8; FINGERPRINT_BYTES]);

impl Fingerprint {
    pub(crate) fn of(request: &QueryRequest) -> Self {
        let bare = QueryRequest { page_token: String::new(), ..request.clone() };
        let hash = blake3::hash(&bare.encode_to_vec());
        let mut bytes = [0; FINGERPRINT_BYTES];
        bytes.copy_from_slice(&hash.as_bytes()[..FINGERPRINT_BYTES]);
        Self(bytes)
    }
}

pub(crate) fn encode(fingerprint: Fingerprint, last: &[Key]) -> String {
    let mut bytes = fingerprint.0.to_vec();
    bytes.extend(serde_json::to_vec(last).expect("strings and numbers are always JSON"));
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads the key back, and checks that it is one of `query`.
pub(crate) fn decode(token: &str, fingerprint: Fingerprint, query: &Query) -> Result<Vec<Key>, StatsError> {
    let unreadable = StatsError::PageToken("it cannot be read");
    let bytes = from_hex(token).ok_or(unreadable.clone())?;
    let (bound_to, key) = bytes.split_at_checked(FINGERPRINT_BYTES).ok_or(unreadable.clone())?;
    if bound_to != fingerprint.0 {
        return Err(StatsError::PageToken("the rest of the request must be the same as before"));
    }
    let key: Vec<Key> = serde_json::from_slice(key).map_err(|_| unreadable.clone())?;
    let bucket = query.bucket.map(|_| true);
    let groups = query.groups.iter().map(|group| matches!(group, Group::Level | Group::Source));
    let numeric: Vec<bool> = bucket.into_iter().chain(groups).collect();
    let found: Vec<bool> = key.iter().map(|key| matches!(key, Key::Number(_))).collect();
    if key.is_empty() || numeric != found { Err(unreadable) } else { Ok(key) }
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16);
    text.as_bytes()
        .chunks_exact(2)
        .map(|pair| u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_its_request_only() {
        let request = QueryRequest { tenant: "t".into(), ..QueryRequest::default() };
        let query = Query { groups: vec![Group::User, Group::Level], ..Query::default() };
        let fingerprint = Fingerprint::of(&request);
        let key = vec![Key::Text("\u{fc}\" 7".into()), Key::Number(3)];
        let token = encode(fingerprint, &key);

        assert_eq!(decode(&token, fingerprint, &query).unwrap(), key);
        let with_token = QueryRequest { page_token: token.clone(), ..request.clone() };
        assert_eq!(Fingerprint::of(&with_token), fingerprint);
        let other = Fingerprint::of(&QueryRequest { tenant: "u".into(), ..request });
        assert!(decode(&token, other, &query).is_err());
        for broken in ["", "zz", "0", "é0", &token[..20], &token[..token.len() - 2]] {
            assert!(decode(broken, fingerprint, &query).is_err(), "{broken:?}");
        }
        let wrong_kind = encode(fingerprint, &[Key::Number(3), Key::Number(3)]);
        assert!(decode(&wrong_kind, fingerprint, &query).is_err());
    }
}
