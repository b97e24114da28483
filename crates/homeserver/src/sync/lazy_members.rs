//! Which membership events a device has already been sent, so that lazy loading does not repeat them. A cache: what is
//! forgotten is sent once more.

use std::{collections::HashMap, num::NonZeroUsize};

use lru::LruCache;
use parking_lot::Mutex;
use ruma::{OwnedDeviceId, OwnedEventId, OwnedRoomId, OwnedUserId, RoomId, UserId};

/// Devices remembered at once.
const MAX_DEVICES: usize = 10_000;
/// Rooms remembered per device.
const MAX_ROOMS_PER_DEVICE: usize = 500;
/// Members remembered per room of a device; a room beyond it starts over.
const MAX_MEMBERS_PER_ROOM: usize = 1000;

type SentMembers = HashMap<OwnedUserId, OwnedEventId>;

/// The membership events each device holds, by room and member.
#[derive(Debug)]
pub(crate) struct LazyMembers {
    devices: Mutex<LruCache<(OwnedUserId, OwnedDeviceId), LruCache<OwnedRoomId, SentMembers>>>,
}

impl Default for LazyMembers {
    fn default() -> Self {
        Self {
            devices: Mutex::new(LruCache::new(bound(MAX_DEVICES))),
        }
    }
}

impl LazyMembers {
    /// Keeps the members whose current event the device has not been sent yet, and remembers them as sent.
    pub(crate) fn take_unsent(
        &self,
        device: &(OwnedUserId, OwnedDeviceId),
        room_id: &RoomId,
        members: Vec<(OwnedUserId, OwnedEventId)>,
    ) -> Vec<(OwnedUserId, OwnedEventId)> {
        if members.is_empty() {
            return members;
        }
        self.with_room(device, room_id, |sent| {
            let mut unsent = members;
            unsent.retain(|(user_id, event_id)| sent.get(user_id) != Some(event_id));
            for (user_id, event_id) in &unsent {
                remember(sent, user_id, event_id);
            }
            unsent
        })
    }

    /// Remembers that the device got these membership events in any part of a response.
    pub(crate) fn note_sent<'a>(
        &self,
        device: &(OwnedUserId, OwnedDeviceId),
        room_id: &RoomId,
        members: impl IntoIterator<Item = (&'a UserId, OwnedEventId)>,
    ) {
        let mut members = members.into_iter().peekable();
        if members.peek().is_none() {
            return;
        }
        self.with_room(device, room_id, |sent| {
            for (user_id, event_id) in members {
                remember(sent, user_id, &event_id);
            }
        });
    }

    /// Forgets all of a device: it starts from nothing.
    pub(crate) fn forget_device(&self, device: &(OwnedUserId, OwnedDeviceId)) {
        self.devices.lock().pop(device);
    }

    fn with_room<R>(
        &self,
        device: &(OwnedUserId, OwnedDeviceId),
        room_id: &RoomId,
        work: impl FnOnce(&mut SentMembers) -> R,
    ) -> R {
        let mut devices = self.devices.lock();
        let rooms = devices.get_or_insert_mut_ref(device, || LruCache::new(bound(MAX_ROOMS_PER_DEVICE)));
        work(rooms.get_or_insert_mut(room_id.to_owned(), SentMembers::new))
    }
}

fn remember(sent: &mut SentMembers, user_id: &UserId, event_id: &OwnedEventId) {
    if sent.len() >= MAX_MEMBERS_PER_ROOM && !sent.contains_key(user_id) {
        sent.clear();
    }
    sent.insert(user_id.to_owned(), event_id.clone());
}

fn bound(n: usize) -> NonZeroUsize {
    NonZeroUsize::new(n).expect("the bounds of this file are not zero")
}

#[cfg(test)]
mod tests {
    use ruma::{event_id, owned_device_id, owned_event_id, owned_user_id, room_id, user_id};

    use super::*;

    #[test]
    fn members_are_sent_once_per_device_and_version() {
        let cache = LazyMembers::default();
        let device = (owned_user_id!("@a:x"), owned_device_id!("D"));
        let other = (owned_user_id!("@a:x"), owned_device_id!("E"));
        let room = room_id!("!r:x");
        let bob = || vec![(owned_user_id!("@b:x"), owned_event_id!("$1"))];
        assert_eq!(cache.take_unsent(&device, room, bob()), bob());
        assert_eq!(cache.take_unsent(&device, room, bob()), []);
        assert_eq!(cache.take_unsent(&device, room_id!("!s:x"), bob()), bob());
        assert_eq!(cache.take_unsent(&other, room, bob()), bob());
        let renamed = || vec![(owned_user_id!("@b:x"), owned_event_id!("$2"))];
        assert_eq!(cache.take_unsent(&device, room, renamed()), renamed());
        cache.forget_device(&device);
        assert_eq!(cache.take_unsent(&device, room, renamed()), renamed());
        cache.note_sent(&other, room, [(user_id!("@b:x"), event_id!("$2").to_owned())]);
        assert_eq!(cache.take_unsent(&other, room, renamed()), []);
    }

    #[test]
    fn a_huge_room_starts_over_instead_of_growing() {
        let cache = LazyMembers::default();
        let device = (owned_user_id!("@a:x"), owned_device_id!("D"));
        let room = room_id!("!r:x");
        let member = |n: usize| (UserId::parse(format!("@u{n}:x")).unwrap(), owned_event_id!("$1"));
        let all: Vec<_> = (0..=MAX_MEMBERS_PER_ROOM).map(member).collect();
        assert_eq!(cache.take_unsent(&device, room, all.clone()).len(), all.len());
        assert_eq!(cache.take_unsent(&device, room, vec![member(MAX_MEMBERS_PER_ROOM)]), []);
        assert_eq!(cache.take_unsent(&device, room, vec![member(0)]).len(), 1);
    }
}
