//! Reading history: pages of a timeline, one event, an event with its surroundings, what relates to it.

use std::sync::Arc;

use axum::{Router, extract::State};
use ruma::{
    UserId,
    api::{
        Direction,
        client::{
            context::get_context,
            filter::RoomEventFilter,
            message::get_message_events,
            relations::{
                get_relating_events, get_relating_events_with_rel_type,
                get_relating_events_with_rel_type_and_event_type,
            },
            room::get_room_event,
        },
    },
    events::StateEventType,
};
use serde_json::value::RawValue;
use storage::events::Direction as Order;

use super::{
    ApiError, Ruma, RumaResponse, RumaRouter as _,
    room_arguments::{parse_token, raw, token, viewer},
};
use crate::{
    Homeserver,
    accounts::Authenticated,
    room::{Event, Format, Room, RoomState, StateMap, Visibility},
    sync::EventFilter,
};

pub(super) fn router() -> Router<Homeserver> {
    Router::new()
        .ruma(messages)
        .ruma(context)
        .ruma(event)
        .ruma(relations)
        .ruma(relations_by_type)
        .ruma(relations_by_types)
}

/// The most events one answer has.
const MAX_LIMIT: usize = 1_000;

/// How many events one request looks at before it answers what it found: a filter that admits nearly
/// nothing must not read a whole room at once.
const MAX_LOOKED_AT: usize = 5_000;

fn limit(asked: ruma::UInt) -> usize {
    usize::try_from(u64::from(asked)).map_or(MAX_LIMIT, |asked| asked.min(MAX_LIMIT))
}

/// What one user may read of one room.
struct Reader<'a> {
    hs: &'a Homeserver,
    state: Arc<RoomState>,
    /// Where a former member's reading ends.
    until: Option<i64>,
    visibility: Visibility,
}

impl<'a> Reader<'a> {
    async fn new(hs: &'a Homeserver, room: &Room, user: &UserId) -> Result<Self, ApiError> {
        let (state, until) = hs.rooms.readable(room, user).await?;
        let visibility = hs.rooms.visibility(&state, user).await?;
        Ok(Self {
            hs,
            state,
            until,
            visibility,
        })
    }

    /// The newest position there is to read.
    fn newest(&self) -> i64 {
        self.until.unwrap_or_else(|| self.hs.store.positions().current())
    }

    /// At most `limit` visible, wanted events from a position on, and where the next page begins
    /// (`None` at the end of history).
    async fn page(
        &self,
        from: i64,
        to: Option<i64>,
        order: Order,
        limit: usize,
        wanted: &EventFilter,
    ) -> Result<(Vec<Arc<Event>>, Option<i64>), ApiError> {
        let mut found = Vec::new();
        let mut at = from;
        let mut looked_at = 0;
        let newest = self.newest();
        if wanted.is_closed() || !wanted.admits_room(&self.state.room_id) {
            return Ok((found, None));
        }
        while found.len() < limit && looked_at < MAX_LOOKED_AT {
            let (after, up_to) = match order {
                Order::Backward => (to.unwrap_or(0), at.min(newest)),
                Order::Forward => (at, to.unwrap_or(i64::MAX).min(newest)),
            };
            let size = (limit - found.len()).max(20);
            let events = self.hs.rooms.page(&self.state, after, up_to, order, size).await?;
            if events.is_empty() {
                return Ok((found, None));
            }
            looked_at += events.len();
            for event in events {
                at = match order {
                    Order::Backward => event.nid - 1,
                    Order::Forward => event.nid,
                };
                let has_url = || event.content_field::<String>("url").is_some();
                let admitted = wanted.admits(&event.kind.to_string(), &event.sender, has_url);
                if admitted && self.visibility.allows(&event) {
                    found.push(event);
                    if found.len() == limit {
                        break;
                    }
                }
            }
        }
        Ok((found, Some(at)))
    }

    async fn shown(&self, events: &[Arc<Event>], user: &Authenticated) -> Result<Vec<Box<RawValue>>, ApiError> {
        let events = self
            .hs
            .rooms
            .client_events(events, &viewer(user), Format::WithRoomId, Some(&self.visibility))
            .await?;
        Ok(events)
    }

