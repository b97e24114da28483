//! Making rooms.

use axum::extract::State;
use http::StatusCode;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedRoomAliasId, OwnedUserId, RoomVersionId,
    api::client::room::{Visibility, create_room},
    events::TimelineEventType,
};
use serde::Deserialize;

use super::{
    ApiError, Routes, Ruma, RumaResponse,
    room_arguments::{member_profile, parse_content},
};
use crate::{
    Homeserver,
    limits::Class,
    room::{NewRoom, Preset},
};

pub(super) fn router() -> Routes {
    Routes::new().ruma(create)
}

/// Invitations one request may send.
const MAX_INVITES: usize = 100;

/// The parts of the body that are kept as they came.
#[derive(Deserialize)]
struct Body {
    #[serde(default)]
    creation_content: CanonicalJsonObject,
    #[serde(default)]
    initial_state: Vec<InitialState>,
    #[serde(default)]
    power_level_content_override: CanonicalJsonObject,
}

#[derive(Deserialize)]
struct InitialState {
    #[serde(rename = "type")]
    kind: TimelineEventType,
    #[serde(default)]
    state_key: String,
    content: CanonicalJsonObject,
}

/// `POST /_matrix/client/v3/createRoom`
///
/// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3createroom>
async fn create(
    State(hs): State<Homeserver>,
    request: Ruma<create_room::v3::Request>,
) -> Result<RumaResponse<create_room::v3::Response>, ApiError> {
    let creator = request.sender().user_id.clone();
    let raw: &[u8] = if request.raw.is_empty() { b"{}" } else { &request.raw };
    // Floats and the like anywhere in the body are refused here.
    let body = serde_json::to_value(parse_content(raw)?).map_err(ApiError::internal)?;
    let kept: Body = serde_json::from_value(body)
        .map_err(|e| ApiError::bad_json(format!("The room cannot be made like this: {e}.")))?;
    let request = request.body;
    if !request.invite_3pid.is_empty() {
        return Err(ApiError::new(
            StatusCode::BAD_REQUEST,
            "M_UNRECOGNIZED",
            "This server does not invite by e-mail address or telephone number.",
        ));
    }
    if request.invite.len() > MAX_INVITES {
        return Err(ApiError::invalid_param(format!(
            "At most {MAX_INVITES} users can be invited while a room is made."
        )));
    }
    hs.limits.check_many(&creator, Class::Invite, request.invite.len())?;
    let listed = request.visibility == Visibility::Public;
    let preset = match request.preset {
        Some(create_room::v3::RoomPreset::PublicChat) => Preset::PublicChat,
        Some(create_room::v3::RoomPreset::TrustedPrivateChat) => Preset::TrustedPrivateChat,
        Some(create_room::v3::RoomPreset::PrivateChat) => Preset::PrivateChat,
        Some(other) => return Err(ApiError::invalid_param(format!("{} is no preset.", other.as_str()))),
        None if listed => Preset::PublicChat,
        None => Preset::PrivateChat,
    };
    let alias = request
        .room_alias_name
        .as_deref()
        .map(|name| alias(&hs, name))
        .transpose()?;
    let mut invites: Vec<(OwnedUserId, CanonicalJsonObject)> = Vec::new();
    for user in request.invite {
        if user == creator || invites.iter().any(|(invited, _)| *invited == user) {
            continue;
        }
        if user.server_name() != hs.config.server_name {
            return Err(ApiError::forbidden(format!(
                "{user} is on another server, and this one does not federate."
            )));
        }
        let profile = member_profile(&hs, &user).await;
        invites.push((user, profile));
    }
    check_creators(
        &kept.creation_content,
        request.room_version.as_ref().unwrap_or(hs.rooms.default_version()),
    )?;
    let creator_profile = member_profile(&hs, &creator).await;
    let room_id = hs
        .rooms
        .create(NewRoom {
            creator,
            creator_profile,
            version: request.room_version,
            creation_content: kept.creation_content,
            preset,
            listed,
            alias,
            name: request.name.filter(|name| !name.is_empty()),
            topic: request.topic.filter(|topic| !topic.is_empty()),
            invites,
            is_direct: request.is_direct,
            initial_state: kept
                .initial_state
                .into_iter()
                .map(|state| (state.kind, state.state_key, state.content))
                .collect(),
            power_levels: kept.power_level_content_override,
        })
        .await?;
    Ok(RumaResponse(create_room::v3::Response::new(room_id)))
}

fn alias(hs: &Homeserver, name: &str) -> Result<OwnedRoomAliasId, ApiError> {
    // A localpart has no colon, no NUL and no white space.
    if name.is_empty() || name.contains([':', '\0']) || name.contains(char::is_whitespace) {
        return Err(ApiError::invalid_param(format!(
            "{name:?} cannot be the name of an alias."
        )));
    }
    OwnedRoomAliasId::try_from(format!("#{name}:{}", hs.config.server_name))
        .map_err(|e| ApiError::invalid_param(format!("{name:?} cannot be the name of an alias: {e}.")))
}

/// Spec: rooms/v12: `additional_creators` holds user ids; other versions give it no meaning.
fn check_creators(content: &CanonicalJsonObject, version: &RoomVersionId) -> Result<(), ApiError> {
    let counts = version
        .rules()
        .is_some_and(|rules| rules.authorization.additional_room_creators);
    let Some(creators) = content.get("additional_creators").filter(|_| counts) else {
        return Ok(());
    };
    let valid = matches!(creators, CanonicalJsonValue::Array(list)
        if list.iter().all(|user| user.as_str().is_some_and(|user| <&ruma::UserId>::try_from(user).is_ok())));
    if valid {
        Ok(())
    } else {
        Err(ApiError::invalid_param(
            "`additional_creators` is not a list of user ids.",
        ))
    }
}
