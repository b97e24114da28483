//! What a room shows to who is not in it: its summary, and the tree of a space.
//! Spec: client-server API, "Room previews" and "Spaces".

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use axum::{Json, extract::State, routing::get};
use ruma::{OwnedRoomId, OwnedRoomOrAliasId, RoomId, UserId, events::StateEventType};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    ApiError, Auth, OptionalAuth, Routes,
    arguments::{Path, Query},
    room_arguments::{resolve, room_id},
};
use crate::{
    Homeserver,
    room::{Event, Membership, Room, RoomState},
};

/// Rooms of a space in one answer, if the client names no number, and at most.
const DEFAULT_LIMIT: usize = 50;
const MAX_LIMIT: usize = 200;
/// Rooms of one space that are walked, whatever the page.
const MAX_WALKED: usize = 5_000;
/// The longest `order` of a child that counts, in characters.
const MAX_ORDER: usize = 50;

pub(super) fn router() -> Routes {
    let mut routes = Routes::new()
        .route("/_matrix/client/v1/room_summary/{room_id_or_alias}", get(summary))
        .route(
            "/_matrix/client/unstable/im.nheko.summary/rooms/{room_id_or_alias}/summary",
            get(summary),
        );
    for generation in ["v1", "unstable/org.matrix.msc2946"] {
        let path = format!("/_matrix/client/{generation}/rooms/{{room_id}}/hierarchy");
        routes = routes.route(&path, get(hierarchy));
    }
    routes
}

/// The rooms whose members may join a restricted room.
fn allowed_rooms(state: &RoomState) -> Vec<OwnedRoomId> {
    if !matches!(state.join_rule().as_str(), "restricted" | "knock_restricted") {
        return Vec::new();
    }
    let rules = state
        .pinned(&StateEventType::RoomJoinRules)
        .and_then(|event| event.content_field::<Vec<Value>>("allow"))
        .unwrap_or_default();
    rules
        .iter()
        .filter(|rule| rule["type"] == "m.room_membership")
        .filter_map(|rule| OwnedRoomId::try_from(rule["room_id"].as_str()?).ok())
        .collect()
}

/// Whether somebody may know of a room: who is in it or may come in, and everybody where it can be read or joined.
async fn may_know(hs: &Homeserver, state: &RoomState, user: Option<&UserId>) -> Result<bool, ApiError> {
    use ruma::events::room::history_visibility::HistoryVisibility;
    if matches!(state.join_rule().as_str(), "public" | "knock" | "knock_restricted")
        || state.history_visibility() == HistoryVisibility::WorldReadable
    {
        return Ok(true);
    }
    let Some(user) = user else { return Ok(false) };
    if matches!(state.membership(user), Membership::Join | Membership::Invite) {
        return Ok(true);
    }
    for room_id in allowed_rooms(state) {
        if let Some(room) = hs.rooms.find(&room_id).await?
            && room.state().is_joined(user)
        {
            return Ok(true);
        }
    }
    Ok(false)
}

fn described(hs: &Homeserver, state: &RoomState) -> Result<Map<String, Value>, ApiError> {
    let described = serde_json::to_value(hs.rooms.described(state)).map_err(ApiError::internal)?;
    let Value::Object(mut described) = described else {
        return Err(ApiError::internal("a room's description is no object"));
    };
    described.insert("room_version".to_owned(), state.version.as_str().into());
    // Said also where it is what the directory takes for granted.
    described.insert("join_rule".to_owned(), state.join_rule().into());
    let allowed = allowed_rooms(state);
    if !allowed.is_empty() {
        described.insert("allowed_room_ids".to_owned(), json!(allowed));
    }
    let encryption = state.pinned(&StateEventType::RoomEncryption);
    if let Some(algorithm) = encryption.and_then(|event| event.content_field::<String>("algorithm")) {
        described.insert("encryption".to_owned(), algorithm.into());
    }
    Ok(described)
}

/// `GET /_matrix/client/v1/room_summary/{roomIdOrAlias}`
///
/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1room_summaryroomidoralias>
async fn summary(
    State(hs): State<Homeserver>,
    OptionalAuth(sender): OptionalAuth,
    Path(id): Path<OwnedRoomOrAliasId>,
) -> Result<Json<Value>, ApiError> {
    // Whether it is absent or hidden is not told.
    let unknown = || ApiError::not_found("There is no such room, or you may not know of it.");
    let room_id = resolve(&hs, &id).await.map_err(|_| unknown())?;
    let room = hs.rooms.find(&room_id).await?.ok_or_else(unknown)?;
    let state = room.state();
    let user = sender.as_ref().map(|sender| &*sender.user_id);
    if !may_know(&hs, &state, user).await? {
        return Err(unknown());
    }
    let mut answer = described(&hs, &state)?;
    if let Some(user) = user {
        answer.insert("membership".to_owned(), state.membership(user).as_str().into());
    }
    Ok(Json(answer.into()))
}

#[derive(Deserialize)]
struct Walk {
    from: Option<String>,
    limit: Option<ruma::UInt>,
    max_depth: Option<ruma::UInt>,
    #[serde(default)]
    suggested_only: bool,
}

