//! Who is in a room.

use std::collections::BTreeMap;

use axum::extract::State;
use ruma::{
    OwnedUserId,
    api::client::membership::{get_member_events, joined_members},
    events::StateEventType,
};

use super::{
    ApiError, Routes, Ruma, RumaResponse,
    room_arguments::{parse_token, raw, viewer},
};
use crate::{
    Homeserver,
    room::{Format, Membership},
};

pub(super) fn router() -> Routes {
    Routes::new().ruma(members).ruma(joined)
}

/// `GET /_matrix/client/v3/rooms/{roomId}/members`
///
/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidmembers>
async fn members(
    State(hs): State<Homeserver>,
    request: Ruma<get_member_events::v3::Request>,
) -> Result<RumaResponse<get_member_events::v3::Response>, ApiError> {
    let user = request.sender();
    let body = &request.body;
    let room = hs.rooms.find(&body.room_id).await?;
    let room = room.ok_or_else(|| ApiError::forbidden("You are not a member of this room."))?;
    let (state, until) = hs.rooms.readable(&room, &user.user_id).await?;
    let at = body.at.as_deref().map(parse_token).transpose()?;
    let map = match (at, until) {
        (None, None) => state.map.clone(),
        (Some(at), until) if until.is_none_or(|until| at < until) => {
            // Who may not see what happened then may not see who was there either.
            let visibility = hs.rooms.visibility(&state, &user.user_id).await?;
            if !visibility.allows_at(at) {
                return Err(ApiError::forbidden(
                    "You may not see the members of this room at that time.",
                ));
            }
            hs.rooms.state_at(&state, at).await?
        }
        (_, until) => hs.rooms.state_at(&state, until.unwrap_or(i64::MAX)).await?,
    };
    let wanted = body.membership.as_ref().map(|m| Membership::parse(m.as_str()));
    let unwanted = body.not_membership.as_ref().map(|m| Membership::parse(m.as_str()));
    let events = hs
        .rooms
        .state_events(&body.room_id, &map, |kind, _, entry| {
            *kind == StateEventType::RoomMember
                && wanted.is_none_or(|wanted| entry.membership == Some(wanted))
                && unwanted.is_none_or(|unwanted| entry.membership != Some(unwanted))
        })
        .await?;
    let events = hs
        .rooms
        .client_events(&events, &viewer(user), Format::WithRoomId, None)
        .await?;
    Ok(RumaResponse(get_member_events::v3::Response::new(raw(events))))
}

/// `GET /_matrix/client/v3/rooms/{roomId}/joined_members`
///
/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidjoined_members>
async fn joined(
    State(hs): State<Homeserver>,
    request: Ruma<joined_members::v3::Request>,
) -> Result<RumaResponse<joined_members::v3::Response>, ApiError> {
    let user = &request.sender().user_id;
    let room = hs.rooms.find(&request.body.room_id).await?;
    let state = room.map(|room| room.state()).filter(|state| state.is_joined(user));
    let state = state.ok_or_else(|| ApiError::forbidden("You are not a member of this room."))?;
    let events = hs
        .rooms
        .state_events(&state.room_id, &state.map, |kind, _, entry| {
            *kind == StateEventType::RoomMember && entry.membership == Some(Membership::Join)
        })
        .await?;
    let mut joined = BTreeMap::new();
    for event in events {
        let Some(Ok(user)) = event.state_key.as_deref().map(OwnedUserId::try_from) else {
            continue;
        };
        let mut member = joined_members::v3::RoomMember::new();
        member.display_name = event.content_field("displayname");
        member.avatar_url = event.content_field("avatar_url");
        joined.insert(user, member);
    }
    Ok(RumaResponse(joined_members::v3::Response::new(joined)))
}
