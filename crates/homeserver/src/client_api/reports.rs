//! Reports of events, rooms and users, kept for the administrators of this server.
//! Spec: client-server API, "Reporting Content".

use axum::{Json, extract::State, routing::post};
use ruma::{EventId, OwnedUserId};
use serde::Deserialize;
use serde_json::{Value, json};
use storage::reports::NewReport;

use super::{ApiError, Auth, JsonBody, Routes, arguments::Path, history::visible_event, room_arguments::room_id};
use crate::{Homeserver, accounts::Authenticated};

/// The longest reason, in bytes.
const MAX_REASON: usize = 4 * 1024;

pub(super) fn router() -> Routes {
    Routes::new()
        .client("/rooms/{room_id}/report", post(room))
        .client("/rooms/{room_id}/report/{event_id}", post(event))
        .client("/users/{user_id}/report", post(user))
}

#[derive(Deserialize)]
struct Report {
    reason: Option<String>,
    score: Option<i64>,
}

/// What is reported.
#[derive(Default)]
struct Subject {
    room_id: Option<String>,
    event_id: Option<String>,
    user_id: Option<String>,
}

async fn keep(
    hs: &Homeserver,
    sender: &Authenticated,
    subject: Subject,
    report: Report,
) -> Result<Json<Value>, ApiError> {
    let reason = report.reason.unwrap_or_default();
    if reason.len() > MAX_REASON || reason.contains('\0') {
        return Err(ApiError::invalid_param(format!(
            "`reason` may have at most {MAX_REASON} bytes, none of them NUL."
        )));
    }
    let report = NewReport {
        reporter: sender.user_id.to_string(),
        room_id: subject.room_id,
        event_id: subject.event_id,
        user_id: subject.user_id,
        reason,
        // Spec: from -100 (most offensive) to 0; deprecated.
        score: report.score.map(|score| score.clamp(-100, 0)),
        reported_at: crate::accounts::unix_ms(&hs.clock),
    };
    let (room_id, event_id, user_id) = (report.room_id.clone(), report.event_id.clone(), report.user_id.clone());
    let number = hs.store.keep_report(report).await?;
    tracing::warn!(number, reporter = %sender.user_id, room_id, event_id, user_id, "something was reported");
    Ok(Json(json!({})))
}

/// `POST /_matrix/client/v3/rooms/{roomId}/report/{eventId}`
async fn event(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    Path((room, event)): Path<(String, String)>,
    JsonBody(report): JsonBody<Report>,
) -> Result<Json<Value>, ApiError> {
    let room_id = room_id(&room)?;
    let event_id =
        EventId::parse(&event).map_err(|e| ApiError::invalid_param(format!("{event:?} is not an event id: {e}.")))?;
    let (_, found) = visible_event(&hs, &room_id, &event_id, &sender).await?;
    let subject = Subject {
        room_id: Some(room_id.into()),
        event_id: Some(event_id.into()),
        user_id: Some(found.sender.to_string()),
    };
    keep(&hs, &sender, subject, report).await
}

/// `POST /_matrix/client/v3/rooms/{roomId}/report`
async fn room(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    Path(room): Path<String>,
    JsonBody(report): JsonBody<Report>,
) -> Result<Json<Value>, ApiError> {
    let room_id = room_id(&room)?;
    if hs.rooms.find(&room_id).await?.is_none() {
        return Err(ApiError::not_found("There is no such room on this server."));
    }
    let subject = Subject {
        room_id: Some(room_id.into()),
        ..Subject::default()
    };
    keep(&hs, &sender, subject, report).await
}

/// `POST /_matrix/client/v3/users/{userId}/report`
async fn user(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    Path(user_id): Path<OwnedUserId>,
    JsonBody(report): JsonBody<Report>,
) -> Result<Json<Value>, ApiError> {
    if !hs.accounts.exists(&user_id).await? {
        return Err(ApiError::not_found("There is no such user on this server."));
    }
    let subject = Subject {
        user_id: Some(user_id.into()),
        ..Subject::default()
    };
    keep(&hs, &sender, subject, report).await
}
