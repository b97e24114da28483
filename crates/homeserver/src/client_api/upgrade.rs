//! Moving a room to another version: a new room with what can be taken over, and a sign in the old one.
//! Spec: client-server API, "Room Upgrades".

use std::sync::Arc;

use axum::extract::State;
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, OwnedUserId, RoomVersionId,
    api::client::room::upgrade_room,
    events::{StateEventType, TimelineEventType, room::member::MembershipState},
};
use serde_json::json;
use storage::events::Direction as Order;

use super::{ApiError, Routes, Ruma, RumaResponse, room_arguments::member_profile};
use crate::{
    Homeserver,
    room::{Event, Membership, NewRoom, Preset, Proposal, Room, RoomState, SUPPORTED_VERSIONS},
};

/// State that is taken over as it is. Power levels and bans follow them.
const TAKEN_OVER: [StateEventType; 8] = [
    StateEventType::RoomServerAcl,
    StateEventType::RoomEncryption,
    StateEventType::RoomName,
    StateEventType::RoomAvatar,
    StateEventType::RoomTopic,
    StateEventType::RoomGuestAccess,
    StateEventType::RoomHistoryVisibility,
    StateEventType::RoomJoinRules,
];

pub(super) fn router() -> Routes {
    Routes::new().ruma(upgrade)
}

/// `POST /_matrix/client/v3/rooms/{roomId}/upgrade`
///
/// <https://spec.matrix.org/v1.19/client-server-api/#post_matrixclientv3roomsroomidupgrade>
async fn upgrade(
    State(hs): State<Homeserver>,
    request: Ruma<upgrade_room::v3::Request>,
) -> Result<RumaResponse<upgrade_room::v3::Response>, ApiError> {
    let user = request.sender().user_id.clone();
    let body = request.body;
    if !SUPPORTED_VERSIONS.contains(&body.new_version) {
        return Err(crate::room::Error::UnsupportedVersion(body.new_version.to_string()).into());
    }
    let not_in_room = || ApiError::forbidden("You are not in this room.");
    let old = hs.rooms.find(&body.room_id).await?.ok_or_else(not_in_room)?;
    let state = old.state();
    if !state.is_joined(&user) {
        return Err(not_in_room());
    }
    if !state.may_send_state(&user, &StateEventType::RoomTombstone) {
        return Err(ApiError::forbidden("You may not upgrade this room."));
    }
    let new = replacement(&hs, &state, &user, body.new_version, body.additional_creators).await?;
    let new = hs.rooms.create(new).await?;
    let tombstone = content(json!({
        "body": "This room has been replaced.",
        "replacement_room": new,
    }))?;
    let kind = TimelineEventType::RoomTombstone;
    hs.rooms
        .propose(&old, Proposal::state(&user, kind, "", tombstone))
        .await?;
    hs.rooms.move_aliases(&old, &new, &user).await?;
    close(&hs, &old, &user).await;
    Ok(RumaResponse(upgrade_room::v3::Response::new(new)))
}

