//! What one user may read of one room's history: the ground of every endpoint that shows events.

use std::sync::Arc;

use ruma::{UserId, events::StateEventType};
use serde_json::value::RawValue;
use storage::events::Direction as Order;

use super::{ApiError, room_arguments::viewer};
use crate::{
    Homeserver,
    accounts::Authenticated,
    room::{Event, Format, Room, RoomState, StateMap, Visibility},
    sync::EventFilter,
};

/// The most events one answer has.
const MAX_LIMIT: usize = 1_000;

/// How many events one request looks at before it answers what it found: a filter that admits nearly
/// nothing must not read a whole room at once.
pub(super) const MAX_LOOKED_AT: usize = 5_000;

pub(super) fn limit(asked: ruma::UInt) -> usize {
    usize::try_from(u64::from(asked)).map_or(MAX_LIMIT, |asked| asked.min(MAX_LIMIT))
}

/// What one user may read of one room.
pub(super) struct Reader<'a> {
    pub(super) hs: &'a Homeserver,
    pub(super) state: Arc<RoomState>,
    /// Where a former member's reading ends.
    pub(super) until: Option<i64>,
    pub(super) visibility: Visibility,
}

impl<'a> Reader<'a> {
    pub(super) async fn new(hs: &'a Homeserver, room: &Room, user: &UserId) -> Result<Self, ApiError> {
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
    pub(super) fn newest(&self) -> i64 {
        self.until.unwrap_or_else(|| self.hs.store.positions().current())
    }

    /// At most `limit` visible, wanted events from a position on, and where the next page begins
    /// (`None` at the end of history).
    pub(super) async fn page(
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

    pub(super) async fn shown(
        &self,
        events: &[Arc<Event>],
        user: &Authenticated,
    ) -> Result<Vec<Box<RawValue>>, ApiError> {
        let events = self
            .hs
            .rooms
            .client_events(events, &viewer(user), Format::WithRoomId, Some(&self.visibility))
            .await?;
        Ok(events)
    }

    /// The member events of the senders of `events`, for clients that load members lazily.
    pub(super) async fn senders(
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

pub(super) async fn room_of(hs: &Homeserver, room_id: &ruma::RoomId) -> Result<Arc<Room>, ApiError> {
    hs.rooms
        .find(room_id)
        .await?
        .ok_or_else(|| ApiError::forbidden("You are not a member of this room."))
}

/// An event that `user` may see. Whether it is absent or hidden is not told.
pub(super) async fn visible_event<'a>(
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
