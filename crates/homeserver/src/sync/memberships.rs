//! A user's rooms as of the position that an answer is for. Memory knows memberships before their positions are
//! published; an answer that looked ahead would call a room left whose last messages it has not delivered.

use std::sync::Arc;

use ruma::{RoomId, UserId};

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
            let before = self.membership_before(&room_id, membership, now).await?;
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
        room_id: &RoomId,
        later: RoomMembership,
        now: i64,
    ) -> Result<Option<RoomMembership>, room::Error> {
        let mut at = Some(later.position);
        while let Some(nid) = at {
            let events = self.rooms.events(room_id, &[nid]).await?;
            let Some(event) = events.first() else { break };
            if nid <= now {
                return Ok(Some(RoomMembership {
                    membership: event.membership().unwrap_or(Membership::Leave),
                    position: nid,
                    sender: event.sender.clone(),
                    ..later
                }));
            }
            at = event.replaces;
        }
        Ok(None)
    }

    /// Since when the user was in the room without a break until the member event at `position`, which may end it; no
    /// further back than `since` is looked. And whether they were in it just before that event.
    pub(crate) async fn joined_until(
        &self,
        room_id: &RoomId,
        position: i64,
        since: i64,
    ) -> Result<(i64, bool), room::Error> {
        let (mut began, mut was_joined) = (position, false);
        let mut at = Some(position);
        while let Some(nid) = at {
            let events = self.rooms.events(room_id, &[nid]).await?;
            let Some(event) = events.first() else { break };
            let joined = event.membership() == Some(Membership::Join);
            if joined {
                began = nid;
                was_joined |= nid != position;
            }
            if nid != position && (!joined || nid <= since) {
                break;
            }
            at = event.replaces;
        }
        Ok((began, was_joined))
    }
}