/// The room that takes the place of the old one.
async fn replacement(
    hs: &Homeserver,
    state: &RoomState,
    user: &OwnedUserId,
    version: RoomVersionId,
    additional_creators: Vec<OwnedUserId>,
) -> Result<NewRoom, ApiError> {
    let rules = version
        .rules()
        .ok_or_else(|| ApiError::internal("a supported version without rules"))?;
    let creators_are_privileged = rules.authorization.explicitly_privilege_room_creators;
    let mut creation = CanonicalJsonObject::new();
    let mut predecessor = CanonicalJsonObject::from([(
        "room_id".to_owned(),
        CanonicalJsonValue::String(state.room_id.to_string()),
    )]);
    if !creators_are_privileged {
        let last = hs.rooms.page(state, 0, state.latest, Order::Backward, 1).await?;
        if let Some(last) = last.first() {
            let event_id = CanonicalJsonValue::String(last.event_id.to_string());
            predecessor.insert("event_id".to_owned(), event_id);
        }
    }
    creation.insert("predecessor".to_owned(), CanonicalJsonValue::Object(predecessor));
    let create = state.pinned(&StateEventType::RoomCreate);
    for field in ["type", "m.federate"] {
        if let Some(value) = create.and_then(|create| create.content_field::<CanonicalJsonValue>(field)) {
            creation.insert(field.to_owned(), value);
        }
    }
    if !additional_creators.is_empty() {
        if !creators_are_privileged {
            return Err(ApiError::invalid_param(format!(
                "Rooms of version {version} have no `additional_creators`."
            )));
        }
        let creators = additional_creators
            .iter()
            .map(|user| CanonicalJsonValue::String(user.to_string()));
        creation.insert(
            "additional_creators".to_owned(),
            CanonicalJsonValue::Array(creators.collect()),
        );
    }
    let mut initial_state = Vec::new();
    for kind in TAKEN_OVER {
        if let Some(event) = hs.rooms.state_event_of(state, &kind, "").await? {
            initial_state.push((event.kind.clone(), String::new(), content_of(&event)?));
        }
    }
    let is_banned = |entry: &crate::room::StateEntry| entry.membership == Some(Membership::Ban);
    let bans = hs
        .rooms
        .state_events(&state.room_id, &state.map, |kind, _, entry| {
            *kind == StateEventType::RoomMember && is_banned(entry)
        })
        .await?;
    for ban in bans {
        let key = ban.state_key.as_deref().unwrap_or_default().to_owned();
        let mut content = CanonicalJsonObject::from([(
            "membership".to_owned(),
            CanonicalJsonValue::String(MembershipState::Ban.to_string()),
        )]);
        if let Some(reason) = ban.content_field::<String>("reason") {
            content.insert("reason".to_owned(), CanonicalJsonValue::String(reason));
        }
        initial_state.push((ban.kind.clone(), key, content));
    }
    // Last, so that they bind nothing of what is taken over.
    if let Some(event) = hs
        .rooms
        .state_event_of(state, &StateEventType::RoomPowerLevels, "")
        .await?
    {
        let mut levels = content_of(&event)?;
        let users = levels
            .entry("users".to_owned())
            .or_insert_with(|| CanonicalJsonValue::Object(CanonicalJsonObject::new()));
        if let CanonicalJsonValue::Object(users) = users {
            if creators_are_privileged {
                // Creators have all power and may not be listed.
                users.retain(|listed, _| {
                    listed != user.as_str() && !additional_creators.iter().any(|c| c.as_str() == listed)
                });
            } else if state.creators().contains(user) && state.rules.authorization.explicitly_privilege_room_creators {
                // What a creator could do without being listed has to be listed here.
                users.insert(user.to_string(), CanonicalJsonValue::Integer(100.into()));
            }
        }
        initial_state.push((event.kind.clone(), String::new(), levels));
    }
    Ok(NewRoom {
        creator: user.clone(),
        creator_profile: member_profile(hs, user).await,
        version: Some(version),
        creation_content: creation,
        preset: Preset::PrivateChat,
        listed: hs.rooms.is_listed(&state.room_id).await?,
        alias: None,
        name: None,
        topic: None,
        invites: Vec::new(),
        is_direct: false,
        initial_state,
        power_levels: CanonicalJsonObject::new(),
    })
}

/// Keeps people from going on in the old room, where the user may do that.
async fn close(hs: &Homeserver, old: &Arc<Room>, user: &OwnedUserId) {
    let closed = async {
        let state = old.state();
        let kind = StateEventType::RoomPowerLevels;
        let Some(event) = hs.rooms.state_event_of(&state, &kind, "").await? else {
            return Ok(());
        };
        let mut levels = content_of(&event)?;
        let number = |levels: &CanonicalJsonObject, field: &str| match levels.get(field) {
            Some(CanonicalJsonValue::Integer(level)) => i64::from(*level),
            _ => 0,
        };
        let closed = (number(&levels, "users_default") + 1).max(50);
        for field in ["events_default", "invite"] {
            let level = number(&levels, field).max(closed);
            let level = ruma::Int::try_from(level).unwrap_or(ruma::Int::MAX);
            levels.insert(field.to_owned(), CanonicalJsonValue::Integer(level));
        }
        let proposal = Proposal::state(user, TimelineEventType::RoomPowerLevels, "", levels);
        hs.rooms.propose(old, proposal).await.map(drop).map_err(ApiError::from)
    };
    if let Err(error) = closed.await {
        tracing::info!(%error, "an upgraded room stays open: its power levels cannot be changed");
    }
}

fn content_of(event: &Event) -> Result<CanonicalJsonObject, ApiError> {
    serde_json::from_str(event.content.get()).map_err(ApiError::internal)
}

fn content(value: serde_json::Value) -> Result<CanonicalJsonObject, ApiError> {
    serde_json::from_value(value).map_err(ApiError::internal)
}