    /// The member events of the senders of `events`, for clients that load members lazily.
    async fn senders(
        &self,
        map: &StateMap,
        events: &[Arc<Event>],
        user: &Authenticated,
    ) -> Result<Vec<Box<RawValue>>, ApiError> {
        let mut nids: Vec<i64> = events
            .iter()
            .filter_map(|event| map.get(&StateEventType::RoomMember, event.sender.as_str()))
            .map(|entry| entry.nid)
            .collect();
        nids.sort_unstable();
        nids.dedup();
        let members = self.hs.rooms.events(&self.state.room_id, &nids).await?;
        self.shown(&members, user).await
    }
}

async fn room_of(hs: &Homeserver, room_id: &ruma::RoomId) -> Result<Arc<Room>, ApiError> {
    hs.rooms
        .find(room_id)
        .await?
        .ok_or_else(|| ApiError::forbidden("You are not a member of this room."))
}

fn event_filter(definition: RoomEventFilter) -> Result<EventFilter, ApiError> {
    EventFilter::of_room(definition).map_err(|e| ApiError::invalid_param(format!("{e}.")))
}

/// `GET /_matrix/client/v3/rooms/{roomId}/messages`
///
/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidmessages>
async fn messages(
    State(hs): State<Homeserver>,
    request: Ruma<get_message_events::v3::Request>,
) -> Result<RumaResponse<get_message_events::v3::Response>, ApiError> {
    let user = request.sender().clone();
    let body = request.body;
    let lazy = !body.filter.lazy_load_options.is_disabled();
    let wanted = event_filter(body.filter)?;
    let room = room_of(&hs, &body.room_id).await?;
    let reader = Reader::new(&hs, &room, &user.user_id).await?;
    let order = match body.dir {
        Direction::Forward => Order::Forward,
        Direction::Backward => Order::Backward,
    };
    let from = match (body.from.as_deref(), order) {
        (Some(from), _) => parse_token(from)?,
        (None, Order::Backward) => reader.newest(),
        (None, Order::Forward) => 0,
    };
    let to = body.to.as_deref().map(parse_token).transpose()?;
    let (events, end) = reader.page(from, to, order, limit(body.limit), &wanted).await?;
    let mut response = get_message_events::v3::Response::new();
    response.start = token(from);
    response.end = end.map(token);
    response.chunk = raw(reader.shown(&events, &user).await?);
    if lazy {
        // Who has left sees the members as they were then.
        let members = match reader.until {
            Some(position) => hs.rooms.state_at(&reader.state, position).await?,
            None => reader.state.map.clone(),
        };
        response.state = raw(reader.senders(&members, &events, &user).await?);
    }
    Ok(RumaResponse(response))
}

/// `GET /_matrix/client/v3/rooms/{roomId}/event/{eventId}`
///
/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomideventeventid>
async fn event(
    State(hs): State<Homeserver>,
    request: Ruma<get_room_event::v3::Request>,
) -> Result<RumaResponse<get_room_event::v3::Response>, ApiError> {
    let user = request.sender();
    let (reader, event) = visible_event(&hs, &request.body.room_id, &request.body.event_id, user).await?;
    let mut shown = reader.shown(&[event], user).await?;
    let event = shown
        .pop()
        .ok_or_else(|| ApiError::internal("an event was not shown"))?;
    Ok(RumaResponse(get_room_event::v3::Response::new(
        ruma::serde::Raw::from_json(event),
    )))
}

/// An event that `user` may see. Whether it is absent or hidden is not told.
async fn visible_event<'a>(
    hs: &'a Homeserver,
    room_id: &ruma::RoomId,
    event_id: &ruma::EventId,
    user: &Authenticated,
) -> Result<(Reader<'a>, Arc<Event>), ApiError> {
    let absent = || ApiError::not_found("There is no such event, or you may not see it.");
    let room = hs.rooms.find(room_id).await?.ok_or_else(absent)?;
    let reader = match Reader::new(hs, &room, &user.user_id).await {
        Ok(reader) => reader,
        Err(e) if e.errcode() == "M_FORBIDDEN" => return Err(absent()),
        Err(e) => return Err(e),
    };
    let event = hs.rooms.event(&reader.state, event_id).await?;
    let event = event
        .filter(|event| reader.visibility.allows(event))
        .ok_or_else(absent)?;
    Ok((reader, event))
}

