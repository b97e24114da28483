//! Listing what a user was notified of.

use std::collections::HashMap;

use axum::{extract::State, response::Response};
use ruma::{OwnedRoomId, RoomId, api::client::push::get_notifications};
use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use super::{ApiError, Routes, Ruma, raw_json};
use crate::{
    Homeserver,
    room::{Format, Viewer, Visibility},
};

/// Notifications in one answer, if the client names no number, and at most.
const DEFAULT_LIMIT: u32 = 20;
const MAX_LIMIT: u32 = 100;

pub(super) fn router() -> Routes {
    Routes::new().ruma(list)
}

#[derive(Serialize)]
struct Answer {
    #[serde(skip_serializing_if = "Option::is_none")]
    next_token: Option<String>,
    notifications: Vec<Notification>,
}

#[derive(Serialize)]
struct Notification {
    actions: Box<RawValue>,
    event: Box<RawValue>,
    read: bool,
    room_id: String,
    ts: i64,
}

/// `GET /_matrix/client/v3/notifications` (spec: client-server API §Listing Notifications).
async fn list(State(hs): State<Homeserver>, req: Ruma<get_notifications::v3::Request>) -> Result<Response, ApiError> {
    let sender = req.sender();
    let before = match &req.body.from {
        None => i64::MAX,
        Some(text) => text
            .parse()
            .map_err(|_| ApiError::invalid_param("`from` is not a token of this endpoint."))?,
    };
    let limit = req
        .body
        .limit
        .map_or(DEFAULT_LIMIT, |n| u32::try_from(n).unwrap_or(MAX_LIMIT))
        .clamp(1, MAX_LIMIT);
    let only_highlights = req.body.only.as_deref() == Some("highlight");
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    let page = hs
        .store
        .notifications(sender.user_id.as_str(), before, only_highlights, limit)
        .await?;
    let viewer = Viewer {
        user_id: sender.user_id.clone(),
        device_id: Some(sender.device_id.clone()),
    };
    let mut notifications = Vec::with_capacity(page.notifications.len());
    let mut visible = HashMap::new();
    for row in page.notifications {
        let Some(event) = event(&hs, &viewer, &mut visible, &row).await? else {
            continue;
        };
        let actions = RawValue::from_string(row.actions).map_err(ApiError::internal)?;
        notifications.push(Notification {
            actions,
            event,
            read: row.read,
            room_id: row.room_id,
            ts: row.ts,
        });
    }
    let answer = to_raw_value(&Answer {
        next_token: page.next.map(|position| position.to_string()),
        notifications,
    })
    .map_err(ApiError::internal)?;
    Ok(raw_json(&answer))
}

/// The event of a notification, if the user may (still) see it: their own invites they may.
async fn event(
    hs: &Homeserver,
    viewer: &Viewer,
    visible: &mut HashMap<OwnedRoomId, Visibility>,
    row: &storage::push::Notification,
) -> Result<Option<Box<RawValue>>, ApiError> {
    let Ok(room_id) = <&RoomId>::try_from(row.room_id.as_str()) else {
        return Ok(None);
    };
    if !visible.contains_key(room_id) {
        let Some(room) = hs.rooms.find(room_id).await? else {
            return Ok(None);
        };
        let visibility = hs.rooms.visibility(&room.state(), &viewer.user_id).await?;
        visible.insert(room_id.to_owned(), visibility);
    }
    let visibility = &visible[room_id];
    let mut events = hs.rooms.events(room_id, &[row.position]).await?;
    events.retain(|event| visibility.allows(event));
    let json = hs
        .rooms
        .client_events(&events, viewer, Format::WithRoomId, Some(visibility))
        .await?;
    Ok(json.into_iter().next())
}
