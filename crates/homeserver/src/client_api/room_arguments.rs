//! What the room endpoints take and give: ids in paths, canonical JSON bodies, pagination tokens,
//! member profiles.

use axum::extract::{FromRequest, Request};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedRoomId, OwnedRoomOrAliasId, RoomId, RoomOrAliasId, UserId, serde::Raw,
};
use serde_json::{error::Category, value::RawValue};

use super::{ApiError, extract::read_body};
use crate::{Homeserver, accounts::Authenticated, room::Viewer, sync::SyncToken};

/// An event content as a client sends it: an object of canonical JSON.
#[derive(Debug)]
pub(super) struct ContentBody(pub(super) CanonicalJsonObject);

impl FromRequest<Homeserver> for ContentBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &Homeserver) -> Result<Self, ApiError> {
        let raw = read_body(request.into_body()).await?;
        parse_content(&raw).map(Self)
    }
}

/// Reads a content. Syntax, encoding and depth are M_NOT_JSON; a number that canonical JSON has no
/// place for, or anything but an object, is M_BAD_JSON.
/// Spec: appendices, "Canonical JSON".
pub(super) fn parse_content(raw: &[u8]) -> Result<CanonicalJsonObject, ApiError> {
    let text = std::str::from_utf8(raw).map_err(|_| ApiError::not_json("The body is not valid UTF-8."))?;
    serde_json::from_str(text).map_err(|e| match e.classify() {
        Category::Syntax | Category::Eof | Category::Io => ApiError::not_json(format!("The body is not JSON: {e}.")),
        Category::Data => ApiError::bad_json(format!("The body is not an object of canonical JSON: {e}.")),
    })
}

/// A room id from a path.
pub(super) fn room_id(text: &str) -> Result<OwnedRoomId, ApiError> {
    RoomId::parse(text).map_err(|e| ApiError::invalid_param(format!("{text:?} is not a room id: {e}.")))
}

/// A position in a room's timeline, as it stands in `from`, `to`, `start`, `end`, `prev_batch` and
/// `since`: everything at or before it is on one side. `s` is a place in the stream; other letters
/// stay free for places in the event graph.
pub(super) fn parse_token(text: &str) -> Result<i64, ApiError> {
    SyncToken::parse(text)
        .map(SyncToken::position)
        .map_err(|_| ApiError::invalid_param("The token is not one that this server gave."))
}

/// The token of a position.
pub(super) fn token(position: i64) -> String {
    format!("s{}", position.max(0))
}

/// The viewer that a request's sender is.
pub(super) fn viewer(user: &Authenticated) -> Viewer {
    Viewer {
        user_id: user.user_id.clone(),
        device_id: Some(user.device_id.clone()),
    }
}

/// The name and picture that a member event shows; empty for users of other servers and unknown ones.
pub(super) async fn member_profile(hs: &Homeserver, user: &UserId) -> CanonicalJsonObject {
    let mut shown = CanonicalJsonObject::new();
    if user.server_name() != hs.config.server_name {
        return shown;
    }
    let Ok(profile) = hs.accounts.profile(user).await else {
        return shown;
    };
    for field in ["displayname", "avatar_url"] {
        if let Some(serde_json::Value::String(value)) = profile.get(field) {
            shown.insert(field.to_owned(), CanonicalJsonValue::String(value.clone()));
        }
    }
    shown
}

/// The room that an id or an alias names.
pub(super) async fn resolve(hs: &Homeserver, id: &RoomOrAliasId) -> Result<OwnedRoomId, ApiError> {
    let id: OwnedRoomOrAliasId = id.to_owned();
    match <OwnedRoomId>::try_from(id) {
        Ok(room_id) => Ok(room_id),
        Err(alias) => {
            let found = hs.rooms.resolve_alias(&alias).await?;
            found
                .map(|(room_id, _)| room_id)
                .ok_or_else(|| ApiError::not_found(format!("There is no room alias {alias} on this server.")))
        }
    }
}

/// Events as a typed answer carries them.
pub(super) fn raw<T>(events: Vec<Box<RawValue>>) -> Vec<Raw<T>> {
    events.into_iter().map(Raw::from_json).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_contents_get_clear_errors() {
        let deep = format!("{}{}", "{\"a\":".repeat(5_000), "1".to_owned() + &"}".repeat(5_000));
        let cases: [(&[u8], &str); 9] = [
            (b"", "M_NOT_JSON"),
            (b"{", "M_NOT_JSON"),
            (b"{\"a\":\xff}", "M_NOT_JSON"),
            (deep.as_bytes(), "M_NOT_JSON"),
            (b"[]", "M_BAD_JSON"),
            (b"\"text\"", "M_BAD_JSON"),
            (b"{\"a\":1.5}", "M_BAD_JSON"),
            (b"{\"a\":9007199254740993}", "M_BAD_JSON"),
            (b"{\"a\":1e3}", "M_BAD_JSON"),
        ];
        for (raw, errcode) in cases {
            let found = parse_content(raw).unwrap_err();
            assert_eq!(
                found.errcode(),
                errcode,
                "{:?}",
                String::from_utf8_lossy(&raw[..raw.len().min(40)])
            );
        }
        assert!(parse_content(b"{\"a\":[1,null,true,\"x\",{}]}").is_ok());
    }

    #[test]
    fn tokens_are_read_as_they_are_written() {
        assert_eq!(parse_token(&token(17)).unwrap(), 17);
        for text in ["", "s", "17", "s-1", "t17", "s99999999999999999999", "s1x"] {
            assert!(parse_token(text).is_err(), "{text}");
        }
    }
}
