//! Sending: message events, state events, redactions. One shape for all three: read the request,
//! hand a proposal to the room, answer the event id.

use axum::{
    Json,
    extract::{RawQuery, State},
    response::{IntoResponse as _, Response},
    routing::put,
};
use ruma::{
    CanonicalJsonObject, CanonicalJsonValue, EventId,
    events::{StateEventType, TimelineEventType},
};
use serde::Deserialize;
use serde_json::json;

use super::{
    ApiError, Auth, Routes,
    arguments::Path,
    room_arguments::{ContentBody, room_id},
};
use crate::{
    Homeserver,
    accounts::Authenticated,
    calls::delayed::{Request, delay_of},
    room::{Proposal, Room, Transaction},
};

pub(super) fn router() -> Routes {
    Routes::new()
        .client("/rooms/{room_id}/send/{event_type}/{txn_id}", put(send_message))
        .client("/rooms/{room_id}/redact/{event_id}/{txn_id}", put(redact))
}

#[derive(Debug, Deserialize)]
struct SendPath {
    room_id: String,
    event_type: String,
    txn_id: String,
}

/// `/rooms/{room_id}/state/{event_type}/{state_key}`
#[derive(Debug, Deserialize)]
pub(super) struct StatePath {
    pub(super) room_id: String,
    pub(super) event_type: String,
    #[serde(default)]
    pub(super) state_key: String,
}

fn transaction(sender: &Authenticated, txn_id: String) -> Option<Transaction> {
    Some(Transaction {
        device_id: sender.device_id.to_string(),
        txn_id,
    })
}

fn answer(event_id: &EventId) -> Response {
    Json(json!({ "event_id": event_id })).into_response()
}

/// `PUT /_matrix/client/v3/rooms/{roomId}/send/{eventType}/{txnId}`
///
/// <https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3roomsroomidsendeventtypetxnid>
async fn send_message(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    Path(path): Path<SendPath>,
    RawQuery(query): RawQuery,
    ContentBody(content): ContentBody,
) -> Result<Response, ApiError> {
    let room_id = room_id(&path.room_id)?;
    let room = hs.rooms.get(&room_id).await.map_err(hide_absence)?;
    if let Some(delay_ms) = delay_of(query.as_deref())? {
        let request = Request {
            room_id: &room_id,
            event_type: &path.event_type,
            state_key: None,
            content: &content,
            delay_ms,
            txn_id: Some(&path.txn_id),
        };
        return delay(&hs, &sender, &room, &request).await;
    }
    let kind = TimelineEventType::from(path.event_type);
    check_relation(&hs, &room, &sender, (&kind, &content), &path.txn_id).await?;
    let mut proposal = Proposal::message(&sender.user_id, kind.clone(), content);
    if kind == TimelineEventType::RoomRedaction {
        proposal.redacts = redacts(&proposal.content)?;
    }
    proposal.transaction = transaction(&sender, path.txn_id);
    let accepted = hs.rooms.propose(&room, proposal).await?;
    hs.note_activity(&sender.user_id).await?;
    Ok(answer(&accepted.event_id))
}

/// What relates to another event has to make sense there: a thread begins at an event that relates to nothing, and
/// nobody reacts twice in the same way.
/// Spec: client-server API, "Validation of `m.thread` relationships" and "Avoiding duplicate annotations".
async fn check_relation(
    hs: &Homeserver,
    room: &Room,
    sender: &Authenticated,
    (kind, content): (&TimelineEventType, &CanonicalJsonObject),
    txn_id: &str,
) -> Result<(), ApiError> {
    let text = |object: &CanonicalJsonObject, field: &str| object.get(field)?.as_str().map(str::to_owned);
    let Some(relation) = content.get("m.relates_to").and_then(|relation| relation.as_object()) else {
        return Ok(());
    };
    let target = text(relation, "event_id").and_then(|id| EventId::parse(id).ok());
    let (Some(rel_type), Some(target)) = (text(relation, "rel_type"), target) else {
        return Ok(());
    };
    let state = room.state();
    match rel_type.as_str() {
        "m.thread" => {
            let root = hs.rooms.event(&state, &target).await?;
            if root.is_some_and(|root| root.relation().is_some()) {
                return Err(ApiError::new(
                    http::StatusCode::BAD_REQUEST,
                    "M_UNKNOWN",
                    "A thread cannot begin at an event that itself relates to another.",
                ));
            }
        }
        "m.annotation" => {
            let key = text(relation, "key");
            let same = hs
                .store
                .relations_by(state.room_nid, target.as_str(), &rel_type, sender.user_id.as_str())
                .await?;
            for event in hs.rooms.events(&state.room_id, &same).await? {
                let relation: Option<CanonicalJsonObject> = event.content_field("m.relates_to");
                let is_repetition = event
                    .transaction
                    .as_ref()
                    .is_some_and(|(device, txn)| **device == *sender.device_id.as_str() && **txn == *txn_id);
                let is_same = event.kind == *kind && relation.and_then(|relation| text(&relation, "key")) == key;
                if is_same && event.redacted_by.is_none() && !is_repetition {
                    return Err(ApiError::new(
                        http::StatusCode::BAD_REQUEST,
                        "M_DUPLICATE_ANNOTATION",
                        "You have reacted to this in the same way already.",
                    ));
                }
            }
        }
        _ => {}
    }
    Ok(())
}