/// `GET /_matrix/client/v3/rooms/{roomId}/context/{eventId}`
///
/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv3roomsroomidcontexteventid>
async fn context(
    State(hs): State<Homeserver>,
    request: Ruma<get_context::v3::Request>,
) -> Result<RumaResponse<get_context::v3::Response>, ApiError> {
    let user = request.sender().clone();
    let body = request.body;
    let lazy = !body.filter.lazy_load_options.is_disabled();
    let wanted = event_filter(body.filter)?;
    let (reader, event) = visible_event(&hs, &body.room_id, &body.event_id, &user).await?;
    let around = limit(body.limit);
    let (half, rest) = (around / 2, around - around / 2);
    let (before, start) = reader.page(event.nid - 1, None, Order::Backward, half, &wanted).await?;
    let (after, end) = reader.page(event.nid, None, Order::Forward, rest, &wanted).await?;
    let last = after.last().map_or(event.nid, |event| event.nid);
    let map = hs.rooms.state_at(&reader.state, last).await?;
    let mut response = get_context::v3::Response::new();
    let first = before.last().map_or(event.nid, |event| event.nid);
    response.start = Some(token(start.unwrap_or(first - 1)));
    response.end = Some(token(end.unwrap_or(last)));
    let shown: Vec<Arc<Event>> = before.iter().chain([&event]).chain(&after).cloned().collect();
    response.state = if lazy {
        let others = hs
            .rooms
            .state_events(&body.room_id, &map, |kind, _, _| *kind != StateEventType::RoomMember)
            .await?;
        let mut state = reader.shown(&others, &user).await?;
        state.extend(reader.senders(&map, &shown, &user).await?);
        raw(state)
    } else {
        let all = hs.rooms.state_events(&body.room_id, &map, |_, _, _| true).await?;
        raw(reader.shown(&all, &user).await?)
    };
    response.events_before = raw(reader.shown(&before, &user).await?);
    response.event = raw(reader.shown(&[event], &user).await?).pop();
    response.events_after = raw(reader.shown(&after, &user).await?);
    Ok(RumaResponse(response))
}

/// What of the events that relate to one is asked for.
struct Relations<'a> {
    room_id: &'a ruma::RoomId,
    event_id: &'a ruma::EventId,
    rel_type: Option<String>,
    kind: Option<String>,
    from: Option<&'a str>,
    to: Option<&'a str>,
    dir: Direction,
    limit: Option<ruma::UInt>,
}

struct Related {
    chunk: Vec<Box<RawValue>>,
    next_batch: Option<String>,
    prev_batch: Option<String>,
}

async fn relating(hs: &Homeserver, user: &Authenticated, asked: Relations<'_>) -> Result<Related, ApiError> {
    let (reader, _) = visible_event(hs, asked.room_id, asked.event_id, user).await?;
    let order = match asked.dir {
        Direction::Forward => Order::Forward,
        Direction::Backward => Order::Backward,
    };
    let limit = limit(asked.limit.unwrap_or(ruma::uint!(5))).max(1);
    let from = asked.from.map(parse_token).transpose()?;
    let to = asked.to.map(parse_token).transpose()?;
    let (mut after, mut up_to) = match order {
        Order::Backward => (to.unwrap_or(0), from.unwrap_or(i64::MAX).min(reader.newest())),
        Order::Forward => (from.unwrap_or(0), to.unwrap_or(i64::MAX).min(reader.newest())),
    };
    let mut found = Vec::new();
    let mut looked_at = 0;
    let mut more = true;
    while more && found.len() < limit && looked_at < MAX_LOOKED_AT {
        let size = i64::try_from(limit.max(50)).unwrap_or(i64::MAX);
        let relations = hs
            .store
            .relations(
                reader.state.room_nid,
                asked.event_id.as_str(),
                (after, up_to),
                order,
                size,
            )
            .await?;
        more = i64::try_from(relations.len()).unwrap_or(0) == size;
        looked_at += relations.len();
        let nids: Vec<i64> = relations
            .iter()
            .filter(|(_, rel_type)| asked.rel_type.as_ref().is_none_or(|wanted| wanted == rel_type))
            .map(|(nid, _)| *nid)
            .collect();
        if let Some((last, _)) = relations.last() {
            match order {
                Order::Backward => up_to = last - 1,
                Order::Forward => after = *last,
            }
        }
        for event in hs.rooms.events(asked.room_id, &nids).await? {
            let of_kind = asked.kind.as_ref().is_none_or(|kind| event.kind.to_string() == *kind);
            if !of_kind || event.redacted_by.is_some() || !reader.visibility.allows(&event) {
                continue;
            }
            if found.len() == limit {
                more = true;
                break;
            }
            found.push(event);
        }
    }
    let last = found.last().map(|event| event.nid);
    let next = match (order, last) {
        (_, None) => None,
        (Order::Backward, Some(nid)) => Some(token(nid - 1)),
        (Order::Forward, Some(nid)) => Some(token(nid)),
    };
    Ok(Related {
        next_batch: next.filter(|_| more),
        prev_batch: asked.from.map(str::to_owned),
        chunk: reader.shown(&found, user).await?,
    })
}

