//! What relates to an event, and the threads of a room.

use axum::{
    extract::State,
    response::{IntoResponse as _, Response},
    routing::get,
};
use ruma::{
    EventId,
    api::{Direction, client::threads::get_threads},
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use storage::events::Direction as Order;

use super::{
    ApiError, Auth, Routes, Ruma, RumaResponse,
    arguments::{Path, Query},
    history::{MAX_LOOKED_AT, Reader, limit, room_of, visible_event},
    room_arguments::{parse_token, raw, room_id, token},
};
use crate::{Homeserver, accounts::Authenticated, room::Event};

/// How far `recurse` follows relations to relations.
/// Spec: "Homeservers SHOULD traverse at least 3 levels of relationships."
const LEVELS: i64 = 3;

/// Events in an answer, when the client names no number.
const DEFAULT_LIMIT: usize = 5;

pub(super) fn router() -> Routes {
    let mut routes = Routes::new().ruma(threads);
    for generation in ["v1", "unstable"] {
        let path = format!("/_matrix/client/{generation}/rooms/{{room_id}}/relations/{{event_id}}");
        routes = routes
            .route(&path, get(relations))
            .route(&format!("{path}/{{rel_type}}"), get(relations))
            .route(&format!("{path}/{{rel_type}}/{{event_type}}"), get(relations));
    }
    routes
}

#[derive(Deserialize)]
struct Asked {
    room_id: String,
    event_id: String,
    rel_type: Option<String>,
    event_type: Option<String>,
}

impl Asked {
    fn wants_type(&self, rel_type: &str) -> bool {
        self.rel_type.as_ref().is_none_or(|wanted| wanted == rel_type)
    }

    fn wants(&self, event: &Event) -> bool {
        let kind = || event.kind.to_string();
        event.redacted_by.is_none() && self.event_type.as_ref().is_none_or(|wanted| *wanted == kind())
    }
}

#[derive(Deserialize)]
struct Paging {
    from: Option<String>,
    to: Option<String>,
    dir: Option<Direction>,
    limit: Option<ruma::UInt>,
    recurse: Option<bool>,
}

#[derive(Serialize)]
struct Related {
    chunk: Vec<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next_batch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_batch: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    recursion_depth: Option<i64>,
}

/// `GET /_matrix/client/v1/rooms/{roomId}/relations/{eventId}`, `…/{relType}` and `…/{relType}/{eventType}`
///
/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1roomsroomidrelationseventid>
async fn relations(
    State(hs): State<Homeserver>,
    Auth(sender): Auth,
    Path(asked): Path<Asked>,
    Query(paging): Query<Paging>,
) -> Result<Response, ApiError> {
    let room_id = room_id(&asked.room_id)?;
    let event_id = EventId::parse(&asked.event_id)
        .map_err(|e| ApiError::invalid_param(format!("{:?} is not an event id: {e}.", asked.event_id)))?;
    let (reader, parent) = visible_event(&hs, &room_id, &event_id, &sender).await?;
    let related = related(&reader, &parent, &sender, &asked, &paging).await?;
    Ok(axum::Json(related).into_response())
}

async fn related(
    reader: &Reader<'_>,
    parent: &Event,
    sender: &Authenticated,
    asked: &Asked,
    paging: &Paging,
) -> Result<Related, ApiError> {
    let order = match paging.dir {
        Some(Direction::Forward) => Order::Forward,
        Some(Direction::Backward) | None => Order::Backward,
    };
    let limit = paging.limit.map_or(DEFAULT_LIMIT, limit).max(1);
    let from = paging.from.as_deref().map(parse_token).transpose()?;
    let to = paging.to.as_deref().map(parse_token).transpose()?;
    let (mut after, mut up_to) = match order {
        Order::Backward => (to.unwrap_or(0), from.unwrap_or(i64::MAX).min(reader.newest())),
        Order::Forward => (from.unwrap_or(0), to.unwrap_or(i64::MAX).min(reader.newest())),
    };
    let levels = if paging.recurse == Some(true) { LEVELS } else { 1 };
    let (store, room_nid, target) = (&reader.hs.store, reader.state.room_nid, parent.event_id.as_str());
    let size = i64::try_from(limit.max(50)).unwrap_or(i64::MAX);
    let mut found = Vec::new();
    let mut looked_at = 0;
    let mut more = true;
    while more && found.len() < limit && looked_at < MAX_LOOKED_AT {
        let range = (after, up_to);
        let relations = if levels == 1 {
            store.relations(room_nid, target, range, order, size).await?
        } else {
            store.relations_below(room_nid, target, range, order, levels).await?
        };
        more = levels == 1 && i64::try_from(relations.len()).unwrap_or(0) == size;
        looked_at += relations.len();
        if let Some((last, _)) = relations.last() {
            match order {
                Order::Backward => up_to = last - 1,
                Order::Forward => after = *last,
            }
        }
        let wanted = relations.iter().filter(|(_, rel_type)| asked.wants_type(rel_type));
        let nids: Vec<i64> = wanted.map(|(nid, _)| *nid).collect();
        for event in reader.hs.rooms.events(&reader.state.room_id, &nids).await? {
            if !asked.wants(&event) || !reader.visibility.allows(&event) {
                continue;
            }
            if found.len() == limit {
                more = true;
                break;
            }
            found.push(event);
        }
    }
    let next = match (order, found.last()) {
        (Order::Backward, Some(last)) if found.len() == limit => last.nid - 1,
        (Order::Forward, Some(last)) if found.len() == limit => last.nid,
        // So much was passed over that the answer comes short: the next page begins where looking stopped.
        (Order::Backward, _) => up_to,
        (Order::Forward, _) => after,
    };
    Ok(Related {
        next_batch: more.then(|| token(next)),
        prev_batch: paging.from.clone(),
        recursion_depth: paging.recurse.map(|_| levels),
        chunk: reader.shown(&found, sender).await?,
    })
}

/// `GET /_matrix/client/v1/rooms/{roomId}/threads`
///
/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1roomsroomidthreads>
async fn threads(
    State(hs): State<Homeserver>,
    request: Ruma<get_threads::v1::Request>,
) -> Result<RumaResponse<get_threads::v1::Response>, ApiError> {
    let sender = request.sender().clone();
    let body = request.body;
    let participant = match body.include {
        get_threads::v1::IncludeThreads::All => None,
        get_threads::v1::IncludeThreads::Participated => Some(sender.user_id.as_str()),
        ref other => {
            return Err(ApiError::invalid_param(format!(
                "`include` cannot be {}.",
                other.as_str()
            )));
        }
    };
    let room = room_of(&hs, &body.room_id).await?;
    let reader = Reader::new(&hs, &room, &sender.user_id).await?;
    let limit = limit(body.limit.unwrap_or(ruma::uint!(20))).max(1);
    let mut before = body.from.as_deref().map(parse_token).transpose()?.unwrap_or(i64::MAX);
    let size = i64::try_from(limit).unwrap_or(i64::MAX);
    let mut roots = Vec::new();
    let mut looked_at = 0;
    let mut more = true;
    while more && roots.len() < limit && looked_at < MAX_LOOKED_AT {
        let range = (before, reader.newest());
        let listed = hs
            .store
            .threads(reader.state.room_nid, range, participant, size)
            .await?;
        more = i64::try_from(listed.len()).unwrap_or(0) == size;
        looked_at += listed.len();
        let nids: Vec<i64> = listed.iter().map(|(root, _)| *root).collect();
        let events = hs.rooms.events(&reader.state.room_id, &nids).await?;
        for (root, newest) in listed {
            if roots.len() == limit {
                more = true;
                break;
            }
            before = newest;
            let root = events.iter().find(|event| event.nid == root);
            roots.extend(root.filter(|root| reader.visibility.allows(root)).cloned());
        }
    }
    let mut response = get_threads::v1::Response::new(raw(reader.shown(&roots, &sender).await?));
    response.next_batch = more.then(|| token(before));
    Ok(RumaResponse(response))
}
