//! A frame whose ids, texts and sizes were checked.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use sightline_mesh::{
    Deadline,
    auth::Claims,
    client::{Ask, RouteKey},
};
use sightline_proto::ingest::{Frame as Wire, Hello};
use sightline_telemetry::trace::Parent;
use uuid::Uuid;

use crate::{config::IngestConfig, error::IngestError};

/// The longest id or name, in characters.
const MAX_TEXT: usize = 128;
/// The longest model, in characters: "name@version" is longer than either.
const MAX_MODEL: usize = 160;
/// How far a client's clock may be ahead. The statistics take an hour; five minutes of it are for the difference between
/// their clock and ours.
pub const MAX_AHEAD: Duration = Duration::from_secs(55 * 60);
/// How old a frame may be. The statistics must remember event ids for longer (`stats.dedupe_window`), so that a late one
/// still counts once.
pub const MAX_AGE: Duration = Duration::from_secs(6 * 24 * 3600);

/// Who calls: what the token says, and from where.
#[derive(Debug, Clone, Default)]
pub struct Caller {
    /// The token's claims, where tokens are asked for.
    pub claims: Option<Claims>,
    /// The peer's address.
    pub ip: Option<std::net::IpAddr>,
    /// The span that its frames belong to.
    pub trace: Parent,
}

impl Caller {
    /// The tenant; empty in a single-tenant installation.
    pub fn tenant(&self) -> &str {
        self.claims.as_ref().map_or("", |claims| &claims.tenant)
    }
}

/// A frame ready for the pipeline.
pub struct Frame {
    /// The caller's id, or one made here.
    pub id: Uuid,
    /// Who.
    pub user: String,
    /// On which device.
    pub device: String,
    /// In which application.
    pub application: String,
    /// When.
    pub captured_at: SystemTime,
    /// The encoded image.
    pub image: Bytes,
    /// The model asked for; empty for the default.
    pub model: String,
}

impl Frame {
    /// What is asked of another service for this frame: one user's go to the same replica, where the mesh is told to balance
    /// so.
    pub fn ask(&self, caller: &Caller, deadline: Deadline) -> Ask {
        Ask { deadline, key: Some(RouteKey::of(&[caller.tenant(), &self.user]).0) }
    }

    /// Checks a frame from the wire. `hello` fills what the frame leaves out.
    ///
    /// # Errors
    /// [`IngestError`] naming the field.
    pub fn check(
        wire: Option<Wire>,
        hello: Option<&Hello>,
        caller: &Caller,
        config: &IngestConfig,
    ) -> Result<Self, IngestError> {
        let wire = wire.ok_or(IngestError::FrameMissing)?;
        let or = |own: String, other: fn(&Hello) -> &String| match hello {
            Some(hello) if own.is_empty() => other(hello).clone(),
            _ => own,
        };
        let frame = Self {
            id: frame_id(&wire.frame_id)?,
            user: user(or(wire.user_id, |hello| &hello.user_id), caller)?,
            device: or(wire.device_id, |hello| &hello.device_id),
            application: or(wire.application, |hello| &hello.application),
            captured_at: captured_at(wire.captured_at)?,
            image: wire.image,
            model: or(wire.model, |hello| &hello.model),
        };
        if caller.tenant().chars().count() > MAX_TEXT {
            return Err(IngestError::TenantTooLong(MAX_TEXT));
        }
        for (field, text, limit) in [
            ("user_id", &frame.user, MAX_TEXT),
            ("device_id", &frame.device, MAX_TEXT),
            ("application", &frame.application, MAX_TEXT),
            ("model", &frame.model, MAX_MODEL),
        ] {
            if text.chars().count() > limit {
                return Err(IngestError::FieldTooLong { field, limit });
            }
        }
        let limit = config.max_image.bytes();
        match frame.image.len() {
            0 => Err(IngestError::ImageEmpty),
            bytes if bytes > limit => Err(IngestError::ImageTooLarge { bytes, limit }),
            _ => Ok(frame),
        }
    }
}

fn frame_id(text: &str) -> Result<Uuid, IngestError> {
    if text.is_empty() {
        return Ok(Uuid::now_v7());
    }
    // The nil UUID means "none" to many libraries: every frame would be the same one.
    Uuid::try_parse(text).ok().filter(|id| !id.is_nil()).ok_or(IngestError::FrameIdInvalid)
}