impl Walk {
    /// Where a page begins. A token belongs to the parameters it was given for.
    fn skip(&self) -> Result<usize, ApiError> {
        let Some(from) = &self.from else { return Ok(0) };
        let skip = from.strip_suffix(&self.suffix()).and_then(|skip| skip.parse().ok());
        skip.ok_or_else(|| ApiError::invalid_param("`from` is not a token that this server gave for such a request."))
    }

    fn suffix(&self) -> String {
        let depth = self
            .max_depth
            .map_or_else(|| "all".to_owned(), |depth| depth.to_string());
        format!("-{depth}-{}", self.suggested_only)
    }
}

/// `GET /_matrix/client/v1/rooms/{roomId}/hierarchy`
///
/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1roomsroomidhierarchy>
async fn hierarchy(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    Path(root): Path<String>,
    Query(walk): Query<Walk>,
) -> Result<Json<Value>, ApiError> {
    let root = room_id(&root)?;
    let skip = walk.skip()?;
    let limit = walk
        .limit
        .map_or(DEFAULT_LIMIT, |limit| {
            usize::try_from(u64::from(limit)).unwrap_or(MAX_LIMIT)
        })
        .clamp(1, MAX_LIMIT);
    let max_depth = walk.max_depth.map_or(u64::MAX, u64::from);
    let mut seen = HashSet::from([root.clone()]);
    // Depth first, in the order the children stand in: the next room is the last of the stack.
    let mut stack = vec![(root.clone(), 0)];
    let (mut walked, mut rooms, mut more) = (0, Vec::new(), false);
    while let Some((room_id, depth)) = stack.pop() {
        let Some(room) = known(&hs, &room_id, &sender.user_id).await? else {
            if room_id == root {
                return Err(ApiError::forbidden("There is no such room, or you may not know of it."));
            }
            continue;
        };
        if rooms.len() == limit || walked == MAX_WALKED {
            more = rooms.len() == limit;
            break;
        }
        let state = room.state();
        let children = children(&hs, &state, walk.suggested_only).await?;
        if depth < max_depth {
            for (child, _) in children.iter().rev() {
                if seen.insert(child.clone()) {
                    stack.push((child.clone(), depth + 1));
                }
            }
        }
        if walked >= skip {
            let mut shown = described(&hs, &state)?;
            let children: Vec<Value> = children.iter().map(|(_, event)| stripped(event)).collect();
            shown.insert("children_state".to_owned(), children.into());
            rooms.push(Value::from(shown));
        }
        walked += 1;
    }
    let mut answer = Map::from_iter([("rooms".to_owned(), rooms.into())]);
    if more {
        answer.insert("next_batch".to_owned(), format!("{walked}{}", walk.suffix()).into());
    }
    Ok(Json(answer.into()))
}

async fn known(hs: &Homeserver, room_id: &RoomId, user: &UserId) -> Result<Option<Arc<Room>>, ApiError> {
    let Some(room) = hs.rooms.find(room_id).await? else {
        return Ok(None);
    };
    Ok(may_know(hs, &room.state(), Some(user)).await?.then_some(room))
}

/// The children of a space in their order: those with an `order` first, then the older ones.
/// Spec: "Ordering of children within a space".
async fn children(
    hs: &Homeserver,
    state: &RoomState,
    suggested_only: bool,
) -> Result<Vec<(OwnedRoomId, Arc<Event>)>, ApiError> {
    let room_type = state
        .pinned(&StateEventType::RoomCreate)
        .and_then(|create| create.content_field::<String>("type"));
    if room_type.as_deref() != Some("m.space") {
        return Ok(Vec::new());
    }
    let events = hs
        .rooms
        .state_events(&state.room_id, &state.map, |kind, _, _| {
            *kind == StateEventType::SpaceChild
        })
        .await?;
    let mut children = Vec::new();
    for event in events {
        let content: HashMap<String, Value> = serde_json::from_str(event.content.get()).unwrap_or_default();
        let has_servers = content
            .get("via")
            .and_then(Value::as_array)
            .is_some_and(|via| !via.is_empty());
        let is_suggested = content.get("suggested") == Some(&Value::Bool(true));
        let child = event
            .state_key
            .as_deref()
            .and_then(|key| OwnedRoomId::try_from(key).ok());
        let Some(child) = child.filter(|_| has_servers && (is_suggested || !suggested_only)) else {
            continue;
        };
        let order = content.get("order").and_then(Value::as_str);
        let order = order.filter(|order| order.len() <= MAX_ORDER && order.bytes().all(|b| (0x20..=0x7e).contains(&b)));
        let key = (
            order.is_none(),
            order.unwrap_or_default().to_owned(),
            event.origin_server_ts,
        );
        children.push((key, child, event));
    }
    children.sort_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1)));
    Ok(children.into_iter().map(|(_, child, event)| (child, event)).collect())
}

fn stripped(event: &Event) -> Value {
    json!({
        "type": event.kind.to_string(),
        "sender": event.sender,
        "state_key": event.state_key,
        "content": event.content,
        "origin_server_ts": event.origin_server_ts,
    })
}
