//! Reading history: pages of a timeline, one event, an event with its surroundings.

use std::sync::Arc;

use axum::extract::State;
use ruma::{
    api::{
        Direction,
        client::{context::get_context, filter::RoomEventFilter, message::get_message_events, room::get_room_event},
    },
    events::StateEventType,
};
use storage::events::Direction as Order;

use super::{
    ApiError, Routes, Ruma, RumaResponse,
    history::{Reader, limit, room_of, visible_event},
    room_arguments::{parse_token, raw, token},
};
use crate::{Homeserver, room::Event, sync::EventFilter};

pub(super) fn router() -> Routes {
    Routes::new().ruma(messages).ruma(context).ruma(event)
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