fn user(named: String, caller: &Caller) -> Result<String, IngestError> {
    let token = caller.claims.as_ref().map_or("", |claims| &claims.sub);
    match (named.is_empty(), token.is_empty()) {
        (true, true) => Err(IngestError::UserMissing),
        (true, false) => Ok(token.to_owned()),
        (false, false) if named != token => Err(IngestError::UserMismatch),
        _ => Ok(named),
    }
}

fn captured_at(stamp: Option<prost_types::Timestamp>) -> Result<SystemTime, IngestError> {
    let now = SystemTime::now();
    let Some(stamp) = stamp else { return Ok(now) };
    let time = SystemTime::try_from(stamp)
        .map_err(|_| IngestError::CapturedAtInvalid("is not a valid timestamp"))?;
    if time > now + MAX_AHEAD {
        return Err(IngestError::CapturedAtInvalid("is more than 55 minutes in the future"));
    }
    if time + MAX_AGE < now {
        return Err(IngestError::CapturedAtInvalid("is more than six days ago"));
    }
    Ok(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire() -> Wire {
        Wire { user_id: "ada".into(), image: Bytes::from_static(b"x"), ..Wire::default() }
    }

    fn check(wire: Wire, caller: &Caller) -> Result<Frame, String> {
        let config = IngestConfig::default();
        Frame::check(Some(wire), None, caller, &config)
            .map_err(|error| sightline_mesh::RpcError::from(error).reason)
    }

    #[test]
    fn fields_are_checked_by_name() {
        let anyone = Caller::default();
        let long = "x".repeat(MAX_TEXT + 1);
        for (frame, reason) in [
            (Wire { user_id: String::new(), ..wire() }, "USER_MISSING"),
            (Wire { frame_id: "17".into(), ..wire() }, "FRAME_ID_INVALID"),
            (Wire { frame_id: Uuid::nil().to_string(), ..wire() }, "FRAME_ID_INVALID"),
            (Wire { captured_at: Some(from_now(MAX_AHEAD + SECOND)), ..wire() }, "CAPTURED_AT_INVALID"),
            (Wire { application: long.clone(), ..wire() }, "FIELD_TOO_LONG"),
            (Wire { image: Bytes::new(), ..wire() }, "IMAGE_EMPTY"),
            (Wire { image: vec![0; 10_000_001].into(), ..wire() }, "IMAGE_TOO_LARGE"),
            (
                Wire { captured_at: Some(prost_types::Timestamp { seconds: 1, nanos: 0 }), ..wire() },
                "CAPTURED_AT_INVALID",
            ),
        ] {
            assert_eq!(check(frame, &anyone).err().as_deref(), Some(reason));
        }
        assert!(check(wire(), &anyone).is_ok());
        let early = Wire { captured_at: Some(from_now(MAX_AHEAD - SECOND)), ..wire() };
        assert!(check(early, &anyone).is_ok());
    }

    const SECOND: Duration = Duration::from_secs(1);

    fn from_now(ahead: Duration) -> prost_types::Timestamp {
        (SystemTime::now() + ahead).into()
    }

    #[test]
    fn the_token_names_the_user() {
        let claims = Claims { sub: "ada".into(), tenant: String::new(), scope: "classify".into() };
        let ada = Caller { claims: Some(claims), ..Caller::default() };
        assert_eq!(check(Wire { user_id: String::new(), ..wire() }, &ada).unwrap().user, "ada");
        assert_eq!(
            check(Wire { user_id: "bob".into(), ..wire() }, &ada).err().as_deref(),
            Some("USER_MISMATCH")
        );
    }

    #[test]
    fn a_tenant_that_the_statistics_would_refuse_is_refused_here() {
        let claims = |tenant| Claims { sub: "ada".into(), tenant, scope: "classify".into() };
        for (length, reason) in [(MAX_TEXT, None), (MAX_TEXT + 1, Some("TENANT_TOO_LONG"))] {
            let caller = Caller { claims: Some(claims("x".repeat(length))), ..Caller::default() };
            assert_eq!(check(wire(), &caller).err().as_deref(), reason);
        }
    }

    #[test]
    fn hello_fills_what_a_frame_leaves_out() {
        let hello = Hello { user_id: "ada".into(), application: "mail".into(), ..Hello::default() };
        let bare = Wire { user_id: String::new(), ..wire() };
        let frame =
            Frame::check(Some(bare), Some(&hello), &Caller::default(), &IngestConfig::default()).unwrap();
        assert_eq!((frame.user.as_str(), frame.application.as_str()), ("ada", "mail"));
    }
}
