//! The event at a moment.
//! Spec: client-server API, "Jump to date" (`timestamp_to_event`).

use axum::extract::State;
use ruma::api::{Direction, client::room::get_event_by_timestamp};
use storage::events::Direction as Order;

use super::{
    ApiError, Routes, Ruma, RumaResponse,
    history::{MAX_LOOKED_AT, Reader, room_of},
};
use crate::{Homeserver, sync::EventFilter};

pub(super) fn router() -> Routes {
    Routes::new().ruma(event_at)
}

/// `GET /_matrix/client/v1/rooms/{roomId}/timestamp_to_event`
///
/// <https://spec.matrix.org/v1.19/client-server-api/#get_matrixclientv1roomsroomidtimestamp_to_event>
async fn event_at(
    State(hs): State<Homeserver>,
    request: Ruma<get_event_by_timestamp::v1::Request>,
) -> Result<RumaResponse<get_event_by_timestamp::v1::Response>, ApiError> {
    let user = &request.sender().user_id;
    let body = &request.body;
    let room = room_of(&hs, &body.room_id).await?;
    let reader = Reader::new(&hs, &room, user).await?;
    let at = u64::from(body.ts.0);
    let (from, order) = match body.dir {
        Direction::Forward => (first_from(&reader, at).await? - 1, Order::Forward),
        Direction::Backward => (first_from(&reader, at.saturating_add(1)).await? - 1, Order::Backward),
    };
    let (events, _) = reader.page(from, None, order, 1, &EventFilter::default()).await?;
    let event = events.first().ok_or_else(|| {
        let side = if order == Order::Forward { "from" } else { "up to" };
        ApiError::not_found(format!("There is no event {side} that moment that you may see."))
    })?;
    Ok(RumaResponse(get_event_by_timestamp::v1::Response::new(
        event.event_id.clone(),
        event.origin_server_ts,
    )))
}

/// The position of the first event at or after a moment, or one behind the last. Events came in the order of their
/// times, so halving finds it.
async fn first_from(reader: &Reader<'_>, at: u64) -> Result<i64, ApiError> {
    let (mut low, mut high) = (0, reader.newest() + 1);
    for _ in 0..MAX_LOOKED_AT {
        if low >= high - 1 {
            break;
        }
        let middle = low + (high - low) / 2;
        // The first event behind the middle.
        let page = reader
            .hs
            .rooms
            .page(&reader.state, middle - 1, high - 1, Order::Forward, 1)
            .await?;
        match page.first() {
            Some(event) if u64::from(event.origin_server_ts.0) < at => low = event.nid,
            _ => high = middle,
        }
    }
    Ok(high)
}