#[derive(Debug, Deserialize)]
struct RedactPath {
    room_id: String,
    event_id: String,
    txn_id: String,
}

/// `PUT /_matrix/client/v3/rooms/{roomId}/redact/{eventId}/{txnId}`
///
/// <https://spec.matrix.org/v1.19/client-server-api/#put_matrixclientv3roomsroomidredacteventidtxnid>
async fn redact(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    Path(path): Path<RedactPath>,
    ContentBody(body): ContentBody,
) -> Result<Response, ApiError> {
    let room_id = room_id(&path.room_id)?;
    let target = EventId::parse(&path.event_id)
        .map_err(|e| ApiError::invalid_param(format!("{:?} is not an event id: {e}.", path.event_id)))?;
    let mut content = CanonicalJsonObject::new();
    match body.get("reason") {
        Some(reason @ CanonicalJsonValue::String(_)) => {
            content.insert("reason".to_owned(), reason.clone());
        }
        Some(_) => return Err(ApiError::bad_json("`reason` is not a string.")),
        None => {}
    }
    let mut proposal = Proposal::message(&sender.user_id, TimelineEventType::RoomRedaction, content);
    proposal.redacts = Some(target);
    proposal.transaction = transaction(&sender, path.txn_id);
    let room = hs.rooms.get(&room_id).await.map_err(hide_absence)?;
    let accepted = hs.rooms.propose(&room, proposal).await?;
    hs.note_activity(&sender.user_id).await?;
    Ok(answer(&accepted.event_id))
}

fn redacts(content: &CanonicalJsonObject) -> Result<Option<ruma::OwnedEventId>, ApiError> {
    let Some(target) = content.get("redacts").and_then(|target| target.as_str()) else {
        return Err(ApiError::bad_json(
            "A redaction names the event it redacts in `redacts`.",
        ));
    };
    EventId::parse(target)
        .map(Some)
        .map_err(|e| ApiError::invalid_param(format!("{target:?} is not an event id: {e}.")))
}

/// Puts a state event into a room, after the checks that go beyond authorisation.
pub(super) async fn put_state(
    hs: &Homeserver,
    sender: &Authenticated,
    path: StatePath,
    query: Option<&str>,
    content: CanonicalJsonObject,
) -> Result<Response, ApiError> {
    let room_id = room_id(&path.room_id)?;
    let room = hs.rooms.get(&room_id).await.map_err(hide_absence)?;
    if let Some(delay_ms) = delay_of(query)? {
        let request = Request {
            room_id: &room_id,
            event_type: &path.event_type,
            state_key: Some(&path.state_key),
            content: &content,
            delay_ms,
            txn_id: None,
        };
        return delay(hs, sender, &room, &request).await;
    }
    let kind = StateEventType::from(path.event_type);
    if kind == StateEventType::RoomCreate {
        return Err(ApiError::forbidden("A room is created once."));
    }
    let kind = TimelineEventType::from(kind);
    let proposal = Proposal::state(&sender.user_id, kind, path.state_key, content);
    let accepted = hs.rooms.propose(&room, proposal).await?;
    hs.note_activity(&sender.user_id).await?;
    Ok(answer(&accepted.event_id))
}

/// MSC4140: schedules an event of a member instead of sending it.
async fn delay(
    hs: &Homeserver,
    sender: &Authenticated,
    room: &Room,
    request: &Request<'_>,
) -> Result<Response, ApiError> {
    if !room.state().is_joined(&sender.user_id) {
        return Err(ApiError::forbidden("You are not in this room."));
    }
    let delay_id = hs.calls.delayed.schedule(sender, request).await?;
    Ok(Json(json!({ "delay_id": delay_id })).into_response())
}

/// Who may not be in a room may not learn either whether it exists.
fn hide_absence(e: crate::room::Error) -> ApiError {
    match e {
        crate::room::Error::NotFound(_) => ApiError::forbidden("You are not in this room."),
        other => other.into(),
    }
}
