//! The rooms two users share.
//! Spec: client-server API, "Mutual rooms" (MSC2666).

use axum::{Json, extract::State, routing::get};
use ruma::{OwnedRoomId, OwnedUserId};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{ApiError, Auth, Routes, arguments::Query};
use crate::{
    Homeserver,
    room::{Membership, UserRooms},
};

/// What clients ask for before they use it.
pub(super) const UNSTABLE_FEATURES: &[&str] = &[
    "uk.half-shot.msc2666.query_mutual_rooms",
    "uk.half-shot.msc2666.query_mutual_rooms.stable",
];

/// Rooms in one answer.
const PAGE: usize = 500;

pub(super) fn router() -> Routes {
    Routes::new()
        .route("/_matrix/client/v1/mutual_rooms", get(mutual_rooms))
        .route(
            "/_matrix/client/unstable/uk.half-shot.msc2666/user/mutual_rooms",
            get(mutual_rooms),
        )
}

#[derive(Deserialize)]
struct Asked {
    user_id: OwnedUserId,
    from: Option<String>,
}

/// `GET /_matrix/client/v1/mutual_rooms`. A page begins after the room that `from` names.
async fn mutual_rooms(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    Query(asked): Query<Asked>,
) -> Result<Json<Value>, ApiError> {
    if asked.user_id == sender.user_id {
        return Err(ApiError::invalid_param("You share all your rooms with yourself."));
    }
    let from = asked.from.map(OwnedRoomId::try_from).transpose();
    let from = from.map_err(|_| ApiError::invalid_param("`from` is not a token that this server gave."))?;
    let theirs = hs.rooms.memberships_of(&asked.user_id).await?;
    let ours = hs.rooms.memberships_of(&sender.user_id).await?;
    let is_joined = |rooms: &UserRooms, room_id: &OwnedRoomId| {
        rooms
            .get(room_id)
            .is_some_and(|room| room.membership == Membership::Join)
    };
    let mut rooms: Vec<&OwnedRoomId> = ours
        .keys()
        .filter(|id| is_joined(&ours, id) && is_joined(&theirs, id))
        .collect();
    rooms.sort_unstable();
    let count = rooms.len();
    rooms.retain(|room_id| from.as_ref().is_none_or(|from| *room_id > from));
    let more = rooms.len() > PAGE;
    rooms.truncate(PAGE);
    let mut answer = json!({ "joined": rooms, "count": count });
    if let Some(last) = rooms.last().filter(|_| more) {
        answer["next_batch"] = last.as_str().into();
    }
    Ok(Json(answer))
}
