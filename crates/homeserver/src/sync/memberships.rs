//! A user's rooms as of the position that an answer is for. Memory knows memberships before their positions are
//! published; an answer that looked ahead would call a room left whose last messages it has not delivered.

use std::sync::Arc;

use ruma::{RoomId, UserId, events::StateEventType};

use crate::{
    Homeserver,
    room::{self, Membership, RoomMembership, UserRooms},
};

impl Homeserver {
    /// What the user was to each of their rooms at `now`.
    pub(crate) async fn memberships_at(&self, user_id: &UserId, now: i64) -> Result<Arc<UserRooms>, room::Error> {
        let mut rooms = self.rooms.memberships_of(user_id).await?;
        let ahead = rooms.iter().filter(|(_, m)| m.position > now);
        let ahead: Vec<_> = ahead.map(|(room_id, m)| (room_id.clone(), m.clone())).collect();
        for (room_id, membership) in ahead {
            let before = self.membership_before(user_id, &room_id, membership, now).await?;
            let rooms = Arc::make_mut(&mut rooms);
            match before {
                Some(before) => rooms.insert(room_id, before),
                None => rooms.remove(&room_id),
            };
        }
        Ok(rooms)
    }

    /// What stood at `now` before a membership that came later.
    async fn membership_before(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        later: RoomMembership,
        now: i64,
    ) -> Result<Option<RoomMembership>, room::Error> {
        let Some(room) = self.rooms.find(room_id).await? else {
            return Ok(None);
        };
        let member = StateEventType::RoomMember;
        let history = self
            .rooms
            .state_history(&room.state(), &member, user_id.as_str())
            .await?;
        let before = history.into_iter().rfind(|(position, _)| *position <= now);
        Ok(before.map(|(position, event)| RoomMembership {
            membership: event
                .as_ref()
                .and_then(|event| event.membership())
                .unwrap_or(Membership::Leave),
            position,
            sender: event.map_or(later.sender.clone(), |event| event.sender.clone()),
            ..later
        }))
    }

    /// Since when the user was in the room without a break until the membership that began at `position`, which may end
    /// it; no further back than `since` is looked. And whether they were in it just before that.
    pub(crate) async fn joined_until(
        &self,
        user_id: &UserId,
        room_id: &RoomId,
        position: i64,
        since: i64,
    ) -> Result<(i64, bool), room::Error> {
        let (mut began, mut was_joined) = (position, false);
        if position <= since {
            return Ok((began, was_joined));
        }
        let Some(room) = self.rooms.find(room_id).await? else {
            return Ok((began, was_joined));
        };
        let history = self.rooms.membership_history(&room.state(), user_id).await?;
        for (at, membership) in history.into_iter().rev().skip_while(|(at, _)| *at > position) {
            let joined = membership == Membership::Join;
            if joined {
                began = at;
                was_joined |= at != position;
            }
            if at != position && (!joined || at <= since) {
                break;
            }
        }
        Ok((began, was_joined))
    }
}
