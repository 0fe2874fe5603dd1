//! Claims on their way from service to service.

use base64::{Engine, engine::general_purpose::STANDARD_NO_PAD};
use http::HeaderMap;
use metrics::counter;
use tonic::{
    Code,
    metadata::{BinaryMetadataValue, MetadataMap},
};

use super::Claims;
use crate::error::{RpcError, reason};

/// The metadata that carries verified claims between services: JSON, as gRPC's binary metadata.
pub const CLAIMS_KEY: &str = "sightline-claims-bin";
/// The most that is read of it: claims come from tokens, which are shorter.
const MAX_CLAIMS_BYTES: usize = 8 << 10;

/// From whom forwarded claims are taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ForwardTrust {
    /// Peers that proved who they are.
    #[default]
    Mtls,
    /// And callers on this machine. A proxy beside the process makes everybody one.
    Loopback,
    /// Everybody, on a closed network.
    Insecure,
}

/// Hands the claims that a guard verified on with a call to another service.
pub fn forward(claims: &Claims, metadata: &mut MetadataMap) {
    if let Ok(json) = serde_json::to_vec(claims) {
        metadata.insert_bin(CLAIMS_KEY, BinaryMetadataValue::from_bytes(&json));
    }
}

/// Takes forwarded claims out of a request, whether or not they are believed.
pub(super) fn take(headers: &mut HeaderMap) -> Option<Forwarded> {
    let mut all = headers.get_all(CLAIMS_KEY).iter().map(|value| value.as_bytes().to_vec());
    let first = all.next()?;
    let only = all.next().is_none();
    headers.remove(CLAIMS_KEY);
    Some(Forwarded(only.then_some(first)))
}

/// Claims that somebody says somebody has; none when they were said twice.
pub(super) struct Forwarded(Option<Vec<u8>>);

impl Forwarded {
    /// Not believed.
    pub(super) fn drop_from(self, side: &'static str) {
        counter!("mesh_forwarded_claims_dropped_total", "side" => side).increment(1);
    }

    /// From a peer that is believed.
    pub(super) fn read(self) -> Result<Claims, RpcError> {
        let read = |text: Vec<u8>| {
            let text = text.strip_suffix(b"==").or_else(|| text.strip_suffix(b"=")).unwrap_or(&text);
            let json = STANDARD_NO_PAD.decode(text).ok()?;
            serde_json::from_slice(&json).ok()
        };
        self.0.filter(|text| text.len() <= MAX_CLAIMS_BYTES).and_then(read).ok_or_else(|| {
            let message = format!("the metadata `{CLAIMS_KEY}` of another service cannot be read");
            RpcError::new(Code::Unauthenticated, reason::TOKEN_INVALID, message)
        })
    }
}
