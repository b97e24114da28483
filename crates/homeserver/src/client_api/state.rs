//! A room's state: reading it whole or piece by piece, and putting pieces.

use axum::{
    extract::{RawQuery, State},
    response::Response,
    routing::get,
};
use ruma::events::StateEventType;
use serde::Deserialize;
use serde_json::value::{RawValue, to_raw_value};

use super::{
    ApiError, Auth, Routes,
    arguments::{Path, Query},
    raw_json,
    room_arguments::{ContentBody, room_id, viewer},
    send::{StatePath, put_state},
};
use crate::{Homeserver, room::Format};

pub(super) fn router() -> Routes {
    Routes::new()
        .client("/rooms/{room_id}/state", get(whole))
        .client("/rooms/{room_id}/state/{event_type}", get(piece).put(put_piece))
        // The state key may be empty: then the path may end in a slash.
        .client("/rooms/{room_id}/state/{event_type}/", get(piece).put(put_piece))
        .client(
            "/rooms/{room_id}/state/{event_type}/{state_key}",
            get(piece).put(put_piece),
        )
}

#[derive(Debug, Deserialize)]
struct RoomPath {
    room_id: String,
}

#[derive(Debug, Deserialize)]
struct PieceQuery {
    format: Option<String>,
}

/// `GET /_matrix/client/v3/rooms/{roomId}/state`
///
/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidstate>
async fn whole(
    State(hs): State<Homeserver>,
    Auth(user): Auth,
    Path(path): Path<RoomPath>,
) -> Result<Response, ApiError> {
    let room = hs.rooms.get(&room_id(&path.room_id)?).await.map_err(hide)?;
    let (state, until) = hs.rooms.readable(&room, &user.user_id).await?;
    let map = match until {
        Some(position) => hs.rooms.state_at(&state, position).await?,
        None => state.map.clone(),
    };
    let events = hs.rooms.state_events(&state.room_id, &map, |_, _, _| true).await?;
    let events = hs
        .rooms
        .client_events(&events, &viewer(&user), Format::WithRoomId, None)
        .await?;
    let body: Box<RawValue> = to_raw_value(&events).map_err(ApiError::internal)?;
    Ok(raw_json(&body))
}

/// `GET /_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}`
///
/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidstateeventtypestatekey>
async fn piece(
    State(hs): State<Homeserver>,
    Auth(user): Auth,
    Path(path): Path<StatePath>,
    Query(query): Query<PieceQuery>,
) -> Result<Response, ApiError> {
    let room = hs.rooms.get(&room_id(&path.room_id)?).await.map_err(hide)?;
    let (state, until) = hs.rooms.readable(&room, &user.user_id).await?;
    let kind = StateEventType::from(path.event_type);
    let event = match until {
        None => hs.rooms.state_event_of(&state, &kind, &path.state_key).await?,
        Some(position) => {
            let map = hs.rooms.state_at(&state, position).await?;
            match map.get(&kind, &path.state_key) {
                Some(entry) => hs.rooms.events(&state.room_id, &[entry.nid]).await?.into_iter().next(),
                None => None,
            }
        }
    };
    let event = event.ok_or_else(|| ApiError::not_found("The room has no such state."))?;
    match query.format.as_deref() {
        None | Some("content") => Ok(raw_json(&event.content)),
        Some("event") => {
            let events = hs
                .rooms
                .client_events(&[event], &viewer(&user), Format::WithRoomId, None)
                .await?;
            let event = events
                .first()
                .ok_or_else(|| ApiError::internal("an event was not shown"))?;
            Ok(raw_json(event))
        }
        Some(other) => Err(ApiError::invalid_param(format!(
            "{other:?} is neither `content` nor `event`."
        ))),
    }
}

/// `PUT /_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}`
///
/// <https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3roomsroomidstateeventtypestatekey>
async fn put_piece(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    Path(path): Path<StatePath>,
    RawQuery(query): RawQuery,
    ContentBody(content): ContentBody,
) -> Result<Response, ApiError> {
    put_state(&hs, &sender, path, query.as_deref(), content).await
}

fn hide(e: crate::room::Error) -> ApiError {
    match e {
        crate::room::Error::NotFound(_) => ApiError::forbidden("You are not in this room."),
        other => other.into(),
    }
}