/// `GET /_matrix/client/v1/rooms/{roomId}/relations/{eventId}`
///
/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1roomsroomidrelationseventid>
async fn relations(
    State(hs): State<Homeserver>,
    request: Ruma<get_relating_events::v1::Request>,
) -> Result<RumaResponse<get_relating_events::v1::Response>, ApiError> {
    let body = &request.body;
    let asked = Relations {
        room_id: &body.room_id,
        event_id: &body.event_id,
        rel_type: None,
        kind: None,
        from: body.from.as_deref(),
        to: body.to.as_deref(),
        dir: body.dir,
        limit: body.limit,
    };
    let related = relating(&hs, request.sender(), asked).await?;
    let mut response = get_relating_events::v1::Response::new(raw(related.chunk));
    (response.next_batch, response.prev_batch) = (related.next_batch, related.prev_batch);
    Ok(RumaResponse(response))
}

/// `GET /_matrix/client/v1/rooms/{roomId}/relations/{eventId}/{relType}`
///
/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1roomsroomidrelationseventidreltype>
async fn relations_by_type(
    State(hs): State<Homeserver>,
    request: Ruma<get_relating_events_with_rel_type::v1::Request>,
) -> Result<RumaResponse<get_relating_events_with_rel_type::v1::Response>, ApiError> {
    let body = &request.body;
    let asked = Relations {
        room_id: &body.room_id,
        event_id: &body.event_id,
        rel_type: Some(body.rel_type.to_string()),
        kind: None,
        from: body.from.as_deref(),
        to: body.to.as_deref(),
        dir: body.dir,
        limit: body.limit,
    };
    let related = relating(&hs, request.sender(), asked).await?;
    let mut response = get_relating_events_with_rel_type::v1::Response::new(raw(related.chunk));
    (response.next_batch, response.prev_batch) = (related.next_batch, related.prev_batch);
    Ok(RumaResponse(response))
}

/// `GET /_matrix/client/v1/rooms/{roomId}/relations/{eventId}/{relType}/{eventType}`
///
/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1roomsroomidrelationseventidreltypeeventtype>
async fn relations_by_types(
    State(hs): State<Homeserver>,
    request: Ruma<get_relating_events_with_rel_type_and_event_type::v1::Request>,
) -> Result<RumaResponse<get_relating_events_with_rel_type_and_event_type::v1::Response>, ApiError> {
    let body = &request.body;
    let asked = Relations {
        room_id: &body.room_id,
        event_id: &body.event_id,
        rel_type: Some(body.rel_type.to_string()),
        kind: Some(body.event_type.to_string()),
        from: body.from.as_deref(),
        to: body.to.as_deref(),
        dir: body.dir,
        limit: body.limit,
    };
    let related = relating(&hs, request.sender(), asked).await?;
    let mut response = get_relating_events_with_rel_type_and_event_type::v1::Response::new(raw(related.chunk));
    (response.next_batch, response.prev_batch) = (related.next_batch, related.prev_batch);
    Ok(RumaResponse(response))
}
