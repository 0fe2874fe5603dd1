//! Who speaks on a connection: certificates of our own, and the names of peers.
//!
//! - [`Identity`]: certificate, key and authorities from PEM files ([`TlsFiles`]), taken anew when the files change.
//! - [`Acceptor`]: the server's end. At the public edge everybody may connect; between services ([`Acceptor::mutual`])
//!   only who shows a certificate of our authorities whose SPIFFE id is on an [`AllowList`].
//! - [`Connector`]: the client's end, which verifies the server by its SPIFFE id or its host's name; [`ClientTls`]: that of a
//!   caller outside the mesh.
//! - [`EdgeTlsConfig`] and [`MeshTlsConfig`]: the settings.
//!
//! What is not checked: revocation. Certificates that live hours, as SPIFFE and cert-manager issue them, are not renewed
//! instead. A connection that is open keeps the identity it began with; the server's greatest age of a connection bounds
//! how long.

mod acceptor;
mod client;
mod complaints;
mod connector;
mod files;
mod settings;
mod source;
mod spiffe;
mod verify;

pub use acceptor::{Acceptor, HandshakeLimits};
pub use client::ClientTls;
pub use connector::{Connector, Secured};
pub(crate) use files::provider;
pub use files::{TlsError, TlsFiles, Validity};
pub use settings::{EdgeTlsConfig, MeshTlsConfig};
pub use source::Identity;
pub use spiffe::{AllowList, SpiffeError, SpiffeId};
pub use verify::Refusal;
