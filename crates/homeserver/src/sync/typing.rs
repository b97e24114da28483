//! Who is typing where. Lives in memory: a restart ends all typing, as clients expect of something that lasts seconds.

use std::collections::{BTreeMap, HashMap};

use parking_lot::Mutex;
use ruma::{OwnedRoomId, OwnedUserId, RoomId, UserId};

/// The longest time one request can keep a user typing, in milliseconds.
pub(crate) const MAX_TYPING_MS: u64 = 120_000;

/// The users who are typing in each room, and until when.
#[derive(Debug, Default)]
pub(crate) struct Typing {
    rooms: Mutex<HashMap<OwnedRoomId, BTreeMap<OwnedUserId, u64>>>,
}

impl Typing {
    /// Marks the user as typing until `until_ms`; answers whether the room's list changed.
    pub(crate) fn start(&self, room_id: &RoomId, user_id: &UserId, until_ms: u64) -> bool {
        let mut rooms = self.rooms.lock();
        rooms
            .entry(room_id.to_owned())
            .or_default()
            .insert(user_id.to_owned(), until_ms)
            .is_none()
    }

    /// Marks the user as not typing; answers whether the room's list changed.
    pub(crate) fn stop(&self, room_id: &RoomId, user_id: &UserId) -> bool {
        let mut rooms = self.rooms.lock();
        let Some(users) = rooms.get_mut(room_id) else {
            return false;
        };
        let changed = users.remove(user_id).is_some();
        if users.is_empty() {
            rooms.remove(room_id);
        }
        changed
    }

    /// Ends what has run out at `now_ms`; answers the rooms whose lists changed.
    pub(crate) fn expire(&self, now_ms: u64) -> Vec<OwnedRoomId> {
        let mut changed = Vec::new();
        self.rooms.lock().retain(|room_id, users| {
            let before = users.len();
            users.retain(|_, until_ms| *until_ms > now_ms);
            if users.len() != before {
                changed.push(room_id.clone());
            }
            !users.is_empty()
        });
        changed
    }

    /// When the next user stops by themselves.
    pub(crate) fn next_expiry(&self) -> Option<u64> {
        self.rooms.lock().values().flat_map(BTreeMap::values).min().copied()
    }

    /// Who is typing in the room.
    pub(crate) fn users(&self, room_id: &RoomId) -> Vec<OwnedUserId> {
        self.rooms
            .lock()
            .get(room_id)
            .map(|users| users.keys().cloned().collect())
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use ruma::{room_id, user_id};

    use super::*;

    #[test]
    fn typing_ends_by_itself() {
        let typing = Typing::default();
        let (room, a, b) = (room_id!("!r:x"), user_id!("@a:x"), user_id!("@b:x"));
        assert!(typing.start(room, a, 10));
        assert!(!typing.start(room, a, 20), "typing on changes no list");
        assert!(typing.start(room, b, 15));
        assert_eq!(typing.next_expiry(), Some(15));
        assert_eq!(typing.expire(10), [""; 0]);
        assert_eq!(typing.expire(15), [room]);
        assert_eq!(typing.users(room), [a]);
        assert!(typing.stop(room, a));
        assert!(!typing.stop(room, a));
        assert_eq!(typing.users(room), [""; 0]);
        assert_eq!(typing.next_expiry(), None);
    }
}
